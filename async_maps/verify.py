"""Is every locator really there, whole, and what was sent? By listing, and where that is asked for by reading all.

On the event loop; what blocks goes to threads. Memory is bounded, whatever the number of objects: both lists are
compared on disk.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import CapacityLimiter, create_memory_object_stream, create_task_group, to_thread
from isal import isal_zlib

from async_maps.comparison import Comparison, Difference, Expected, Kind
from async_maps.errors import ManifestError, SettingsError, SourceError
from async_maps.locators import file_path, s3_place
from async_maps.manifest import Manifest
from async_maps.names import printable
from async_maps.objects import Objects
from async_maps.results import is_results, locators_in
from async_maps.settings import Settings
from async_maps.sources.files import explain
from async_maps.streams import ByteBudget
from async_maps.tasks import OrderlyTask, first_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence
    from os import PathLike

    from anyio.streams.memory import MemoryObjectReceiveStream

    from async_maps.objects import Content
    from async_maps.streams import Loan

MAX_LISTED = 1000
"""So many differences are listed in a verification."""

_AT_ONCE = 1000
_LOOK_AT_ONCE = 50
_MD5 = re.compile("[0-9a-f]{32}")
_AT_ENDPOINT = re.compile(r" at https?://\S+$")
_BESIDE = re.compile(r"\.(sqlite(-wal|-shm|-journal|-lock)?|csv|parquet|jsonl?|toml)$", re.IGNORECASE)
"""What is kept beside overlays, a manifest or a report: nothing foreign."""


@dataclass(slots=True)
class Verification:
    """What was found.

    Attributes:
        place: the manifest or the table.
        folders: what was listed.
        locators: how many objects should be there.
        right: how many of them are, and are as they should be.
        listed: objects that a listing has told of.
        read: objects that were read, with ``deep``.
        read_bytes: their bytes.
        failed: maps that have no overlay, as they failed.
        differences: how many there are of each kind (:data:`~async_maps.comparison.Kind`).
        repaired: overlays that were made again.
        deleted: foreign objects that were deleted.
        elapsed_s: seconds it took.
        doing: what it is doing at this moment; empty at the end.
        advice: what is to be done about differences that a repair has left.
        first: the first differences.
    """

    place: str = ""
    folders: list[str] = field(default_factory=list)
    locators: int = 0
    right: int = 0
    listed: int = 0
    read: int = 0
    read_bytes: int = 0
    failed: int = 0
    differences: dict[Kind, int] = field(default_factory=dict)
    repaired: int = 0
    deleted: int = 0
    elapsed_s: float = 0.0
    doing: str = ""
    advice: list[str] = field(default_factory=list)
    first: list[Difference] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def line(self) -> str:
        """How far it has come, as a line of text."""
        return (
            f"{self.doing}: {self.locators:,} locators, {self.listed:,} objects listed, "
            f"{self.read:,} read ({self.read_bytes / 1e6:,.1f} MB), {sum(self.differences.values()):,} differences"
        )

    def summary(self) -> str:
        """The verification in a few lines, for people."""
        how = f"{self.read:,} objects read ({self.read_bytes / 1e6:,.1f} MB)" if self.read else "by listing"
        lines = [
            f"{self.right:,} of {self.locators:,} locators are right, {how}",
            f"{self.elapsed_s:.1f} s, {self.listed:,} objects listed in {', '.join(self.folders) or 'no folder'}",
        ]
        if self.repaired or self.deleted:
            lines.append(f"{self.repaired:,} made again, {self.deleted:,} foreign ones deleted")
        if self.differences:
            lines.append("different: " + ", ".join(f"{count:,} {kind}" for kind, count in self.differences.items()))
        if self.failed:
            lines.append(f"{self.failed:,} maps failed in their run, and have no locator")
        return "\n".join([*lines, *self.advice])

    def as_dict(self) -> dict[str, Any]:
        """The verification for machines: every attribute, plain values only."""
        return asdict(self) | {"first": [difference._asdict() for difference in self.first]}


async def verify_locators(
    place: str | PathLike[str],
    *,
    settings: Settings | None = None,
    deep: bool = False,
    verification: Verification | None = None,
) -> Verification:
    """Say whether every locator of a manifest or a table leads to what was sent.

    What is listed is compared by size and ETag. A manifest that a run is writing may be verified; what that run writes
    meanwhile is not judged.

    Args:
        place: a manifest; or a table of results (``.csv``, ``.jsonl``, ``.parquet``), ours or Kolena's, a part of what
            lies there perhaps: so nothing is foreign to it.
        settings: how patient S3's client is, and how much is read at once (``concurrency``, ``queue_bytes``).
        deep: also read every object, and compare its digest, its type and its size in pixels.
        verification: filled while it goes on, to be watched; a new one if None.

    Raises:
        ManifestError: the manifest cannot be read.
        SourceError: the table cannot be read.
        SettingsError: it holds no locator, or a manifest's lie in memory or at another endpoint than is set.
        StoreError: what lies there cannot be listed.
    """
    verification = verification or Verification()
    settings = settings or Settings()

    async def main() -> None:
        with Comparison() as comparison, Objects(settings.s3) as objects:
            check = Check(comparison, objects, settings, verification)
            if is_results(str(place)):
                await check.table(str(place))
            else:
                await check.manifest(place)
            if deep:
                await check.read_all()
            await check.finish()

    await OrderlyTask(main).result()
    return verification


class Check:
    """One look at all that should be there.

    Args:
        comparison: empty.
        objects: open.
        settings: how much is done at once.
        verification: filled.
    """

    def __init__(
        self, comparison: Comparison, objects: Objects, settings: Settings, verification: Verification
    ) -> None:
        self._comparison = comparison
        self._objects = objects
        self._settings = settings
        self._verification = verification
        self._began_at = monotonic() - verification.elapsed_s

    async def manifest(self, path: str | PathLike[str]) -> None:
        """Compare what a manifest knows with what lies at its destination, by listing that."""
        verification = self._verification
        verification.place, verification.doing = str(path), "reading the manifest"
        identity, verification.failed = await to_thread.run_sync(_destination, path)
        folder = f"{destination_of(identity)}/"
        if folder.startswith("memory:"):
            raise SettingsError(f"the overlays of {path} were in the memory of a process: nothing is left to verify")
        await self._refuse_other_endpoint(path, identity)
        await self._expect(_rows_of(path))
        verification.folders = [folder]
        await self._list(folder)
        await self._look_for(lambda locator: locator.startswith("file://") or not locator.startswith(folder))
        await self._compare()
        await self._name_foreign(path)

    async def table(self, path: str) -> None:
        """Compare what a table knows with what lies at its locators, by listing the folders that they share."""
        verification = self._verification
        verification.place, verification.doing = path, "reading the table"
        await self._expect(locators_in(path, self._settings.s3))
        if not verification.locators:
            raise SettingsError(
                f'{path} holds no locator; expected a column locator, or cells as Kolena\'s: {{"locator": ...}}'
            )
        unlisted = []
        for folder, count in await to_thread.run_sync(self._comparison.folders):
            # Of a few among millions of others, each is asked for by itself.
            if folder.startswith("s3://") and await self._list(folder, requests=count):
                verification.folders.append(folder)
            else:
                unlisted.append(folder)
        await self._look_for(lambda locator: locator.startswith(tuple(unlisted)))
        await self._compare()

    async def read_all(self, since: str = "") -> None:
        """Read what differs in nothing so far and was stored then or later, and note how it differs after all."""
        self._verification.doing = "reading every object"
        budget = ByteBudget(self._settings.queue_bytes)
        # Who waits for the store takes no core; who decodes does.
        threads = (
            CapacityLimiter(self._settings.concurrency),
            CapacityLimiter(self._settings.encode_thread_count),
        )
        sending, receiving = create_memory_object_stream[_Reading](0)
        try:
            async with create_task_group() as tasks, sending, aclosing(self._to_read(since)) as rows:
                for _ in range(self._settings.concurrency):
                    tasks.start_soon(self._read_some, receiving.clone(), threads)
                receiving.close()
                async for row in rows:
                    await sending.send(_Reading(row, await budget.acquire(min(row.size or 0, budget.limit))))
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def finish(self) -> None:
        """Count what was found."""
        await to_thread.run_sync(self._count)
        self._verification.doing = ""
        self._verification.elapsed_s = monotonic() - self._began_at

    async def _expect(self, rows: Generator[Expected, None, None]) -> None:
        def take() -> tuple[int, bool]:
            batch = list(islice(rows, _AT_ONCE))
            strange = [row for row in batch if not (s3_place(row.locator) or file_path(row.locator))]
            self._comparison.note(
                Difference("unknown", row.locator, row.name, "s3://bucket/key or file:///path", "another locator")
                for row in strange
            )
            known = set(batch).difference(strange) if strange else batch
            return self._comparison.expect(known) + len(strange), bool(batch)

        with closing(rows):
            more = True
            while more:
                count, more = await to_thread.run_sync(take)
                self._verification.locators += count

    async def _list(self, folder: str, requests: int | None = None) -> bool:
        """List a folder; whether that came to its end within so many requests."""
        self._verification.doing = f"listing {folder}"
        listing = self._objects.below(folder)

        def take() -> int:
            batch = list(islice(listing, _AT_ONCE))
            self._comparison.find(batch)
            return len(batch)

        with closing(listing):
            while count := await to_thread.run_sync(take):
                self._verification.listed += count
                if requests is not None:
                    requests -= 1
                    if requests < 0:
                        return False
        return True

    async def _look_for(self, wanted: Callable[[str], bool]) -> None:
        """Ask for each of those by itself that no listing has told of, if it is wanted."""
        self._verification.doing = "looking for what was not listed"

        def look(locators: Sequence[str]) -> None:
            found = (self._objects.find(locator) for locator in locators)
            self._comparison.find([object_ for object_ in found if object_ is not None])

        after = ""
        while locators := await to_thread.run_sync(self._comparison.unseen, after):
            after = locators[-1]
            asked = [locator for locator in locators if wanted(locator)]
            for start in range(0, len(asked), _LOOK_AT_ONCE):
                await to_thread.run_sync(look, asked[start : start + _LOOK_AT_ONCE])

    async def _compare(self) -> None:
        self._verification.doing = "comparing"
        await to_thread.run_sync(self._comparison.compare)
        await to_thread.run_sync(self._count)

    async def _name_foreign(self, manifest: str | PathLike[str]) -> None:
        def note() -> str:
            found = self._comparison.foreign(after)
            self._comparison.note(
                Difference("foreign", locator, "", "no object", f"{size:,} bytes")
                for locator, size in found
                if not _BESIDE.search(locator)
            )
            return found[-1][0] if found else ""

        def forget() -> None:
            with Manifest(manifest, read_only=True) as opened:
                self._comparison.forget_changed((row["locator"], row["name"], row["time"]) for row in opened.located())

        after = ""
        if self._verification.differences or self._comparison.foreign(after):
            # A run may have written rows, and objects, since these were read.
            await to_thread.run_sync(forget)
        while after := await to_thread.run_sync(note):
            pass

    async def _refuse_other_endpoint(self, path: str | PathLike[str], identity: str) -> None:
        here = await to_thread.run_sync(self._objects.identity, destination_of(identity))
        if here != identity:
            raise SettingsError(
                f"{path} is the manifest of {identity}, and the environment leads to {here}: set AWS_ENDPOINT_URL as "
                "it was for the run"
            )

    async def _to_read(self, since: str) -> AsyncGenerator[Expected, None]:
        after = ""
        while rows := await to_thread.run_sync(self._comparison.to_read, after, since):
            for row in rows:
                yield row
            after = rows[-1].locator

    async def _read_some(
        self, readings: MemoryObjectReceiveStream[_Reading], threads: tuple[CapacityLimiter, CapacityLimiter]
    ) -> None:
        """One of the readers that work side by side."""
        async with readings:
            async for row, loan in readings:
                try:
                    content = await to_thread.run_sync(self._read, row, limiter=threads[0])
                    if isinstance(content, Difference):
                        differences = [content]
                    else:
                        self._verification.read += 1
                        self._verification.read_bytes += len(content.data)
                        differences = await to_thread.run_sync(
                            _examine, row, content, self._settings.max_pixels, limiter=threads[1]
                        )
                finally:
                    loan.release()
                # While it waits for the next one, it must not keep bytes that nobody counts any more.
                del content
                if differences:
                    await to_thread.run_sync(self._comparison.note, differences)

    def _read(self, row: Expected) -> Content | Difference:
        what = "an overlay" if row.size is None else f"{row.size:,} bytes"
        try:
            return self._objects.read(row.locator)
        except FileNotFoundError:
            return Difference("missing", row.locator, row.name, what, "nothing any more")
        except (SourceError, OSError) as error:
            return Difference("unreadable", row.locator, row.name, what, explain(error))

    def _count(self) -> None:
        self._verification.differences = self._comparison.counts()
        self._verification.right = self._comparison.right()
        self._verification.first = list(islice(self._comparison.differences(), MAX_LISTED))


class _Reading(NamedTuple):
    row: Expected
    loan: Loan


def destination_of(identity: str) -> str:
    """Where a store is, without the endpoint that its identity names."""
    return _AT_ENDPOINT.sub("", identity)


def _destination(path: str | PathLike[str]) -> tuple[str, int]:
    """The identity of the store that a manifest is bound to, and how many of its maps failed in their run."""
    with Manifest(path, read_only=True) as opened:
        identity = opened.destination()
        failed = opened.counts().get("failed", 0) - sum(opened.broken().values())
    if identity is None:
        raise ManifestError(f"{path} is the manifest of no run: there is nothing to verify")
    return identity, failed


def _rows_of(path: str | PathLike[str]) -> Generator[Expected, None, None]:
    with Manifest(path, read_only=True) as opened:
        for row in opened.located():
            yield Expected(
                locator=row["locator"],
                name=row["name"],
                size=row["bytes"],
                etag=row["etag"],
                crc32=row["crc32"],
                width=row["width"],
                height=row["height"],
                written_at=row["time"],
                broken=row["error"],
            )


def _examine(row: Expected, content: Content, max_pixels: int) -> list[Difference]:
    """How an object that was read differs from what it should be. Runs in a thread."""
    wrong: list[tuple[Kind, str, str]] = []
    data = content.data
    if content.content_type not in {None, "image/png"}:
        wrong.append(("content-type", "image/png", content.content_type or "none"))
    if problem := _problem(data, row, max_pixels):
        shape = f" of {row.width:,} x {row.height:,}" if row.width and row.height else ""
        wrong.append(("undecodable", f"a PNG{shape}", problem))
    if row.size is not None and row.size != len(data):
        wrong.append(("size", f"{row.size:,} bytes", f"{len(data):,} bytes"))
    if row.crc32 is not None:
        crc32 = f"{isal_zlib.crc32(data):08x}"
        if crc32 != row.crc32:
            wrong.append(("digest", f"CRC32 {row.crc32}", f"CRC32 {crc32}"))
    elif content.etag_is_md5 and _MD5.fullmatch(row.etag or ""):
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != row.etag:
            wrong.append(("digest", f"MD5 {row.etag}", f"MD5 {md5}"))
    return [Difference(kind, row.locator, row.name, expected, found) for kind, expected, found in wrong]


def _problem(data: bytes | bytearray, row: Expected, max_pixels: int) -> str:
    """Why an object is not the PNG that it should be; empty if it is."""
    from PIL import PngImagePlugin

    try:
        # Not Image.open, whose own bound on pixels is below ours.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            width, height = image.size
            if row.width not in {None, width} or row.height not in {None, height}:
                return f"{width:,} x {height:,}"
            if width * height > max_pixels:
                return f"{width:,} x {height:,}, more than max_pixels = {max_pixels:,}"
            image.load()
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            # Checksums, which are not looked at while it is decoded.
            image.verify()
    except Exception as error:  # noqa: BLE001  # whatever a damaged file provokes
        return f"{len(data):,} bytes that do not decode ({printable(str(error))})"
    return ""
