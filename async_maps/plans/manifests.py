"""The manifests of parts: Parquet tables of the outcomes, whose footers say what was done. Blocks."""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from async_maps.errors import PlanError, require_extra
from async_maps.keys import printable
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import BOOLEANS, COLUMNS, FLOATS, INTEGERS
from async_maps.plans.document import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

    import pyarrow as pa
    import pyarrow.parquet as pq

    from async_maps.manifest.retried import RetriedManifest

_FOOTER_KEY = b"async-maps-part"
_COLUMNS = (*COLUMNS, "file")
_BATCH = 10_000
NAME, LOCATOR, STATUS, SOURCE, FILE = map(_COLUMNS.index, ("name", "locator", "status", "source", "file"))
GONE = "gone"
"""The status of a row of a retry that says: there is no such row anymore. Its file has other maps now."""

Row: TypeAlias = "tuple[object, ...]"


class Footer(NamedTuple):
    """What the manifest of a part says of itself.

    Attributes:
        plan: the id of the plan.
        part: the number of the part.
        generation: 0 for the first outcome of the part, one more for each retry of its failed maps.
        writer: a random text of the process that wrote it, which recognizes its own manifest by it.
        rows: the number of rows of the part; after a retry, with those of earlier generations.
        failures: the number of rows of failed maps, in the same way.
        first: the smallest locator of the part in the order of UTF-8; empty without overlays.
        last: the largest one.
        digest: the SHA-256 of the parent's digest and the rows of this manifest, in hexadecimal.
        parent: the digest of the generation before; empty for generation 0.
    """

    plan: str
    part: int
    generation: int
    writer: str
    rows: int = 0
    failures: int = 0
    first: str = ""
    last: str = ""
    digest: str = ""
    parent: str = ""

    @property
    def name(self) -> str:
        """The name of the manifest in the plan's place."""
        return manifest_name(self.plan, self.part, self.generation)


def manifest_name(plan: str, part: int, generation: int = 0) -> str:
    """Return the name of the manifest of a part in the plan's place."""
    return f"{plan}/done/{part:07}.{generation}.parquet"


def part_in(name: str) -> tuple[int, int] | None:
    """Return the part and the generation in the name of a manifest; None if it is another object."""
    found = re.fullmatch(r".*/(\d{7,})\.(\d+)\.parquet", name, re.ASCII)
    return found and (int(found[1]), int(found[2]))


def write_manifest(manifest: str | PathLike[str], footer: Footer) -> tuple[Footer, bytes]:
    """Return the table of a manifest in SQLite, and its footer with the counts."""
    with Manifest(manifest, read_only=True) as opened:
        footer = _counted(opened.rows_with_files(), footer)
        return write_rows(opened.rows_with_files(), footer)


def write_changes(manifest: RetriedManifest, footer: Footer) -> tuple[Footer, bytes] | None:
    """Return the table of the rows that a retry has changed, and its footer with the counts of the whole part.

    None if nothing has changed.
    """
    changes = manifest.changes(GONE)
    first = next(changes, None)
    if first is None:
        return None
    return write_rows(chain((first,), changes), _counted(manifest.rows_after(), footer))


def write_rows(rows: Iterable[Row], footer: Footer) -> tuple[Footer, bytes]:
    """Return the table of the rows, and its footer with their digest."""
    with require_extra("a plan", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    schema, data, digest = _schema(), io.BytesIO(), hashlib.sha256(footer.parent.encode())
    with pq.ParquetWriter(data, schema, compression="zstd", write_statistics=False) as writer:
        for batch in _batches(rows):
            columns = zip(zip(*batch, strict=True), schema, strict=True)
            arrays = [pa.array(values, field.type) for values, field in columns]
            writer.write_table(pa.table(arrays, schema=schema))
            digest.update(json.dumps(batch).encode())
        footer = footer._replace(digest=digest.hexdigest())
        writer.add_key_value_metadata({_FOOTER_KEY: json.dumps({"schema": SCHEMA, **footer._asdict()})})
    return footer, data.getvalue()


def _counted(found: Iterable[Row], footer: Footer) -> Footer:
    """Return the footer with the counts of all rows of a part."""
    rows = failures = 0
    first = last = b""
    for batch in _batches(found):
        located = [str(row[LOCATOR]).encode() for row in batch if row[LOCATOR] is not None]
        rows, failures = rows + len(batch), failures + sum(row[STATUS] == "failed" for row in batch)
        if located:
            first, last = min(filter(None, (first, *located))), max(last, *located)
    return footer._replace(rows=rows, failures=failures, first=first.decode(), last=last.decode())


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    found = iter(rows)
    while batch := list(islice(found, _BATCH)):
        yield batch


def footer_size(data: bytes) -> int:
    """Return how many bytes at the end of a manifest its footer takes; ``data`` is a part of that end."""
    return int.from_bytes(data[-8:-4], "little") + 8


def read_footer(data: bytes, where: str) -> Footer:
    """Read the footer of a part's manifest, of which only the end is needed.

    Raises PlanError if it is no manifest of a part, or of another version.
    """
    with require_extra("a plan", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        return _footer(pq.read_metadata(io.BytesIO(data)), where)
    except (pa.ArrowException, OSError) as error:
        raise PlanError(f"{where} is no manifest of a part: {error}") from error


def read_rows(data: bytes, where: str) -> Iterator[Row]:
    """Yield the rows of a part's manifest: the values of the columns of a manifest, and the file.

    Raises PlanError as :func:`read_footer`.
    """
    read_footer(data, where)
    import pyarrow as pa
    import pyarrow.parquet as pq

    with closing(pq.ParquetFile(io.BytesIO(data))) as table:
        if missing := {*_COLUMNS} - {*table.schema_arrow.names}:
            raise PlanError(f"{where} is no manifest of a part: it has no column {', '.join(sorted(missing))}")
        batches = table.iter_batches(_BATCH, columns=list(_COLUMNS))
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise PlanError(f"{where} is damaged: {printable(str(error))}") from error
            if batch is None:
                return
            yield from zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True)


def _footer(metadata: pq.FileMetaData, where: str) -> Footer:
    try:
        found = json.loads((metadata.metadata or {})[_FOOTER_KEY])
        schema = found.pop("schema")
        if schema == SCHEMA:
            return Footer(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{where} is no manifest of a part: {error}") from error
    raise PlanError(
        f"{where} has schema {schema!r}, and this version of async-maps reads {SCHEMA}: use the version that wrote it"
    )


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = dict.fromkeys(INTEGERS, pa.int64()) | dict.fromkeys(FLOATS, pa.float64())
    kinds |= dict.fromkeys(BOOLEANS, pa.bool_())
    return pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in _COLUMNS])
