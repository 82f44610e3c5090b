"""``async-maps export``."""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from async_maps.cli.console import answer, complain, discard_output, say, set_verbosity
from async_maps.cli.options import WHAT, Flag, Quiet, Verbose
from async_maps.errors import SettingsError
from async_maps.export.columns import ExportFormat
from async_maps.report import counted
from async_maps.report.ending import DONE, SOME_FAILED
from async_maps.sources import is_stdin

if TYPE_CHECKING:
    from async_maps.export.columns import ExportRows


def export(  # noqa: PLR0913  # one argument per option
    manifest: str,
    file: Path,
    /,
    *,
    all: Annotated[Flag, Parameter(group=WHAT)] = False,  # noqa: A002  # the name of the option
    failed: Annotated[Flag, Parameter(group=WHAT)] = False,
    columns: Annotated[str | None, Parameter(group=WHAT)] = None,
    export_format: Annotated[ExportFormat, Parameter(name="--as", group=WHAT)] = "plain",
    presign: Annotated[float | None, Parameter(group=WHAT)] = None,
    spreadsheet_safe: Annotated[Flag, Parameter(group=WHAT)] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Write the locators in a manifest or a plan to a table.

    ```
    async-maps export async-maps.sqlite locators.csv
    async-maps export async-maps.sqlite failures.csv --failed
    ```

    Parameters
    ----------
    manifest
        Manifest of a run; or the address of a plan, whose parts must all be committed.
    file
        Table to write: .csv, .jsonl or .parquet (extra "parquet"); - for CSV on standard output.
    all
        Also the maps that failed, with stage and error. They have no locator, unless verify has found it broken.
    failed
        Only the maps that failed: name, stage, reason and source.
    columns
        Columns to write, in this order: name,locator,maximum.
    export_format
        plain; kolena: for kolena.io, with a BitmapMask in the column activation_map; fiftyone: map_path and range for
        fiftyone.Heatmap, for overlays made with --png gray.
    presign
        Add a column url that opens the overlay in its bucket without credentials, for this number of hours (1 to 168,
        or until the credentials that sign it expire). Anyone who has the URL can read the object: treat it as a
        password. On AWS, AWS_DEFAULT_REGION or the profile's region must be the region of the bucket.
    spreadsheet_safe
        In CSV: put an apostrophe before texts that spreadsheets take for formulas, such as a name "=1+1".
    """
    from async_maps.export.tables import export_manifest

    set_verbosity(verbose=verbose, quiet=quiet)
    if all and failed:
        raise SettingsError("--all and --failed exclude each other")
    rows: ExportRows = "all" if all else "failed" if failed else "done"
    options: dict[str, Any] = {
        "rows": rows,
        "columns": None if columns is None else [name.strip() for name in columns.split(",")],
        "export_format": export_format,
        "presign_hours": presign,
        "spreadsheet_safe": spreadsheet_safe,
    }
    # main() has replaced "-" by /dev/stdin, because the parser would read it as an option.
    if is_stdin(str(file)):
        return _to_standard_output(manifest, options)
    count = export_manifest(manifest, file, **options)
    return DONE if answer(f"{counted(count, 'row')} in {file}") else SOME_FAILED


def _to_standard_output(manifest: str, options: dict[str, Any]) -> int:
    from async_maps.export.tables import write_csv

    if sys.stdout is None:
        complain("cannot write to standard output: it is closed")
        return SOME_FAILED
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    try:
        count = write_csv(manifest, sys.stdout, **options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, like head: exit as other commands do.
        discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        complain(f"cannot write to standard output: {error.strerror}")
        discard_output()
        return SOME_FAILED
    say(counted(count, "row"))
    return DONE
