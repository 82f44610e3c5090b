"""Runs one part of a plan: its maps with a manifest of its own, which is committed when all of them are done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from anyio import to_thread

from async_maps.concurrency.tasks import OrderlyTask, raise_if_cancelled
from async_maps.errors import AsyncMapsError, PlanError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.temporary import unique_text
from async_maps.outcomes import Failure
from async_maps.pipeline import Pipeline
from async_maps.plans.manifests import Footer, manifest_name, read_footer, write_manifest
from async_maps.plans.parts import list_name, read_list
from async_maps.sources.formats.registry import suffix_of
from async_maps.sources.given import GivenFiles
from async_maps.sources.named import NamedFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from async_maps.plans.document import Plan
    from async_maps.plans.parts import PartFile
    from async_maps.plans.place import Place
    from async_maps.progress import Progress
    from async_maps.report import Report

_LOOK_S = 30.0
"""How often a share looks whether another one has committed a part that it is running."""


class PartDone(NamedTuple):
    """A part that is committed.

    Attributes:
        part: its number.
        is_ours: whether this process has committed it; else another one has.
        uploaded: the maps that this process has stored for it.
        failed: the failed maps in its manifest, if it is ours; else 0.
        is_unchanged: whether a retry has committed nothing, because the same maps fail for the same reasons.
        surveyed: the maps that a survey has read.
    """

    part: int
    is_ours: bool
    uploaded: int = 0
    failed: int = 0
    is_unchanged: bool = False
    surveyed: int = 0


class PartStopped(NamedTuple):
    """A part that was drained: it is not committed.

    Attributes:
        part: its number.
    """

    part: int


class PartFailed(NamedTuple):
    """A part that an engine could not run.

    Attributes:
        part: its number.
        reason: why.
    """

    part: int
    reason: str


class Parts:
    """Runs parts in an open pipeline.

    Args:
        folder: where the manifests lie until they are committed; on a local disk.

    Attributes:
        running: the report of each part that runs, so far.
    """

    def __init__(self, place: Place, plan: Plan, pipeline: Pipeline, folder: Path) -> None:
        self.place = place
        self.plan = plan
        self.pipeline = pipeline
        self.folder = folder
        self._pipelines = {pipeline}
        self.is_draining = False
        self.running: dict[int, Report] = {}

    @property
    def is_open(self) -> bool:
        """Whether parts can be run."""
        return self.pipeline.is_open

    def drain(self) -> None:
        """Finish the maps in flight, and start no further part; a part that is not read to its end is not committed."""
        self.is_draining = True
        for pipeline in self._pipelines:
            pipeline.drain()

    async def run(self, part: int) -> PartDone | PartStopped:
        """Store the maps of a part and commit it.

        Its report is in ``running`` until the caller removes it.

        Raises:
            PlanError: its list is missing, or this version cannot read it.
            StoreError: a store cannot be used: the part is not committed.
        """
        if self.is_draining:
            return PartStopped(part)
        name = manifest_name(self.plan.id, part)
        if await self.place.has(name):
            return PartDone(part, is_ours=False)
        # A scheduler does not tell a process that an earlier one was killed.
        is_first = await self.place.create(f"{self.plan.id}/started/{part:07}", unique_text().encode())
        # Another share may run the part at the same time. Without "overwrite", its overlays are no others'. The plan
        # before has stored the maps that have changed since.
        maybe_stored = not is_first or self.pipeline.settings.if_exists != "overwrite" or self.plan.since is not None
        source = await files_of_part(self.place, self.plan, part, maybe_stored=maybe_stored)
        manifest = self.folder / f"{part:07}.sqlite"
        try:
            async with self._pipeline_for(is_first=is_first) as pipeline:
                run = partial(pipeline.run, source, manifest=manifest, on_progress=partial(self.note, part))
                running = OrderlyTask(run)
                looking = OrderlyTask(partial(self._cancel_if_committed, running, name))
                try:
                    report = await running.result()
                finally:
                    await looking.cancel()
        except asyncio.CancelledError as error:
            raise_if_cancelled(error)
            tried = self.running.get(part)
            if tried is None:
                return PartDone(part, is_ours=False)
            tried.selected = tried.seen
            return PartDone(part, is_ours=False, uploaded=tried.uploaded)
        self.running[part] = report
        # A drain may find a part whose maps were all read: they have outcomes now.
        if not report._is_listed:
            return PartStopped(part)
        is_ours = await self._commit(part, manifest)
        await to_thread.run_sync(_remove, manifest)
        return PartDone(part, is_ours, report.uploaded, report.failed if is_ours else 0)

    def note(self, part: int, progress: Progress) -> None:
        """Keep the report of a part that runs."""
        self.running[part] = progress.report

    @asynccontextmanager
    async def _pipeline_for(self, *, is_first: bool) -> AsyncIterator[Pipeline]:
        """Yield the pipeline for a part: an earlier attempt may have been killed by a map, which a worker names."""
        settings = self.pipeline.settings
        if is_first or settings.worker_count:
            yield self.pipeline
            return
        careful = Pipeline(self.plan.destination, settings=settings.model_copy(update={"workers": 1}))
        async with careful:
            self._pipelines.add(careful)
            try:
                if self.is_draining:
                    careful.drain()
                yield careful
            finally:
                self._pipelines.discard(careful)

    async def _cancel_if_committed(self, running: OrderlyTask[Report], name: str) -> None:
        """Cancel a part that another share commits meanwhile: no PUT starts for a part that is committed."""
        while True:
            await asyncio.sleep(_LOOK_S)
            # If the place does not answer now, the commit will say so.
            with suppress(AsyncMapsError):
                if await self.place.has(name):
                    running.request_cancel()
                    return

    async def _commit(self, part: int, manifest: Path) -> bool:
        """Commit a part; return whether this process has."""
        writer = unique_text()
        footer, data = await to_thread.run_sync(write_manifest, manifest, Footer(self.plan.id, part, 0, writer))
        if await self.place.create(footer.name, data):
            return True
        found = await self.place.read(footer.name)
        return found is not None and read_footer(found, self.place.locator(footer.name)).writer == writer


async def files_of_part(place: Place, plan: Plan, part: int, *, maybe_stored: bool = False) -> GivenFiles:
    """Return the files of a part as a source.

    Args:
        place: where the plan lies.
        plan: the plan.
        part: the number of the part.
        maybe_stored: whether another attempt may have stored the overlays.

    Raises:
        PlanError: the list of the part is missing, or this version cannot read it.
    """
    listed = list_name(plan.id, part)
    data = await place.read(listed)
    if data is None:
        raise PlanError(f"{place.locator(listed)} is missing: the plan is damaged; make another one")
    files = await to_thread.run_sync(_read_files, data, place.locator(listed))
    return GivenFiles(files, maybe_stored, plan.source)


def _read_files(data: bytes, where: str) -> list[NamedFile | Failure]:
    return [*_named(read_list(data, where))]


def _named(files: Sequence[PartFile]) -> Iterator[NamedFile | Failure]:
    for file in files:
        if file.reason:
            yield Failure(file.name, file.path, file.fingerprint, "source", file.reason, file.path)
            continue
        # A folder of objects without a suffix is known by its listing only.
        is_folder = is_remote(file.path) and suffix_of(file.path) is None
        yield NamedFile(
            file.name, file.path, file.row, file.fingerprint if is_folder else None, file.size, file.fingerprint,
            file.first, file.end,
        )  # fmt: skip


def _remove(manifest: Path) -> None:
    for path in manifest.parent.glob(f"{manifest.name}*"):
        path.unlink()
