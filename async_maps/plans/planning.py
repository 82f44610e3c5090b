"""Makes plans: lists the files of a source, shares them out in parts, and writes the lists of these."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from anyio import CapacityLimiter, to_thread

from async_maps.blocking import blocking
from async_maps.concurrency.fan_out import fan_out
from async_maps.concurrency.tasks import in_thread
from async_maps.errors import PlanError, SettingsError, SourceError
from async_maps.filesystems.filesystem import Filesystems
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.spill import Spill
from async_maps.manifest.destination import place_of_overlays
from async_maps.plans.document import Plan, choice_of
from async_maps.plans.parts import Digest, PartFile, list_name, write_list
from async_maps.plans.place import DOCUMENT, opened_place
from async_maps.plans.ranges import combine_sketches, given_range, known_range, needs_range
from async_maps.plans.since import Shape, leave_out_done
from async_maps.plans.states import planned
from async_maps.render.png import encoder_version
from async_maps.settings import given_or_default
from async_maps.sources import open_source, place_of
from async_maps.sources.isolation import DecoderProcess
from async_maps.sources.options import SourceOptions, shown_passed_over
from async_maps.stores import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
    from os import PathLike

    from async_maps.plans.place import Place
    from async_maps.settings import Settings

FILES_OF_A_PART = 10_000
"""By default: half a minute of maps of 512x512."""
_BYTES_OF_A_PART = 8 * 2**30
_LEVELS = range(3)
"""The levels of compression whose bytes do not depend on the CPU."""
_BATCH = 1000
_UPLOADS = 8
_TABLE = f"CREATE TABLE files (place BLOB NOT NULL, {', '.join(PartFile._fields)}, maps INTEGER NOT NULL)"
_IN_ORDER = f"SELECT {', '.join(PartFile._fields)}, maps FROM files ORDER BY place, path"  # noqa: S608  # column names of our own


async def aplan(  # noqa: PLR0913  # one argument a choice
    source: str | PathLike[str],
    destination: str | PathLike[str],
    to: str | PathLike[str],
    *,
    settings: Settings | None = None,
    part_size: int = FILES_OF_A_PART,
    since: str | PathLike[str] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Plan:
    """List a source, share its files out in parts, and write the plan.

    Files are listed, not maps: only large stacks are opened, and shared out by their maps. Nothing is colorized.

    Args:
        source: a file, a folder, a glob or a table of paths, as for :meth:`Pipeline.run`.
        destination: the folder of the overlays, or their prefix in a bucket.
        to: the folder of the plan, or its prefix in a bucket.
        settings: the defaults if None.
        part_size: the maximum number of files of a part, or of maps of a large stack. A part has at most about 8 GiB.
        since: the address of an earlier plan. Files that it has done, or a plan before it, are left out if they have
            not changed, and destination and settings are the same. If nothing is new, the plan has no parts.
        on_progress: called with the number of listed files, several times a second.

    Returns:
        The plan. If it was made already, that one: it is not changed. If its range is ``dataset``, and all of its
        parts are surveyed, this call finds the range.

    Raises:
        SettingsError: a setting does not fit to a plan, or there is a plan of another source or of other overlays.
        SourceError: the source does not exist, or has no files.
        PlanError: the plan that is there, or that of ``since``, cannot be read.
        StoreError: the store of the plan or of the overlays cannot be used.
    """
    made = await make_plan(
        source, destination, to, settings=settings, part_size=part_size, since=since, on_progress=on_progress
    )
    return made.plan


plan = blocking(aplan)
"""List a source, share it out in parts, and block until the plan is written."""


class MadePlan(NamedTuple):
    """A plan, and what it needs before it can be run.

    Attributes:
        plan: the plan.
        is_new: whether this call has made it; False if it was there.
        unsurveyed: the parts that must be surveyed, for the range of the plan.
        found_range: the range that the survey has found, as a setting; None without one.
        passed_over: the files of the source that are no maps, for messages; empty without one, or if the plan is old.
    """

    plan: Plan
    is_new: bool
    unsurveyed: Sequence[int] = ()
    found_range: str | None = None
    passed_over: str = ""


async def make_plan(  # noqa: PLR0913  # those of aplan()
    source: str | PathLike[str],
    destination: str | PathLike[str],
    to: str | PathLike[str],
    *,
    settings: Settings | None,
    part_size: int,
    since: str | PathLike[str] | None = None,
    on_progress: Callable[[int], object] | None,
) -> MadePlan:
    """Make a plan as :func:`aplan`, or find the one that is there."""
    settings = given_or_default(settings)
    _check(settings, part_size)
    place = place_of(source)
    if place is None:
        raise SourceError(f"a plan needs a source that can be listed again: a path or an address; found {source!r}")
    async with opened_place(os.fspath(to), settings) as kept, open_store(destination, settings) as store:
        shaping = settings.shaping(await given_range(settings, None, "changed"))
        shape = Shape(store.destination, shaping, dict(choice_of(settings)), encoder_version())
        if (found := await kept.read(DOCUMENT)) is not None:
            return await _found(kept, found, place, shape)
        await store.check()
        with Spill("the files of a plan", _TABLE, PlanError) as files:
            listing = _Listing(place, store.destination, settings, files, on_progress)
            await in_thread(listing.read, limiter=CapacityLimiter(1), interrupt=listing.stop)
            if not listing.count:
                raise SourceError(
                    f"{place} contains no files of maps{listing.passed_over and '; '}{listing.passed_over}"
                )
            before, left_out = await _leave_out_done(files, since, shape, settings)
            parts = partial(_parts, files, part_size)
            digest, count, number, size = await to_thread.run_sync(partial(_digest, parts, (place, *shape)))
            await _write_lists(kept, str(digest), parts)
        made = Plan(
            id=str(digest), source=place, parts=number, files=count, size=size, since=before, left_out=left_out,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"), **shape._asdict(),
        )  # fmt: skip
        if await kept.create(DOCUMENT, made.dump()):
            unsurveyed = range(1, number + 1) if needs_range(made) else ()
            return MadePlan(made, is_new=True, unsurveyed=unsurveyed, passed_over=listing.passed_over)
        # Another planner was faster.
        winner = await kept.read(DOCUMENT)
        assert winner is not None  # noqa: S101  # objects of a plan are never deleted
        return await _found(kept, winner, place, shape)


async def _found(kept: Place, document: bytes, source: str, shape: Shape) -> MadePlan:
    """Return the plan that is there; if all its parts are surveyed, find its range.

    Raises SettingsError if it is a plan of another source, or of other overlays.
    """
    plan = Plan.parse(document, kept.locator(DOCUMENT))
    given = {"source": source, "destination": shape.destination, **shape.shaping, **shape.choice}
    made = {"source": plan.source, "destination": plan.destination, **plan.shaping, **plan.choice}
    given = json.loads(json.dumps(given))  # tuples become lists, as in the plan
    if others := [f"{name} {made.get(name)!r}, not {given[name]!r}" for name in given if given[name] != made.get(name)]:
        raise SettingsError(f"{kept.address} has a plan already, with {', '.join(others)}: plan this at another place")
    if not needs_range(plan):
        return MadePlan(plan, is_new=False)
    unsurveyed = await combine_sketches(kept, plan)
    return MadePlan(plan, is_new=False, unsurveyed=unsurveyed, found_range=await known_range(kept, plan))


async def _leave_out_done(
    files: Spill, since: str | PathLike[str] | None, shape: Shape, settings: Settings
) -> tuple[str | None, int]:
    """Leave out what an earlier plan has done; return its address, and the number of these files."""
    if since is None:
        return None, 0
    with Objects(settings.s3) as objects:
        before = place_of_overlays(os.fspath(since))
        leave_out = partial(leave_out_done, files, before, shape, objects)
        return before, await in_thread(leave_out, limiter=CapacityLimiter(1), interrupt=objects.close)


def _check(settings: Settings, part_size: int) -> None:
    if part_size < 1:
        raise SettingsError(f"part_size: expected 1 or more files, found {part_size!r}")
    template = settings.key_template
    if template.needs_index or template.may_collide:
        raise SettingsError(
            f"key {str(template)!r}: overlays of different parts could get the same key; use {{name}} or {{digest}}"
        )
    if settings.png_level not in _LEVELS:
        raise SettingsError(
            f"png_level {settings.png_level}: its bytes depend on the CPU; a plan needs 0 to {_LEVELS[-1]}, so "
            "that each machine makes the same"
        )


class _Listing:
    """Lists the files of a source, in a thread.

    Attributes:
        count: the number of files so far.
    """

    def __init__(
        self,
        place: str,
        destination: str,
        settings: Settings,
        files: Spill,
        on_progress: Callable[[int], object] | None,
    ) -> None:
        self._place = place
        self._settings = settings
        self._options = SourceOptions.of(settings, destination)
        self._files = files
        self._on_progress = on_progress
        self._filesystems = Filesystems(settings.s3)
        self._decoder = DecoderProcess(settings.s3, settings.max_pixels, settings.channels)
        self._counts: dict[str, int] = {}
        self.count = 0

    @property
    def passed_over(self) -> str:
        """What was passed over, for messages."""
        return shown_passed_over(self._counts) if self._counts else ""

    def stop(self) -> None:
        """End the listing: its requests fail."""
        self._filesystems.close()
        self._decoder.stop()

    def read(self) -> None:
        """List all files."""
        with ExitStack() as stack:
            stack.enter_context(self._filesystems)
            stack.enter_context(self._decoder)
            source = open_source(
                self._place, s3=self._settings.s3, pass_over=self._pass_over, options=self._options,
                decoder=self._decoder, filesystems=self._filesystems,
            )  # fmt: skip
            files = planned(source.files(self._filesystems), self._filesystems, self._options, self._decoder)
            with closing(files):
                while batch := list(islice(files, _BATCH)):
                    with self._files.transaction() as database:
                        marks = ", ".join("?" * (len(PartFile._fields) + 2))
                        rows = [(_place(file.name), *file, maps) for file, maps in batch]
                        database.executemany(f"INSERT INTO files VALUES ({marks})", rows)  # noqa: S608  # only marks
                    self.count += len(batch)
                    if self._on_progress is not None:
                        self._on_progress(self.count)

    def _pass_over(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1


def _place(name: str) -> bytes:
    """Return what names are sorted by: a file ``a`` is followed by all in a folder ``a/``, before ``a-b``."""
    return name.replace("/", "\0").encode("utf-8", "surrogatepass")


def _parts(files: Spill, most: int) -> Iterator[list[PartFile]]:
    """Yield the files of each part; a file and a folder of the same name are in one, as their maps may have one key."""
    part: list[PartFile] = []
    maps = size = 0
    root = None
    with files.transaction() as database:
        for *values, count in database.execute(_IN_ORDER):
            file, weight = PartFile(*values), count
            is_same = root is not None and (file.name == root or file.name.startswith(f"{root}/"))
            if not is_same:
                root = file.name
            if part and not is_same and (maps + weight > most or size + file.size > _BYTES_OF_A_PART):
                yield part
                part, maps, size = [], 0, 0
            if weight > most and not is_same:
                *whole, file = _split(file, count, most)
                yield from ([piece] for piece in whole)
                weight = count - file.first
            part.append(file)
            maps, size = maps + weight, size + (file.size if file.end is None else 0)
    if part:
        yield part


def _split(file: PartFile, maps: int, most: int) -> list[PartFile]:
    """Return the pieces of a large stack."""
    count = ceil(maps / most)
    ends = [maps * (number + 1) // count for number in range(count)]
    return [file._replace(first=first, end=end) for first, end in zip([0, *ends], ends, strict=False)]


def _digest(parts: Callable[[], Iterator[list[PartFile]]], shape: Sequence[object]) -> tuple[Digest, int, int, int]:
    """Return the digest of all parts, the number of files and of parts, and the bytes of the files."""
    digest, files, size, number = Digest(*shape), 0, 0, 0
    for number, part in enumerate(parts(), 1):  # noqa: B007  # the last one is the number of parts
        digest.add(part)
        new = [file for file in part if not file.first]
        files, size = files + len(new), size + sum(file.size for file in new)
    return digest, files, number, size


async def _write_lists(place: Place, plan: str, parts: Callable[[], Iterator[list[PartFile]]]) -> None:
    async def write(numbered: tuple[int, list[PartFile]]) -> None:
        number, part = numbered
        await place.create(list_name(plan, number), await to_thread.run_sync(write_list, part))

    await fan_out(_numbered(parts), [write] * _UPLOADS, size=lambda _: 0, limit=1)


async def _numbered(
    parts: Callable[[], Iterator[list[PartFile]]],
) -> AsyncGenerator[tuple[int, list[PartFile]], None]:
    numbered = enumerate(parts(), 1)
    while (found := await to_thread.run_sync(next, numbered, None)) is not None:
        yield found
