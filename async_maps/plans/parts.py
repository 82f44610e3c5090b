"""The lists of a plan: the files of each part, as a Parquet table. Blocks."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import PlanError, require_extra
from async_maps.plans.document import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

_SCHEMA_KEY = b"async-maps-schema"
_TEXTS, _NUMBERS = ("name", "path", "fingerprint", "row", "reason"), ("size", "first", "end")
_NULLABLE = {"fingerprint", "end"}


class PartFile(NamedTuple):
    """A file of a part, in the state in which it was planned.

    Attributes:
        name: the name of the file, below which those of its maps are.
        path: an absolute path, or the address of an object.
        size: the size in bytes; 0 if it is not known.
        fingerprint: the state: its ETag, or the size and the time of the last change; None if it is not known.
        row: the row of the table that lists it, for messages; else empty.
        reason: why it was refused; empty if it was not.
        first: the index of the first map of a stack that belongs to the part.
        end: the index after the last one; None for all maps of the file.
    """

    name: str
    path: str
    size: int = 0
    fingerprint: str | None = None
    row: str = ""
    reason: str = ""
    first: int = 0
    end: int | None = None


class Digest:
    """Identifies the part lists of a plan. The bytes of a table depend on the version of pyarrow; this does not."""

    def __init__(self, *shape: object) -> None:
        self._hash = hashlib.sha256(json.dumps(shape).encode())

    def add(self, part: Iterable[PartFile]) -> None:
        """Add the next part."""
        for file in part:
            self._hash.update(json.dumps(file).encode())
        self._hash.update(b"\n")

    def __str__(self) -> str:
        return self._hash.hexdigest()[:32]


def list_name(plan: str, part: int) -> str:
    """Return the name of a part list in a plan's place."""
    return f"{plan}/parts/{part:07}.parquet"


def write_list(part: Sequence[PartFile]) -> bytes:
    """Return the table of a part."""
    with require_extra("a plan", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    schema = _schema()
    columns = [pa.array(values, schema.field(index).type) for index, values in enumerate(zip(*part, strict=True))]
    data = io.BytesIO()
    # Paths and names share long beginnings with the ones before.
    encoding = {"name": "DELTA_BYTE_ARRAY", "path": "DELTA_BYTE_ARRAY"}
    pq.write_table(
        pa.table(columns, schema=schema), data, compression="zstd", use_dictionary=["row", "reason"],
        column_encoding=encoding, write_statistics=False,
    )  # fmt: skip
    return data.getvalue()


def read_list(data: bytes, where: str) -> list[PartFile]:
    """Read the table of a part; raise PlanError if it is none, or of another version."""
    with require_extra("a plan", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise PlanError(f"{where} is no part list of a plan: {error}") from error
    if (found := (table.schema.metadata or {}).get(_SCHEMA_KEY, b"none").decode()) != str(SCHEMA):
        raise PlanError(
            f"{where} has schema {found}, and this version of async-maps reads {SCHEMA}: use the version that made it"
        )
    if problems := [name for name in _schema().names if not _fits(table, name)]:
        raise PlanError(f"{where} is no part list of a plan: column {problems[0]} is missing, or has other values")
    columns = [table.column(name).to_pylist() for name in PartFile._fields]
    return [PartFile(*values) for values in zip(*columns, strict=True)]


def _schema() -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field(name, pa.string() if name in _TEXTS else pa.int64()) for name in PartFile._fields]
    return pa.schema(fields, {_SCHEMA_KEY: str(SCHEMA).encode()})


def _fits(table: pa.Table, name: str) -> bool:
    return (
        table.schema.names.count(name) == 1
        and table.schema.field(name).type == _schema().field(name).type
        and (name in _NULLABLE or not table.column(name).null_count)
    )
