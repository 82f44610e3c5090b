"""``async-maps export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer, set_verbosity
from async_maps.cli.options import DONE, SOME_FAILED, Flag, Quiet, Verbose
from async_maps.manifest.columns import ExportFormat


def export(  # noqa: PLR0913  # one argument a flag
    manifest: Path,
    file: Path,
    /,
    *,
    all: Flag = False,  # noqa: A002  # the flag's name
    columns: str | None = None,
    export_format: Annotated[ExportFormat, Parameter(name="--as")] = "plain",
    presign: float | None = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Write the locators in a manifest to a table.

    ```
    async-maps export async-maps.sqlite locators.csv
    async-maps export async-maps.sqlite masks.csv --as kolena
    ```

    Parameters
    ----------
    manifest
        Manifest of a run.
    file
        Table to write: .csv, .jsonl or .parquet (extra "parquet").
    all
        Also the maps that failed, with stage and error. They have no locator, unless verify has found it broken.
    columns
        Columns to write, in this order: name,locator,maximum.
    export_format
        plain; kolena: for kolena.io, with a BitmapMask in the column activation_map; fiftyone: map_path and range for
        fiftyone.Heatmap, for overlays made with --png gray.
    presign
        Add a column url that opens the overlay in S3 without credentials, for this number of hours (1 to 168, or until
        the AWS credentials expire). Anyone who has the URL can read the object: treat it as a password. On AWS,
        AWS_DEFAULT_REGION or the profile's region must be the region of the bucket.
    """
    from async_maps.manifest.export import export_manifest

    set_verbosity(verbose=verbose, quiet=quiet)

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    count = export_manifest(
        manifest, file, failed=all, columns=names, export_format=export_format, presign_hours=presign
    )
    return DONE if answer(f"{count:,} rows in {file}") else SOME_FAILED
