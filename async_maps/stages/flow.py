"""The maps of one caller in the shared pipeline, and the outcomes that the caller has not taken yet."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError

if TYPE_CHECKING:
    from async_maps.outcomes import Outcome


class Flow:
    """Limits the maps of one caller that are in flight, or whose outcome was not collected yet.

    There is always room for an outcome, so the pipeline never waits for a slow caller. If ``ordered``, outcomes are
    collected in the order in which the maps were admitted; an early one waits in the window. This cannot deadlock,
    because the map that it waits for was admitted before. For one event loop, one feeder and one collector.
    """

    def __init__(self, window: int, *, ordered: bool = False) -> None:
        self._window = window
        self._ordered = ordered
        self._numbers = count(1)
        self._turn = 1
        self._held_back: dict[int, Outcome] = {}
        self._under_way = 0
        self._outcomes: list[Outcome] = []
        self._error: BaseException | None = None
        self._final_error: BaseException | None = None
        self._closed = False
        self._changed = asyncio.Event()

    async def admit(self) -> int:
        """Wait for room for one map, take it, and return the map's number, from 1."""
        while (number := self.admit_nowait()) is None:
            await self._change()
        return number

    def admit_nowait(self) -> int | None:
        """Take room for one map, and return the map's number; None if there is no room."""
        if self._under_way + len(self._outcomes) + len(self._held_back) >= self._window:
            return None
        self._under_way += 1
        return next(self._numbers)

    def settle(self, outcome: Outcome | AsyncMapsError, number: int = 0) -> None:
        """Add the outcome of an admitted map; an error ends the flow. Only an ordered flow needs the number."""
        self._under_way -= 1
        if isinstance(outcome, AsyncMapsError):
            self.abort(outcome)
            return
        if self._ordered:
            self._held_back[number] = outcome
            while self._turn in self._held_back:
                self._outcomes.append(self._held_back.pop(self._turn))
                self._turn += 1
        else:
            self._outcomes.append(outcome)
        self._changed.set()

    def withdraw(self) -> None:
        """Give back the room of an admitted map that did not enter the pipeline."""
        self._under_way -= 1
        self._changed.set()

    def close(self, error: BaseException | None = None) -> None:
        """Admit no more maps; raise the error, if any, in the collector after the outcomes of all admitted maps."""
        self._closed = True
        self._final_error = self._final_error or error
        self._changed.set()

    def abort(self, error: BaseException) -> None:
        """Raise the error in the collector after the outcomes that are already there."""
        self._error = self._error or error
        self._changed.set()

    def end(self, error: BaseException) -> None:
        """Abort the flow if it has maps in flight or is still open; called when the pipeline ends."""
        if self._under_way or not self._closed:
            self.abort(error)

    async def collect(self) -> list[Outcome]:
        """Return all new outcomes, after waiting for at least one, or [] at the end; raise the flow's error."""
        while not self._outcomes:
            if self._error is not None:
                raise self._error
            if self._closed and not self._under_way:
                if self._final_error is not None:
                    raise self._final_error
                return []
            await self._change()
        outcomes, self._outcomes = self._outcomes, []
        # The feeder has room again.
        self._changed.set()
        return outcomes

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
