"""Shows overlays on their source images in a browser, from a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.viewer.server import Viewer


def view(  # noqa: PLR0913  # one argument per option
    manifest: str | PathLike[str] | Report,
    *,
    images: str | PathLike[str] | None = None,
    compare: str | PathLike[str] | None = None,
    port: int | None = None,
    open_browser: bool = True,
    settings: Settings | None = None,
) -> Viewer:
    """Show the overlays of a manifest on their source images, in a browser.

    Args:
        manifest: the path of a manifest, the address of a plan, or the report of a run that has a manifest.
        images: the place of the source images: a folder or a prefix in a bucket, in which an image has the name of its
            map; a template such as ``s3://bucket/{parent}/{stem}.jpg``; or a table with the columns ``name`` and
            ``image``. None to show overlays alone.
        compare: a second manifest or plan, whose maps are shown beside those with the same names.
        port: the port on loopback; 0 for any that is free. None for the manifest's own, because browsers keep marks by
            port; any that is free if it is taken.
        open_browser: whether to open the page in a browser, where there is one.
        settings: the time limits and attempts of requests.

    Returns:
        The viewer. It runs until it is closed, or until the program ends.

    Raises:
        AsyncMapsError: the manifest, the plan or the images cannot be read, or the port cannot be used.
    """
    from async_maps.viewer.server import Viewer

    viewer = Viewer(manifest, images=images, compare=compare, port=port, settings=settings)
    if open_browser:
        viewer.show()
    return viewer
