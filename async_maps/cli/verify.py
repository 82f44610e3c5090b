"""``async-maps verify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from async_maps.cli.console import check_report, complain, print_verification, say, write_report
from async_maps.cli.displays import LineDisplay, ProgressKind
from async_maps.cli.options import DONE, SETTINGS_GROUP, SOME_FAILED, WRONG_USE, Flag
from async_maps.errors import AsyncMapsError, SettingsError
from async_maps.settings import Settings


def verify(  # noqa: PLR0913  # one argument a flag
    manifest: str,
    /,
    *,
    deep: Flag = False,
    repair: Flag = False,
    source: str | None = None,
    delete_foreign: Flag = False,
    progress: ProgressKind = "auto",
    report: Path | None = None,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=SETTINGS_GROUP, show=False)] = Settings(),  # noqa: B008  # frozen
) -> int:
    """Say whether every locator is really there, whole, and what was sent: exit code 0 if so, 1 if anything differs.

    Lists what lies at the destination, a thousand objects a request, and compares sizes and ETags with the manifest.

    Names what is missing, truncated or another object, and PNGs among the overlays that no row knows ("foreign").

    --repair makes what is broken again, from the maps and with the settings of its run, and uploads nothing else.

    A map that has changed since gets the overlay of what is there now. An interrupted repair is completed by the next.

    All settings of async-maps run can be given here too: --concurrency, --s3.max-attempts, --workers and so on.

    Parameters
    ----------
    manifest
        The SQLite file that async-maps run has written; or a table of results, .csv, .jsonl or .parquet (extra
        "parquet"), with a column locator or Kolena's cells {"locator": ..., "data_type": ...}. To a table nothing is
        foreign, and it cannot be repaired.
    deep
        Also read every object: does it decode, has it the right bytes, size in pixels and Content-Type?
    repair
        Make what is broken again, then look again.
    source
        Where the maps are now, for --repair; by default where their run has read them.
    delete_foreign
        With --repair: delete the foreign objects: whatever is called .png anywhere below the destination, also
        overlays of another manifest, images, and overlays of maps that have failed in a later run.
    progress
        A line or a JSON object every few seconds, or none; auto and bar are lines.
    report
        Write what was found to this file, as JSON.
    config
        Settings from this TOML file; flags and environment go before it.
    """
    from async_maps.verify import Verification, repair_overlays, verify_locators

    if not repair and (delete_foreign or source is not None):
        raise SettingsError(f"{'--delete-foreign' if delete_foreign else '--source'} needs --repair")
    check_report(report)
    watch = None if progress == "none" else LineDisplay(sys.stderr, as_json=progress == "json")
    done = Verification()
    try:
        if repair:
            done = repair_overlays(
                manifest, settings=settings, deep=deep, source=source, delete_foreign=delete_foreign, on_progress=watch
            )
        else:
            done = verify_locators(manifest, settings=settings, deep=deep, on_progress=watch)
        code = DONE if print_verification(done) and done.is_clean else SOME_FAILED
    except AsyncMapsError as error:
        done = error.report or done
        if done.differences:
            print_verification(done)
        complain(error)
        code = SOME_FAILED if done.repaired or done.differences else WRONG_USE
    except KeyboardInterrupt:
        if repair:
            say("the same command once more does the rest")
        raise
    return write_report(report, done, code)
