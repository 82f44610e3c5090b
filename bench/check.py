"""Does every map of a folder have one row and one object, with the bytes of a single run?

It imports nothing of async_maps. The maps are read with NumPy, and the manifests with SQL. The objects are listed and
read from an S3 server (``AWS_*`` variables), or looked up in the log of a sink. The command ends with 1 if anything
differs.

    python -m bench.check lanes.sqlite maps s3://bench/lanes --single one.sqlite s3://bench/one
    python -m bench.check lanes.sqlite maps s3://bench/lanes --log puts.log
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_FIRST = 10
"""The number of differences that are printed."""
_LINE = re.compile(rb"/([^ ?]+)[^ ]* (\d+) ([0-9a-f]{8})")
_OF_THE_RUN = {"time", "locator"}
"""The columns that differ between two equal runs."""
_THREADS = 8


class Stored(NamedTuple):
    """An object: its size, and its CRC-32 in hexadecimal, as a manifest has it."""

    size: int
    crc32: str


class Row(NamedTuple):
    """What the manifest says of a map."""

    name: str
    status: str
    locator: str | None
    size: int | None
    crc32: str | None


def names(source: Path) -> Iterator[str]:
    """Yield the name of each map in a folder of ``.npy`` files; three dimensions are a stack of maps."""
    for path in sorted(source.rglob("*.npy")):
        name, array = path.relative_to(source).with_suffix("").as_posix(), np.load(path, mmap_mode="r")
        if array.ndim == 2:
            yield name
        else:
            yield from (f"{name}/{index:06}" for index in range(len(array)))


def rows(manifest: Path) -> Iterator[Row]:
    """Yield each row of a manifest."""
    with closing(_opened(manifest)) as database:
        yield from map(Row._make, database.execute("SELECT name, status, locator, bytes, crc32 FROM maps"))


def logged(log: Path, destination: str) -> Iterator[tuple[str, Stored]]:
    """Yield locator and content of each PUT below a destination, from the log of a sink.

    A line that is cut off was being written when the sink was killed, so its PUT was never answered.
    """
    with log.open("rb") as lines:
        for line in lines:
            if found := _LINE.fullmatch(line.rstrip()):
                locator = f"s3://{unquote(found[1].decode())}"
                if locator.startswith(f"{destination}/"):
                    yield locator, Stored(int(found[2]), found[3].decode())


def listed(destination: str) -> Iterator[tuple[str, Stored]]:
    """Yield locator and content of each object below a destination: the size as it is listed, the CRC-32 as it is read.

    Raises:
        RuntimeError: the server does not send an object that it lists.
    """
    import botocore.session
    import urllib3
    from botocore.config import Config

    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    client: Any = botocore.session.Session().create_client("s3", config=config)
    connections = urllib3.PoolManager(maxsize=_THREADS)

    def read(entry: dict[str, Any]) -> tuple[str, Stored]:
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": entry["Key"]})
        answer = connections.request("GET", url)
        if answer.status != 200:
            raise RuntimeError(f"GET {entry['Key']}: expected status 200, found {answer.status}: {answer.data[:500]!r}")
        return f"s3://{bucket}/{entry['Key']}", Stored(entry["Size"], f"{zlib.crc32(answer.data):08x}")

    with closing(client), ThreadPoolExecutor(_THREADS) as threads:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            yield from threads.map(read, page.get("Contents", []))


class Check:
    """The comparison of a source, a manifest and the objects.

    Attributes:
        maps, rows, puts: the number of each; a PUT is an object of a listing, or a line of a log.
        objects: the objects by locator.
    """

    def __init__(self) -> None:
        self.maps = self.rows = self.puts = 0
        self.objects: dict[str, Stored] = {}

    def differences(
        self, of_source: Iterable[str], of_manifest: Iterable[Row], of_store: Iterable[tuple[str, Stored]]
    ) -> Iterator[str]:
        """Yield a sentence for each difference."""
        for locator, stored in of_store:
            self.puts += 1
            before = self.objects.setdefault(locator, stored)
            if before != stored:
                yield f"{locator}: stored with {before}, then with {stored}"
                self.objects[locator] = stored
        found = dict.fromkeys(of_source, 0)
        self.maps = len(found)
        owners: dict[str, str] = {}
        for row in of_manifest:
            self.rows += 1
            if row.name not in found:
                yield f"{row.name}: it has a row, but is not in the source"
            found[row.name] = found.get(row.name, 0) + 1
            if row.status != "done" or row.locator is None:
                yield f"{row.name}: expected a row with status done and a locator, found {row}"
                continue
            stored_as = self.objects.get(row.locator)
            if stored_as != (row.size, row.crc32):
                yield f"{row.name}: its row has {(row.size, row.crc32)}, the store has {stored_as} at {row.locator}"
            owner = owners.setdefault(row.locator, row.name)
            if owner != row.name:
                yield f"{row.name}: {row.locator} is also the locator of {owner}"
        yield from (f"{name}: expected 1 row, found {count}" for name, count in found.items() if count != 1)
        yield from (f"{locator}: the object has no row" for locator in self.objects if locator not in owners)


def unlike_single(manifest: Path, destination: str, single: Path, single_destination: str) -> Iterator[str]:
    """Yield a sentence for each row that differs from that of a single run, times and prefixes apart."""
    with closing(_opened(manifest)) as database:
        database.execute("ATTACH ? AS single", (_uri(single),))
        columns = [column for _, column, *_ in database.execute("PRAGMA table_info(maps)") if column not in _OF_THE_RUN]
        for has, lacks, where in (("single", "main", "this"), ("main", "single", "the single run's")):
            query = f"SELECT name FROM {has}.maps EXCEPT SELECT name FROM {lacks}.maps"  # noqa: S608  # constants
            yield from (f"{name}: it has no row in {where} manifest" for (name,) in database.execute(query))
        ours = ", ".join([*(f"a.{column}" for column in columns), "substr(a.locator, :own)"])
        theirs = ", ".join([*(f"b.{column}" for column in columns), "substr(b.locator, :theirs)"])
        query = (  # columns of the manifest
            f"SELECT {ours}, {theirs} FROM main.maps a JOIN single.maps b ON a.name = b.name "  # noqa: S608
            f"WHERE ({ours}) IS NOT ({theirs})"
        )
        starts = {"own": len(destination) + 1, "theirs": len(single_destination) + 1}
        for values in database.execute(query, starts):
            pairs = zip([*columns, "key"], values[: len(columns) + 1], values[len(columns) + 1 :], strict=True)
            unlike = [f"{column} is {a!r}, not {b!r}" for column, a, b in pairs if a != b]
            yield f"{values[columns.index('name')]}: unlike the single run, {', '.join(unlike)}"


def _opened(manifest: Path) -> sqlite3.Connection:
    return sqlite3.connect(_uri(manifest), uri=True)


def _uri(manifest: Path) -> str:
    return f"{manifest.absolute().as_uri()}?mode=ro"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m bench.check``."""
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("manifest", type=Path, help="the manifest of the run")
    parser.add_argument("source", type=Path, help="the folder of its maps")
    parser.add_argument("destination", help="the prefix of its objects, s3://bucket/prefix")
    parser.add_argument("--log", type=Path, help="the log of the sink that has received the objects")
    parser.add_argument("--single", nargs=2, metavar=("MANIFEST", "DESTINATION"), help="those of a run without lanes")
    options = parser.parse_args(arguments)
    place = options.destination.rstrip("/")
    check, count = Check(), 0
    stored = logged(options.log, place) if options.log else listed(place)

    def differences() -> Iterator[str]:
        yield from check.differences(names(options.source), rows(options.manifest), stored)
        if options.single:
            yield from unlike_single(options.manifest, place, Path(options.single[0]), options.single[1].rstrip("/"))

    for difference in differences():
        count += 1
        if count <= _FIRST:
            print(difference)
    again = f"{check.puts - len(check.objects):,} of them stored again, " if options.log else ""
    compared = "compared with a single run, " if options.single else ""
    counts = f"{check.maps:,} maps, {check.rows:,} rows, {len(check.objects):,} objects"
    print(f"{counts}, {again}{compared}{count:,} differences")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
