"""``async-maps view``."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Annotated

from cyclopts import Parameter, validators

from async_maps.cli.console import answer, complain, say, set_verbosity
from async_maps.cli.interruption import interruption
from async_maps.cli.options import WHAT, Quiet, Verbose
from async_maps.errors import SettingsError
from async_maps.report import counted
from async_maps.report.ending import DONE, SOME_FAILED

_MOST_PORT = 65_535


def view(  # noqa: PLR0913  # one argument per option
    manifest: str,
    /,
    *,
    images: Annotated[str | None, Parameter(group=WHAT)] = None,
    compare: Annotated[str | None, Parameter(group=WHAT)] = None,
    static: Annotated[Path | None, Parameter(group=WHAT)] = None,
    size: Annotated[int | None, Parameter(group=WHAT, validator=validators.Number(gte=1))] = None,
    limit: Annotated[int | None, Parameter(group=WHAT, validator=validators.Number(gte=1))] = None,
    port: Annotated[int | None, Parameter(group=WHAT, validator=validators.Number(gte=0, lte=_MOST_PORT))] = None,
    open_browser: Annotated[bool, Parameter(name="--open", negative="--no-open", group=WHAT)] = True,
    allow_host: Annotated[list[str] | None, Parameter(group=WHAT, negative="")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Look at overlays on their source images, in a browser.

    ```
    async-maps view async-maps.sqlite --images images/
    async-maps view async-maps.sqlite --images "s3://my-bucket/{name}.jpg"
    ```

    Serves a page on 127.0.0.1 until Ctrl-C and prints its address, which has a token. For another machine, forward the
    port: `ssh -L 8765:127.0.0.1:8765 HOST`, and use `--port 8765 --no-open` there.

    Parameters
    ----------
    manifest
        Manifest of a run, also while it writes; or the address of a plan, a folder, s3://bucket/prefix,
        gs:// or az://.
    images
        Source images: a folder, s3://bucket/prefix, gs:// or az://, where an image has the name of its map, or of the
        map's folder; a template with {name}, {parent} and {stem}; or a table with the columns name and image.
    compare
        Manifest of another run, or another plan, such as of a second model: maps with the same name side by side.
    static
        Write the page with its maps and images into this folder and end: it opens from a disk or a bucket.
    size
        With --static: longest side of maps and images in pixels; by default all pixels.
    limit
        With --static: only the first maps by name.
    port
        Port on loopback; 0 for any that is free. By default each manifest has its own, 20000 to 29999, because browsers
        keep marks by port; any that is free if it is taken.
    open_browser
        Open the page in a browser, where there is one.
    allow_host
        Name under which a proxy reaches this page; repeatable.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    if static is not None:
        if port is not None or allow_host:
            raise SettingsError("--port and --allow-host are for the server: --static starts none")
        return _write(manifest, images, compare, static, size, limit)
    if size is not None or limit is not None:
        raise SettingsError("--size and --limit are for --static")
    from async_maps.viewer.server import Viewer

    with (
        suppress(KeyboardInterrupt),
        Viewer(manifest, images=images, compare=compare, port=port, hosts=allow_host or ()) as viewer,
    ):
        # Not masked: its token is what the user needs.
        print(viewer.url, flush=True)  # noqa: T201  # the answer
        opened = open_browser and viewer.show()
        say("Ctrl-C ends it" if opened else "open this address in a browser; Ctrl-C ends it")
        Event().wait()
    interruption.get().forgive(signal.SIGINT)
    return DONE


def _write(  # noqa: PLR0913, PLR0917  # those of the command
    manifest: str, images: str | None, compare: str | None, out: Path, size: int | None, limit: int | None
) -> int:
    from async_maps.viewer.content import Content
    from async_maps.viewer.export import write_static

    with Content(manifest, images, compare) as content:
        written = write_static(content, out, side=size, limit=limit, tell=say)
    if written.missing:
        complain(f"{counted(written.missing, 'overlay')} could not be read: see --verbose")
    if images is not None and not written.images:
        complain(f"no map has an image in {images}: see --verbose")
    found = "" if images is None else f", {written.images:,} with an image"
    printed = answer(f"{counted(written.maps, 'map')}{found} in {out / 'index.html'}, {written.size / 1e6:,.1f} MB")
    return DONE if printed and not written.missing else SOME_FAILED
