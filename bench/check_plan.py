"""Does a plan hold every map of a folder once, each with a row in the manifest of its part, and one commit of them all?

It imports nothing of async_maps. The lists and the manifests of the parts are Parquet tables in a folder or an S3
bucket. Their rows are compared with the maps, the objects and a single run by ``bench.check``, which has the other
arguments. The command ends with 1 if anything differs.

    python -m bench.check_plan s3://bench/plan maps s3://bench/parts --single one.sqlite s3://bench/one
    python -m bench.check_plan plan maps s3://bench/parts --log puts.log
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from bench import check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FIRST = 10
"""The number of differences that are printed."""
_BATCH = 10_000


class Place(Protocol):
    """The objects of a plan."""

    def names(self) -> list[str]:
        """Return the names of all objects below the address."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()]

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()


class _Bucket:
    def __init__(self, address: str, variables: Mapping[str, str]) -> None:
        self._bucket, _, self._prefix = address.removeprefix("s3://").partition("/")
        self._variables = variables

    @cached_property
    def _client(self) -> Any:
        import botocore.session
        from botocore.config import Config

        config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
        return botocore.session.Session().create_client(
            "s3", self._variables["AWS_REGION"], endpoint_url=self._variables["AWS_ENDPOINT_URL"], config=config,
            aws_access_key_id=self._variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self._variables["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        entries = (entry for page in pages for entry in page.get("Contents", []))
        return [entry["Key"].removeprefix(f"{self._prefix}/") for entry in entries]

    def read(self, name: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
        data: bytes = answer["Body"].read()
        return data


def opened(address: str, variables: Mapping[str, str] = os.environ) -> Place:
    """Return the objects of a plan in a folder, or below ``s3://bucket/prefix``; variables lead to the server."""
    return _Bucket(address.rstrip("/"), variables) if address.startswith("s3://") else _Folder(Path(address))


class Parts:
    """The parts of a plan.

    Attributes:
        maps: the part of each map that the lists have.
        id: the id of the plan.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        document = json.loads(place.read("plan.json"))
        self.id: str = document["id"]
        self._parts = range(1, document["parts"] + 1)
        self._names = sorted(name for name in place.names() if name.startswith(f"{self.id}/"))
        self.maps: dict[str, int] = {}
        self._without_row: set[str] = set()

    def __len__(self) -> int:
        return len(self._parts)

    def differences(self, manifest: Path) -> Iterator[str]:
        """Write the rows of all parts into a new manifest, and yield a sentence for each difference."""
        yield from self._unlike("parts", [f"{part:07}.parquet" for part in self._parts])
        yield from self._unlike("done", [f"{part:07}.0.parquet" for part in self._parts])
        yield from self._unlike("commits", ["_SUCCESS-1"])
        for part, name in self._tables("parts"):
            for planned in _maps(self._place.read(name)):
                if planned in self.maps:
                    yield f"{planned}: it is in the lists of parts {self.maps[planned]} and {part}"
                self.maps[planned] = part
        self._without_row = set(self.maps)
        digests = []
        with closing(sqlite3.connect(manifest)) as database, database:
            for part, name in self._tables("done"):
                table = pq.ParquetFile(io.BytesIO(self._place.read(name)))
                footer = json.loads(table.metadata.metadata[b"async-maps-part"])
                digests.append([part, 0, footer["digest"]])
                yield from self._rows(part, table, footer, database)
        yield from (f"{planned}: it has no row in part {self.maps[planned]}" for planned in sorted(self._without_row))
        if f"{self.id}/commits/_SUCCESS-1" in self._names:
            committed = json.loads(self._place.read(f"{self.id}/commits/_SUCCESS-1"))["parts"]
            if committed != digests:
                yield f"the commit names other manifests than those that are there: {committed} instead of {digests}"

    def _unlike(self, folder: str, expected: list[str]) -> Iterator[str]:
        start = f"{self.id}/{folder}/"
        found = Counter(name.removeprefix(start) for name in self._names if name.startswith(start))
        found.subtract(expected)
        for name, more in found.items():
            if more:
                yield f"{start}{name}: {'it does not belong to the plan' if more > 0 else 'it is missing'}"

    def _tables(self, folder: str) -> Iterator[tuple[int, str]]:
        start = f"{self.id}/{folder}/"
        for name in self._names:
            if name.startswith(start):
                yield int(name.removeprefix(start).partition(".")[0]), name

    def _rows(
        self, part: int, table: pq.ParquetFile, footer: dict[str, Any], database: sqlite3.Connection
    ) -> Iterator[str]:
        columns = table.schema_arrow.names
        database.execute(f"CREATE TABLE IF NOT EXISTS maps ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        count, failures, locators = 0, 0, []
        for batch in table.iter_batches(_BATCH):
            rows = [*zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            database.executemany(f"INSERT INTO maps VALUES ({marks})", rows)  # noqa: S608  # only marks
            for row in rows:
                values = dict(zip(columns, row, strict=True))
                count, failures = count + 1, failures + (values["status"] == "failed")
                if values["locator"] is not None:
                    locators.append(values["locator"].encode())
                self._without_row.discard(values["name"])
                if (planned := self.maps.get(values["name"])) != part:
                    yield f"{values['name']}: its row is in part {part}, and the lists have it in part {planned}"
        counted = [part, count, failures, *((min(locators).decode(), max(locators).decode()) if locators else ("", ""))]
        told = [footer[name] for name in ("part", "rows", "failures", "first", "last")]
        if counted != told:
            yield f"the footer of part {part} says {told}, its rows say {counted}"


def _maps(table: bytes) -> Iterator[str]:
    """Yield the name of each map of a part list; three dimensions are a stack of maps."""
    for file in pq.read_table(io.BytesIO(table)).to_pylist():
        array = np.load(file["path"], mmap_mode="r")
        if array.ndim == 2:
            yield file["name"]
        else:
            end = len(array) if file["end"] is None else file["end"]
            yield from (f"{file['name']}/{index:06}" for index in range(file["first"], end))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m bench.check_plan``."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0].startswith("-"):
        sys.exit(__doc__)
    address, *others = given
    with tempfile.TemporaryDirectory(prefix="async-maps-check-") as folder:
        manifest, count = Path(folder) / "plan.sqlite", 0
        parts = Parts(opened(address))
        for difference in parts.differences(manifest):
            count += 1
            if count <= _FIRST:
                print(difference)
        print(f"plan {parts.id}: {len(parts.maps):,} maps in {len(parts)} parts, {count:,} differences")
        try:
            check.main([str(manifest), *others])
        except SystemExit as ended:
            sys.exit(bool(ended.code) or count > 0)


if __name__ == "__main__":
    main()
