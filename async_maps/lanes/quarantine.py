"""The lane for maps of dead lanes, one by one: so a map that kills its lane fails alone. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from async_maps.errors import WorkerError
from async_maps.filesystems.addresses import is_remote
from async_maps.lanes.lane import Lane, LaneDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_maps.lanes.lane import Parent
    from async_maps.outcomes import Stage
    from async_maps.stages.items import Job

START_ATTEMPTS = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
"""The waits between two attempts to start a lane: a lack of memory may be brief."""


class Quarantine:
    """A lane whose process runs while there are suspects: maps that a dead lane had.

    Args:
        parent: what the lane asks.
        release: called when its process has ended.

    Attributes:
        lane: the lane.
        suspects: the maps that it has not got yet.
    """

    def __init__(self, parent: Parent, release: Callable[[Lane], None]) -> None:
        self.lane = Lane(parent, lambda _: self._go_on(), 1)
        self.suspects: deque[Job] = deque()
        self._release = release
        self._is_closed = False
        self._changed = asyncio.Event()

    def add(self, jobs: Sequence[Job]) -> None:
        """Add the maps of a dead lane."""
        # It may have stored them: an equal object is theirs.
        for job in jobs:
            job.map.maybe_at = ""
        self.suspects.extend(jobs)
        self._changed.set()

    def close(self) -> None:
        """End when all suspects have an outcome: no lane can die anymore."""
        self._is_closed = True
        self._changed.set()

    async def run(self) -> None:
        """Run the suspects until :meth:`close` was called; a map with which the lane dies twice fails by name."""
        lane, attempts = self.lane, 0
        died_before: Job | None = None
        while not self._is_closed or self.suspects or lane.maps:
            if not self.suspects and not lane.maps:
                self._changed.clear()
                await self._changed.wait()
                continue
            lane.close(closed=False)
            if not lane.maps:
                lane.add(self.suspects.popleft())
            try:
                await lane.run()
                attempts = 0
            except LaneDiedError as error:
                if not (found := lane.take_sent()):
                    attempts += 1
                    if attempts == START_ATTEMPTS:
                        raise cannot_start(error, attempts) from error
                    await asyncio.sleep(wait_s(attempts))
                for job in found:  # one
                    attempts = 0
                    if job is died_before:
                        stage: Stage = "read" if is_remote(job.map.path or "") else "colorize"
                        job.fail(stage, f"{error} each time it processed this map", maybe_stored=True)
                        lane.settled += 1
                    else:
                        died_before = job
                        lane.add(job)
            finally:
                self._release(lane)

    def _go_on(self) -> None:
        if self.suspects:
            self.lane.add(self.suspects.popleft())
        else:
            self.lane.close()


def wait_s(attempts: int) -> float:
    """Return the seconds to wait before a lane is started again, from the number of failed starts in a row."""
    return min(_FIRST_WAIT_S * 2.0 ** min(attempts - 1, 10), _LONGEST_WAIT_S)


def cannot_start(error: LaneDiedError, attempts: int) -> WorkerError:
    """Return the error that ends a run, from the last of a number of failed starts in a row."""
    return WorkerError(
        f"{error} when it was started, {attempts} times in a row; set fewer processes, which need less memory"
    )
