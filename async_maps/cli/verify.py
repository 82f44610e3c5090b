"""``async-maps verify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from async_maps.cli.console import print_verification, set_verbosity, tell_start
from async_maps.cli.displays import JsonDisplay, LineDisplay, ProgressKind
from async_maps.cli.options import OUTPUT, WHAT, Flag, GroupedSettings, Quiet, Verbose
from async_maps.cli.reports import check_report, write_report
from async_maps.errors import AsyncMapsError, SettingsError
from async_maps.filesystems.outputs import files_of_run
from async_maps.report.ending import DONE, SOME_FAILED


def verify(  # noqa: PLR0913  # one argument per option
    manifest: str,
    /,
    *,
    deep: Annotated[Flag, Parameter(group=WHAT)] = False,
    repair: Annotated[Flag, Parameter(group=WHAT)] = False,
    source: Annotated[str | None, Parameter(group=WHAT)] = None,
    destination: Annotated[str | None, Parameter(group=WHAT)] = None,
    delete_foreign: Annotated[Flag, Parameter(group=WHAT)] = False,
    config: Annotated[Path | None, Parameter(group=WHAT)] = None,
    progress: Annotated[ProgressKind, Parameter(group=OUTPUT)] = "auto",
    report: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    settings: Annotated[GroupedSettings, Parameter(name="*", show=False)] = GroupedSettings(),  # noqa: B008  # frozen
) -> int:
    """Check that each overlay exists and is unchanged. Repair those that are not.

    ```
    async-maps verify async-maps.sqlite
    async-maps verify async-maps.sqlite --deep --repair
    ```

    Lists the destination, 1,000 objects per request, and compares sizes and ETags (of files, the CRC32) with the
    manifest. Reports overlays that are missing, truncated or replaced, and PNGs below the destination that the manifest
    does not list ("foreign").

    Beside a run, it says so, and does not judge what the run is writing.

    All settings of `async-maps run` can be given: `--concurrency`, `--workers`, `--s3.max-attempts`.

    Parameters
    ----------
    manifest
        Manifest of a run; or a table, .csv, .jsonl or .parquet (extra "parquet"), with a column locator or Kolena's
        cells {"locator": ..., "data_type": ...}. A table has no foreign objects and cannot be repaired. Or the address
        of a plan, whose parts must all be committed: the result names the parts to run again.
    deep
        Also read each object and check its bytes, its size in pixels and its Content-Type.
    repair
        Upload broken overlays again, from their maps and with the settings of their run; then verify again. A map that
        has changed since its run gets an overlay of its new values.
    source
        The current place of the maps, for --repair; by default the source of their run.
    destination
        The current place of the overlays, if they were moved or copied; by default that of the run. With --repair, the
        locators in the manifest are updated.
    delete_foreign
        With --repair: delete foreign objects, which are all objects named .png below the destination that this
        manifest does not list: overlays of other manifests, and other images. None while another run stores objects
        there. Run without it first to list them.
    config
        TOML file with settings; options and environment variables take precedence.
    progress
        A line every few seconds, or none; json: every line on standard error is a JSON object. auto and bar are lines.
    report
        JSON file for the result.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    from async_maps.verify import Verification, repair_overlays, verify_locators

    if not repair and (delete_foreign or source is not None):
        raise SettingsError(f"{'--delete-foreign' if delete_foreign else '--source'} needs --repair")
    check_report(report, files_of_run(manifest=manifest, config=config, source=source or ""))
    display = None if quiet or progress == "none" else JsonDisplay() if progress == "json" else LineDisplay(sys.stderr)
    done = Verification(settings=settings.model_dump(mode="json"), place=manifest)
    tell_start(manifest=manifest, deep=deep, repair=repair)

    def watch(verification: Verification) -> None:
        nonlocal done
        done = verification
        if display is not None:
            display(verification)

    try:
        if repair:
            done = repair_overlays(
                manifest,
                settings=settings,
                deep=deep,
                source=source,
                destination=destination,
                delete_foreign=delete_foreign,
                on_progress=watch,
            )
        else:
            done = verify_locators(manifest, settings=settings, deep=deep, destination=destination, on_progress=watch)
        printed = print_verification(done)
        code = write_report(report, done, done.exit_code or (DONE if printed else SOME_FAILED))
    except AsyncMapsError as error:
        done = error.report = error.report or done
        if done.differences:
            print_verification(done)
        raise
    except BaseException as error:
        error.report = done  # type: ignore[attr-defined]  # main() writes it
        if repair and isinstance(error, KeyboardInterrupt):
            error.add_note("run the same command again for the rest")
        raise
    return code
