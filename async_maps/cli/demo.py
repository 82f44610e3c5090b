"""``async-maps demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from async_maps.cli.displays import make_display
from async_maps.cli.options import DONE, SOME_FAILED, Flag
from async_maps.errors import SettingsError


def demo(
    *,
    out: Path = Path("async-maps-demo"),
    scenes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 240,
    local: Flag = False,
    serve: Flag = False,
) -> int:
    """Do the whole job on this machine, without an account: scenes, their saliency maps, a real S3 server, overlays.

    Makes a few hundred scenes and a saliency map of each, starts SeaweedFS on loopback, uploads their overlays as
    async-maps run does, reads every object back and compares its pixels, exports the locators, and draws overlays.png.

    Parameters
    ----------
    out
        The folder for everything it makes; a demo found there is replaced.
    scenes
        How many.
    local
        Into a folder instead of an S3 server; also what happens where the extra "demo" is not installed.
    serve
        Keep the server until Ctrl-C, and print what leads other commands in other terminals to it.
    """
    from async_maps.demo.run import run_demo

    if local and serve:
        raise SettingsError("--local and --serve exclude each other: a folder has no server")
    all_right = run_demo(out, scenes=scenes, local=local, serve=serve, on_progress=make_display("auto"))
    return DONE if all_right else SOME_FAILED
