"""What lanes ask their parent, and what it tells them: credentials, and evidence whether a store refuses all objects.

A lane sees only its own objects. So each tells of one that the store has accepted, and asks for those of others if its
own are refused. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, create_task_group, to_thread

from async_maps.concurrency.launch import anonymous_file
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.services.tokens import Tokens
from async_maps.lanes.packing import Hello

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from typing import Any

    from anyio.abc import TaskGroup

    from async_maps.lanes.lane import Lane
    from async_maps.settings import Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.stages.graph import Stages
    from async_maps.stages.items import Job

_INTERVAL_S = 0.2
_NOTICES = 1000
_logger = logging.getLogger("async_maps")


class Answers:
    """Answers the lanes of a pipeline.

    Args:
        settings: those of the pipeline.
        stages: the stages of this process.

    Attributes:
        lanes: all lanes.
        suspects: the maps of dead lanes that no lane has now.
        here: the number of maps that the stages of this process have.
        feeds: returns the number of sources that were begun. Two maps of one source have distinct keys.
        kernels: the file in memory through which all processes share compiled kernels.
    """

    def __init__(self, settings: Settings, stages: Stages) -> None:
        self.lanes: Sequence[Lane] = ()
        self.suspects: deque[Job] = deque()
        self.here = 0
        self.feeds: Callable[[], int] = lambda: 0
        self.kernels = -1
        self._settings = settings
        self._stages = stages
        self._tasks: TaskGroup
        self._threads = CapacityLimiter(settings.lane_count + 1)
        self._notices: set[str] = set()
        self._credentials: Any = None
        self._held: dict[Lane, frozenset[str]] = {}
        self._released = asyncio.Event()
        self._is_over = False

    @asynccontextmanager
    async def given(self) -> AsyncIterator[None]:
        """Answer inside the ``with`` block."""
        self.kernels = anonymous_file()
        try:
            async with create_task_group() as self._tasks:
                self._tasks.start_soon(self._tell_regularly)
                yield
                self._tasks.cancel_scope.cancel()
        finally:
            os.close(self.kernels)

    async def _tell_regularly(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            for lane in self.lanes:
                lane.wake()

    def hello(self) -> tuple[Any, ...]:
        """Return the first message to a process."""
        known = None
        # Not imported for this: it is slow, and source and destination may be on disk.
        if (module := sys.modules.get("async_maps.filesystems.credentials")) is not None:
            # Kept, because they are forgotten with their last user.
            self._credentials = module.shared_credentials()
            known = module.known_credentials()
        settings, level = self._settings.model_dump(mode="json"), _logger.getEffectiveLevel()
        store = self._stages.store
        tokens = getattr(store, "tokens", None)
        token = tokens.known() if isinstance(tokens, Tokens) else None
        return tuple(Hello(settings, self._settings.lane_count, store.destination, known, self.kernels, level, token))

    def news(self, lane: Lane, told: dict[str, object]) -> list[tuple[Any, ...]]:
        """Return messages about what has changed since, and note it in ``told``.

        ``others`` is 1 if other maps than those of the lane may show whether the store is down.
        """
        others = self.here > self._stages.held or any(
            other.maps and not other.state.is_stuck for other in self.lanes if other is not lane
        )
        reading = self._stages.control.is_reading(), self.feeds()
        now: dict[str, object] = {"reading": reading, "others": int(others)}
        if (promises := getattr(self._stages.store, "promises", None)) is not None:
            now["promises"] = promises.known()
        found = [(kind, value) for kind, value in now.items() if told.get(kind) != value]
        told.update(now)
        return found

    def hear(self, lane: Lane, kind: str, values: Sequence[Any]) -> None:
        """Receive a message of a lane."""
        if kind == "log":
            self._log(*values)
        elif kind == "promises":
            promises: Any = getattr(self._stages.store, "promises", None)
            promises.load(values[0])
            promises.is_news = True
        elif kind == "stored":
            self._tasks.start_soon(self._tell_stored, lane)
        elif kind == "done":
            self.release(lane)
        elif kind == "read":
            last = [other.last.path for other in self.lanes if other is not lane and other.last is not None]
            lane.say(kind, [(path, b"") for path in last if path is not None and is_remote(path)])
        elif kind == "credentials":
            self._tasks.start_soon(self._lend, lane, *values)

    def _log(self, level: int, text: str) -> None:
        if level >= logging.WARNING:
            if text in self._notices:
                return  # Each lane finds what concerns all of them.
            if len(self._notices) < _NOTICES:
                self._notices.add(text)
        _logger.log(level, "%s", text)

    async def _lend(self, lane: Lane, in_use: str, is_refused: bool) -> None:
        def lend() -> list[Any]:
            from async_maps.filesystems.credentials import lend_credentials, shared_credentials

            self._credentials = self._credentials or shared_credentials()
            return lend_credentials(self._credentials, in_use, is_refused)

        lane.say("credentials", await to_thread.run_sync(lend, limiter=self._threads, abandon_on_cancel=True))

    # Objects that a lane may put again ------------------------------------------------------------------------------

    async def _tell_stored(self, lane: Lane) -> None:
        """Tell a lane of objects that others have stored; those of earlier runs are held until it is done."""
        kept = [other.kept for other in self.lanes if other is not lane and other.kept is not None]
        found = {key: data for feed, key, data in kept if feed == self.feeds()}
        if (earlier := self._stages.control.earlier) is not None:
            keys = set(await earlier.keys()) - found.keys()
            if lane.pid is None:  # it has died meanwhile, and releases nothing anymore
                return
            jobs = [job for other in self.lanes for job in (*other.unsent, *other.sent.values())]
            held = self._held[lane] = frozenset(keys - {job.map.key for job in (*jobs, *self.suspects)})
            found |= {key: data for key in held if (data := await earlier.read(key)) is not None}
        lane.say("stored", [*found.items()])

    @property
    def holds(self) -> bool:
        """Whether lanes may put overlays of earlier runs again."""
        return bool(self._held)

    async def until_released(self, map_: ActivationMap) -> None:
        """Wait until no lane puts an older overlay of a map."""
        while self._held and not self._is_over and any(map_.key in held for held in self._held.values()):
            await self._released.wait()

    def release(self, lane: Lane) -> None:
        """Let the overlays that a lane has put again be replaced."""
        if self._held.pop(lane, None) is not None:
            self._released.set()
            self._released = asyncio.Event()

    def end(self) -> None:
        """End every wait."""
        self._is_over = True
        self._released.set()
