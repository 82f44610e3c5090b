"""``async-maps demo``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from async_maps.cli.console import set_verbosity
from async_maps.cli.displays import make_display
from async_maps.cli.interruption import interruption
from async_maps.cli.options import WHAT, Flag, Quiet, Verbose
from async_maps.errors import SettingsError
from async_maps.report.ending import DONE, SOME_FAILED


def demo(  # noqa: PLR0913  # one argument per option
    *,
    out: Annotated[Path, Parameter(group=WHAT)] = Path("async-maps-demo"),
    scenes: Annotated[int, Parameter(group=WHAT, validator=validators.Number(gte=1))] = 240,
    local: Annotated[Flag, Parameter(group=WHAT)] = False,
    serve: Annotated[Flag, Parameter(group=WHAT)] = False,
    look: Annotated[Flag, Parameter(name="--open", group=WHAT)] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Do the whole job on this machine, without an account.

    ```
    async-maps demo
    async-maps demo --serve
    ```

    Draws a few hundred scenes with a saliency map each, starts an S3 server (SeaweedFS) on loopback, uploads the
    overlays as `async-maps run` does, reads each object back and compares its pixels. Writes locators.csv,
    overlays.png, and a page that shows all overlays.

    Parameters
    ----------
    out
        Folder for all files; an earlier demo in it is replaced.
    scenes
        Number of scenes.
    local
        Upload into a folder instead of an S3 server. Without the extra "demo", this is the default.
    serve
        Keep the server running until Ctrl-C and print the environment variables to reach it.
    look
        Show the overlays in a browser, where there is one, until Ctrl-C.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    from async_maps.demo.run import run_demo

    if local and serve:
        raise SettingsError("--local and --serve exclude each other: a folder has no server")
    all_right = run_demo(
        out,
        scenes=scenes,
        local=local,
        serve=serve,
        look=look,
        on_progress=make_display("none" if quiet else "auto"),
    )
    if serve or look:
        interruption.get().forgive(signal.SIGINT)
    return DONE if all_right else SOME_FAILED
