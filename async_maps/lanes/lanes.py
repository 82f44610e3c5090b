"""All lanes: which of them gets a map, and what becomes of the maps of one that dies. Runs on the event loop.

The stages of the parent process itself run the maps that lie in its memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from anyio import BrokenResourceError, ClosedResourceError, create_task_group

from async_maps.filesystems.addresses import is_remote
from async_maps.lanes.answers import Answers
from async_maps.lanes.lane import Lane, LaneDiedError
from async_maps.lanes.quarantine import START_ATTEMPTS, Quarantine, cannot_start, wait_s
from async_maps.lanes.totals import add_paces, add_stages
from async_maps.stages.graph import WINDOW, Stages
from async_maps.stages.items import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_maps.errors import AsyncMapsError
    from async_maps.lanes.totals import State
    from async_maps.outcomes import Outcome
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.stages.meters import LaneStatistics, StageStatistics
    from async_maps.stages.rate_limiter import Pace
    from async_maps.stages.reservation import Reservation
    from async_maps.stores import AddressedStore, Destination
    from async_maps.workers.arena import Arena
    from async_maps.workers.pool import Worker
    from async_maps.workers.worker import Recipe

_WINDOW_OF_A_LANE = 1024
_TURN_BYTES = 2**20
"""The load that a lane gets before another one has its turn."""

_logger = logging.getLogger("async_maps")


def lane_count(settings: Settings, destination: Destination) -> int:
    """Return the number of lanes for a destination: 1, which is this process, if only this process can reach it."""
    is_shared = isinstance(destination, str | os.PathLike) and not os.fspath(destination).startswith("memory://")
    return settings.lane_count if is_shared else 1


class Lanes(Stages):
    """The stages of this process, and lanes for maps in files, which start with the first of them.

    Attributes:
        answers: what the lanes ask.
    """

    reads_here = False

    def __init__(
        self, settings: Settings, store: AddressedStore, arena: Arena, recipe: Recipe, workers: Sequence[Worker]
    ) -> None:
        super().__init__(settings, store, arena, recipe, workers)
        count = settings.lane_count
        self.answers = Answers(settings, self)
        self._lanes = [Lane(self.answers, lambda _: self._make_room(), _WINDOW_OF_A_LANE) for _ in range(count)]
        self.window = max(WINDOW, _WINDOW_OF_A_LANE * count)
        self._quarantine = Quarantine(self.answers, self.answers.release)
        self.answers.suspects = self._quarantine.suspects
        self._alone = self._quarantine.lane
        self._all = self.answers.lanes = (*self._lanes, self._alone)
        self._current = _Turn(self._lanes[0])
        self._is_closed = self._is_over = False
        self._wanted, self._room = asyncio.Event(), asyncio.Event()
        self._running = self._failed_starts = self._seen = 0

    # Running --------------------------------------------------------------------------------------------------------

    async def run(self, running: asyncio.Event) -> None:
        """Run the stages and the lanes until :meth:`close` was called and the last job is done."""
        async with create_task_group() as tasks:
            tasks.start_soon(super().run, running)
            tasks.start_soon(self._run_lanes)

    async def _run_lanes(self) -> None:
        await self._wanted.wait()
        if self._is_closed and not any(lane.maps for lane in self._lanes):
            return
        self._running = len(self._lanes)
        async with self.answers.given(), create_task_group() as running:
            for lane in self._lanes:
                running.start_soon(self._keep, lane)
            running.start_soon(self._quarantine.run)

    async def _keep(self, lane: Lane) -> None:
        """Run a lane, and start it again when it dies; the maps that it had become suspects."""
        attempts = 0
        while True:
            try:
                await lane.run()
                break
            except LaneDiedError as error:
                jobs = lane.take_sent()
                # A process that had maps was started.
                attempts = 1 if jobs else attempts + 1
                self._count_failed_start(error, was_started=bool(jobs))
                self._quarantine.add(jobs)
                self._pass_on(lane)
                self._make_room()
                _logger.debug("%s; it is started again, and %d maps are tried one by one", error, len(jobs))
            finally:
                self.answers.release(lane)
            if self._is_closed and not lane.maps:
                break
            await asyncio.sleep(wait_s(attempts))
        self._running -= 1
        if not self._running:
            self._quarantine.close()

    def _count_failed_start(self, error: LaneDiedError, *, was_started: bool) -> None:
        """Raise WorkerError after many failed starts without an outcome; one lane may fail as long as others work."""
        self._failed_starts = 0 if was_started or self._settled > self._seen else self._failed_starts + 1
        self._seen = self._settled
        if self._failed_starts == START_ATTEMPTS * len(self._lanes):
            raise cannot_start(error, self._failed_starts) from error

    def _pass_on(self, lane: Lane) -> None:
        """Give the maps that a dead lane has not got to the lanes that run, if any does."""
        running = [other for other in self._lanes if other.is_ready]
        for job in lane.take_unsent() if running else []:
            min(running, key=_load).add(job)

    # Maps -----------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        map_: ActivationMap,
        settle: Callable[[Outcome | AsyncMapsError], None],
        value_range: ValueRange,
        reservation: Reservation | None = None,
    ) -> None:
        """Wait for room in a lane and pass the map to it; a map in memory stays in this process."""
        if self.answers.holds:
            await self.answers.until_released(map_)
        if map_.path is None or map_.array is not None:
            return await self._submit_here(map_, settle, value_range, reservation)
        self._wanted.set()
        while True:
            if self._is_closed:
                raise ClosedResourceError
            if self._is_over:
                raise BrokenResourceError
            if (lane := self._lane_for(map_)) is not None:
                break
            await self._room.wait()
        return lane.add(Job(map_, settle, value_range))

    async def _submit_here(
        self,
        map_: ActivationMap,
        settle: Callable[[Outcome | AsyncMapsError], None],
        value_range: ValueRange,
        reservation: Reservation | None,
    ) -> None:
        def settle_here(outcome: Outcome | AsyncMapsError) -> None:
            self.answers.here -= 1
            settle(outcome)

        self.answers.here += 1
        try:
            await super().submit(map_, settle_here, value_range, reservation)
        except (BrokenResourceError, ClosedResourceError):
            self.answers.here -= 1
            raise

    def _lane_for(self, map_: ActivationMap) -> Lane | None:
        """Return the lane with the least load, for a few maps; those of a container stay in theirs if no lane is idle.

        Each lane that reads a container has to open it.
        """
        container = None if map_.part is None or _is_mapped(map_) else map_.path
        lane, path, enough = self._current
        if container != path or lane.load >= enough or lane.is_full:
            found = min(self._lanes, key=_load)
            if container is None or container != path or not found.maps:
                lane = found
            self._current = _Turn(lane, container, lane.load + _TURN_BYTES)
        return None if lane.is_full else lane

    def close(self) -> None:
        """Accept no more jobs; the stages and the lanes end when all submitted jobs are done."""
        super().close()
        self._is_closed = True
        self._wanted.set()
        for lane in self._lanes:
            lane.close()
        self._make_room()

    def abandon(self) -> None:
        """End every wait for room; called when the stages have ended."""
        super().abandon()
        self._is_over = True
        self.answers.end()
        self._make_room()

    def _make_room(self) -> None:
        self._room.set()
        self._room = asyncio.Event()

    # Statistics -----------------------------------------------------------------------------------------------------

    @property
    def _settled(self) -> int:
        return sum(lane.settled for lane in self._lanes)

    @property
    def lanes(self) -> list[LaneStatistics]:
        """The state of each lane that has started."""
        found = [lane.statistics(str(number)) for number, lane in enumerate(self._lanes, 1) if lane.has_started]
        if self._alone.has_started or self._quarantine.suspects:
            found.append(self._alone.statistics("quarantine", len(self._quarantine.suspects)))
        return found

    @property
    def _states(self) -> list[State]:
        """What the lanes have told; the workers of the lane for the maps of dead ones count only while it runs."""
        alone = self._alone.state if self._alone.pid is not None else self._alone.state.without_workers()
        return [*(lane.state for lane in self._lanes), alone]

    @property
    def pace(self) -> Pace:
        """How the uploads go now."""
        found = [state.pace for state in self._states]
        # The lane for the maps of dead ones takes them one by one, so a rate rarely delays it.
        rates = [lane.state.pace.rate for lane in self._lanes if lane.maps]
        if not self._uses_own():
            return add_paces(found, rates)
        own = super().pace
        return add_paces([*found, own], rates if own.rate is None else [*rates, own.rate])

    @property
    def waiting_since(self) -> str:
        """The local time since which no store has answered; empty if one answers any lane that has maps."""
        own = super().waiting_since
        found = [lane.state.waiting_since for lane in self._all if lane.maps] + ([own] if own else [])
        return min(found, default="") if all(found) else ""

    def life(self) -> tuple[object, ...]:
        """Return a value that changes when a map leaves a stage, or when bytes move to the store."""
        return *super().life(), *((lane.settled, lane.state.life) for lane in self._all)

    def statistics(self) -> dict[str, StageStatistics]:
        """Return the statistics of each stage now, of all lanes together."""
        found = [state.stages for state in self._states]
        return add_stages([*found, super().statistics()] if self._uses_own() else found)

    def _uses_own(self) -> bool:
        """Whether the stages of this process have maps, or no lane has told of its own."""
        return not any(lane.state.stages for lane in self._all) or any(
            stage.maps for stage in super().statistics().values()
        )


class _Turn(NamedTuple):
    """A lane that gets the next maps: those of a container, or others until its load is enough."""

    lane: Lane
    path: str | None = None
    enough: int = 0


def _load(lane: Lane) -> tuple[bool, int]:
    return lane.is_full, lane.load


def _is_mapped(map_: ActivationMap) -> bool:
    path = map_.path or ""
    return path.endswith(".npy") and not is_remote(path)
