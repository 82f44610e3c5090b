"""``async-maps export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer
from async_maps.cli.options import DONE, SOME_FAILED, Flag
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
) -> int:
    """Write the locators of a manifest to a table.

    Parameters
    ----------
    manifest
        The SQLite file that async-maps run has written.
    file
        Its suffix says what: .csv, .parquet (extra "parquet") or .jsonl.
    all
        Also the maps that failed, with stage and error: they have no locator, unless verify has found it broken.
    columns
        Only these, in this order: name,locator,maximum.
    export_format
        For whom: plain; kolena for kolena.io, with BitmapMasks in the column activation_map; fiftyone with map_path and
        range, for fiftyone.Heatmap, which wants overlays made with --png gray.
    presign
        Add the column url: for so many hours, 1 to 168 (or until the AWS credentials expire, if that is sooner), it
        opens the overlay in S3 without credentials. Whoever has it can read that object: treat it as a password. On AWS
        AWS_DEFAULT_REGION, or the profile's region, must be the bucket's.
    """
    from async_maps.manifest.export import export_manifest

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    count = export_manifest(
        manifest, file, failed=all, columns=names, export_format=export_format, presign_hours=presign
    )
    return DONE if answer(f"{count:,} rows in {file}") else SOME_FAILED
