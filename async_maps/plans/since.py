"""Leaves out of a plan what earlier plans have done: files in the same state, with the same settings. Blocks.

What earlier plans have is compared in the SQLite file of the planner, so memory is bounded for any number of files.
"""

from __future__ import annotations

import json
import logging
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.errors import PlanError
from async_maps.keys import printable
from async_maps.manifest.destination import place_of_overlays
from async_maps.plans.ahead import read_ahead
from async_maps.plans.commits import manifests_at, plan_at, read_manifests
from async_maps.plans.manifests import FILE, SOURCE, STATUS, manifest_name
from async_maps.plans.parts import list_name, read_list
from async_maps.plans.place import DOCUMENT, PlanObjects
from async_maps.plans.ranges import range_at
from async_maps.plans.rows import merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.objects import Objects
    from async_maps.filesystems.spill import Spill
    from async_maps.plans.document import Plan
    from async_maps.plans.parts import PartFile

_logger = logging.getLogger("async_maps")

_TABLES = (
    """CREATE TABLE earlier (
        name TEXT, path TEXT, fingerprint TEXT, is_done INTEGER, age INTEGER, PRIMARY KEY (name, path)
    ) WITHOUT ROWID""",
    "CREATE INDEX files_place ON files (place)",
)
# The newest plan with a file counts; the pieces of a stack are in several parts of it.
_ADD = """INSERT INTO earlier VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET is_done = is_done AND excluded.is_done WHERE age = excluded.age"""
_DONE = """CREATE TEMP TABLE done AS SELECT files.rowid AS number FROM files JOIN earlier USING (name, path)
WHERE is_done AND files.fingerprint = earlier.fingerprint"""
# The maps of a file and of those in a folder of its name may have one key: they stay in one plan.
_KEEP = (
    "CREATE UNIQUE INDEX temp.done_number ON done (number)",
    """CREATE TEMP TABLE kept AS SELECT done.number FROM done JOIN files ON files.rowid = done.number
    WHERE EXISTS (
        SELECT 1 FROM files AS new WHERE new.place >= files.place AND new.place < CAST(files.place || x'01' AS BLOB)
        AND new.rowid NOT IN (SELECT number FROM done)
    ) UNION SELECT old.rowid FROM files AS new JOIN files AS old
    ON old.place >= CAST(new.place || x'00' AS BLOB) AND old.place < CAST(new.place || x'01' AS BLOB)
    WHERE new.rowid NOT IN (SELECT number FROM done)""",
    "DELETE FROM files WHERE rowid IN (SELECT number FROM done) AND rowid NOT IN (SELECT number FROM kept)",
)


class Shape(NamedTuple):
    """What the overlays of a plan depend on, besides the maps; plans with equal ones make equal overlays.

    Attributes:
        destination: where the overlays go.
        shaping: the settings that shape them.
        choice: the settings that choose the maps.
        encoder: the version of the encoder.
    """

    destination: str
    shaping: dict[str, Any]
    choice: dict[str, Any]
    encoder: str

    def differences(self, plan: Plan, known_range: str | None) -> list[str]:
        """Return the names of what differs in a plan, whose survey has found this range."""
        shaping = plan.shaping if known_range is None else plan.shaping | {"range": known_range}
        mine = {"destination": self.destination, "encoder": self.encoder, **self.shaping, **self.choice}
        theirs = {"destination": plan.destination, "encoder": plan.encoder, **shaping, **plan.choice}
        return sorted(name for name in mine.keys() | theirs if _plain(mine.get(name)) != _plain(theirs.get(name)))


def leave_out_done(files: Spill, since: str, shape: Shape, objects: Objects) -> int:
    """Leave out the files that a plan, or an earlier one that it names, has done.

    A file stays if one of its maps failed, or if its part is not committed.

    Args:
        files: the listed files, in the table ``files``.
        since: the address of the plan.
        shape: what the overlays of the new plan depend on.
        objects: reads the plans.

    Returns:
        The number of files that are left out.

    Raises:
        PlanError: the plan does not exist, or this version cannot read it.
        StoreError: its store cannot be used.
    """
    with files.transaction() as database:
        for statement in _TABLES:
            database.execute(statement)
    for age, (place, plan) in enumerate(_chain(since, shape, objects)):
        for part in _parts(place, plan):
            rows = [(file.name, file.path, file.fingerprint, is_done, age) for file, is_done in part]
            with files.transaction() as database:
                database.executemany(_ADD, rows)
    with files.transaction() as database:
        database.execute(_DONE)
        for statement in _KEEP:
            count = database.execute(statement).rowcount
    return count


def _chain(since: str, shape: Shape, objects: Objects) -> Iterator[tuple[PlanObjects, Plan]]:
    """Yield a plan, and those before it, as far as they have the same settings."""
    address: str | None = since
    seen = set[str]()
    while address is not None:
        place = PlanObjects(place_of_overlays(address), objects)
        if place.address in seen:
            _logger.warning(
                "%s is a later plan than it was, perhaps moved: files that only the one before has done are planned "
                "again", printable(place.address),
            )  # fmt: skip
            return
        seen.add(place.address)
        if address != since and not place.has(DOCUMENT):
            _logger.warning(
                "%s does not exist anymore: files that only this plan has done are planned again", printable(address)
            )
            return
        plan = plan_at(place)
        if differing := shape.differences(plan, range_at(place, plan)):
            _logger.warning(
                "%s was planned with another %s: what it has done is planned again",
                printable(place.address), " and another ".join(differing),
            )  # fmt: skip
            return
        yield place, plan
        address = plan.since


def _parts(place: PlanObjects, plan: Plan) -> Iterator[Iterator[tuple[PartFile, bool]]]:
    """Yield the files of each part, with whether all of their maps are done."""
    generations = manifests_at(place, plan)
    sizes = place.sizes(f"{plan.id}/parts")

    def size(part: int) -> int:
        return sizes.get(list_name(plan.id, part), 0) + sum(generations.get(part, ()))

    reading = read_ahead(range(1, plan.parts + 1), partial(_read, place, plan, generations), size)
    with closing(reading) as read:
        for part, (listed, manifests) in read:
            name = list_name(plan.id, part)
            if listed is None:
                raise PlanError(f"{place.locator(name)} is missing: the plan is damaged; plan without since")
            files = read_list(listed, place.locator(name))
            addresses = [place.locator(manifest_name(plan.id, part, number)) for number in range(len(manifests))]
            rows = merged(manifests, addresses.__getitem__) if manifests else iter(())
            failed = {str(row[FILE] or row[SOURCE]) for row in rows if row[STATUS] == "failed"}
            is_known = bool(manifests) and failed.issubset({printable(file.path) for file in files})
            yield ((file, is_known and _is_done(file, failed)) for file in files)


def _read(
    place: PlanObjects, plan: Plan, generations: dict[int, list[int]], part: int
) -> tuple[bytes | None, list[bytes]]:
    manifests = read_manifests(place, plan, part, len(generations[part])) if part in generations else []
    return place.read(list_name(plan.id, part)), manifests


def _is_done(file: PartFile, failed: set[str]) -> bool:
    return not file.reason and file.fingerprint is not None and printable(file.path) not in failed


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))
