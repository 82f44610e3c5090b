"""Runs a share of the parts of a plan: each with a manifest of its own, which is committed when all maps are done."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import create_task_group, to_thread

from async_maps.blocking import blocking
from async_maps.concurrency.tasks import OrderlyTask, first_error, raise_if_cancelled
from async_maps.errors import PlanError
from async_maps.filesystems.filesystem import is_remote
from async_maps.filesystems.temporary import unique_text
from async_maps.outcomes import Failure
from async_maps.pipeline import Pipeline
from async_maps.plans.commits import committed_parts, read_plan
from async_maps.plans.manifests import Footer, manifest_name, read_footer, write_manifest
from async_maps.plans.parts import list_name, read_list
from async_maps.plans.place import opened_place
from async_maps.plans.schedulers import share_of
from async_maps.settings import given_or_default
from async_maps.sources.formats.registry import suffix_of
from async_maps.sources.given import GivenFiles
from async_maps.sources.named import NamedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from async_maps.plans.document import Plan
    from async_maps.plans.parts import PartFile
    from async_maps.plans.place import Place
    from async_maps.report import Report
    from async_maps.settings import Settings

_IN_FLIGHT = 2
"""Parts at a time: while the last maps of one are stored, the next one is read."""
_LOOK_S = 30.0
"""How often the share looks whether another one has committed a part that it is running."""

_logger = logging.getLogger("async_maps")


@dataclass(slots=True)
class ShareReport:
    """What a share has done.

    Attributes:
        plan: the address of the plan.
        part: which share of how many, from 1.
        committed: the parts that it has committed.
        done_by_others: the parts of its own that others had committed.
        uploaded: the maps that it has stored.
        failed: the failed maps in the parts that it has committed.
    """

    plan: str
    part: tuple[int, int]
    committed: list[int] = field(default_factory=list)
    done_by_others: list[int] = field(default_factory=list)
    uploaded: int = 0
    failed: int = 0


async def arun_share(
    plan: str | PathLike[str],
    part: tuple[int, int] = (1, 1),
    *,
    settings: Settings | None = None,
    on_progress: Callable[[ShareReport], object] | None = None,
) -> ShareReport:
    """Run a share of the parts of a plan, then those that no share has committed yet.

    Args:
        plan: the address of the plan.
        part: which share of how many, from 1: ``(3, 8)``.
        settings: how to run; what shapes the overlays comes from the plan.
        on_progress: called with the report after each part.

    Returns:
        The report. A part with failed maps is committed, too: ``commit`` tells of them.

    Raises:
        PlanError: there is no plan, or this version cannot run it.
        SettingsError: the share does not exist.
        StoreError: a store cannot be used. Run the share again for the rest.
    """
    part = share_of(f"{part[0]}/{part[1]}")
    own = given_or_default(settings)
    async with opened_place(os.fspath(plan), own) as place:
        found = await read_plan(place)
        share = _Share(place, found, ShareReport(place.address, part), on_progress)
        async with Pipeline(found.destination, settings=found.settings(own)) as pipeline:
            with tempfile.TemporaryDirectory(prefix="async-maps-share-") as folder:
                await share.run(pipeline, Path(folder))
        return share.report


run_share = blocking(arun_share)
"""Run a share of the parts of a plan, and block until all parts are committed."""


class _Share:
    def __init__(
        self, place: Place, plan: Plan, report: ShareReport, on_progress: Callable[[ShareReport], object] | None
    ) -> None:
        self.report = report
        self._place = place
        self._plan = plan
        self._on_progress = on_progress
        self._committed: set[int] = set()

    async def run(self, pipeline: Pipeline, folder: Path) -> None:
        """Run the parts of the share, and then those of others."""
        self._committed = {*await committed_parts(self._place, self._plan)}
        index, count = self.report.part
        # In a random order, the same for all: neighbors in the order of keys would meet one partition of S3.
        order = random.Random(self._plan.id).sample(range(1, self._plan.parts + 1), self._plan.parts)  # noqa: S311
        await self._run_all(pipeline, folder, order[index - 1 :: count])
        self._committed |= {*await committed_parts(self._place, self._plan)}
        left = [part for part in order if part not in self._committed]
        await self._run_all(pipeline, folder, random.sample(left, len(left)), of_others=True)

    async def _run_all(
        self, pipeline: Pipeline, folder: Path, parts: Sequence[int], *, of_others: bool = False
    ) -> None:
        waiting = iter(parts)

        async def run_next() -> None:
            for part in waiting:
                await self._run_part(pipeline, folder, part, of_others=of_others)

        try:
            async with create_task_group() as running:
                for _ in range(_IN_FLIGHT):
                    running.start_soon(run_next)
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def _run_part(self, pipeline: Pipeline, folder: Path, part: int, *, of_others: bool) -> None:
        report, name = self.report, manifest_name(self._plan.id, part)
        if part in self._committed or (of_others and await self._place.has(name)):
            if not of_others:
                report.done_by_others.append(part)
            return
        # A scheduler does not tell a process that an earlier one was killed.
        is_first = await self._place.create(f"{self._plan.id}/started/{part:07}", unique_text().encode())
        listed = list_name(self._plan.id, part)
        data = await self._place.read(listed)
        if data is None:
            raise PlanError(f"{self._place.locator(listed)} is missing: the plan is damaged; make another one")
        files = await to_thread.run_sync(read_list, data, self._place.locator(listed))
        source = GivenFiles([*_named(files)], maybe_stored=not is_first)
        manifest = folder / f"{part:07}.sqlite"
        running = OrderlyTask(partial(pipeline.run, source, manifest=manifest))
        looking = OrderlyTask(partial(self._cancel_if_committed, running, name))
        try:
            done = await running.result()
        except asyncio.CancelledError as error:
            raise_if_cancelled(error)
            report.done_by_others.append(part)
        else:
            await self._commit(part, manifest, done.uploaded)
        finally:
            await looking.cancel()

    async def _cancel_if_committed(self, running: OrderlyTask[Report], name: str) -> None:
        """Cancel a part that another share commits meanwhile: no PUT starts for a part that is committed."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if await self._place.has(name):
                running.request_cancel()
                return

    async def _commit(self, part: int, manifest: Path, uploaded: int) -> None:
        writer = unique_text()
        footer, data = await to_thread.run_sync(write_manifest, manifest, Footer(self._plan.id, part, 0, writer))
        is_ours = await self._place.create(footer.name, data)
        if not is_ours:
            found = await self._place.read(footer.name)
            is_ours = found is not None and read_footer(found, self._place.locator(footer.name)).writer == writer
        self._committed.add(part)
        self.report.uploaded += uploaded
        if is_ours:
            self.report.committed.append(part)
            self.report.failed += footer.failures
        else:
            self.report.done_by_others.append(part)
        if self._on_progress is not None:
            self._on_progress(self.report)
        await to_thread.run_sync(partial(_remove, manifest))


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
