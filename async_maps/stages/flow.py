"""Between one caller and the shared pipeline: its maps under way, and a bounded place for their outcomes."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError

if TYPE_CHECKING:
    from async_maps.outcomes import Outcome


class Flow:
    """One caller's maps between entering the pipeline and being taken note of.

    At most ``window`` maps are under way or have an outcome that was not collected yet. So an outcome always finds
    room, and the pipeline never waits for a slow caller. For one event loop, one feeder and one collector.

    If ``ordered``, outcomes come in the order in which their maps were admitted. One that comes before its turn is held
    back, and takes its place in the window: the map whose turn it is was admitted before, and needs no further place.
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
        self._last_words: BaseException | None = None
        self._closed = False
        self._changed = asyncio.Event()

    async def admit(self) -> int:
        """Wait for room for one more map, and take it; its number, from 1, when it is taken."""
        while self._under_way + len(self._outcomes) + len(self._held_back) >= self._window:
            await self._change()
        self._under_way += 1
        return next(self._numbers)

    def settle(self, outcome: Outcome | AsyncMapsError, number: int = 0) -> None:
        """An admitted map has its outcome; an error ends the flow. Only an ordered flow needs the map's number."""
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
        """An admitted map did not enter the pipeline after all."""
        self._under_way -= 1
        self._changed.set()

    def close(self, error: BaseException | None = None) -> None:
        """No further map will be admitted; the collector sees the error, if any, once every admitted one is through."""
        self._closed = True
        self._last_words = self._last_words or error
        self._changed.set()

    def abort(self, error: BaseException) -> None:
        """Let the collector see this error, after the outcomes that came before it."""
        self._error = self._error or error
        self._changed.set()

    def end(self, error: BaseException) -> None:
        """The pipeline is gone: what is not through by now will never be."""
        if self._under_way or not self._closed:
            self.abort(error)

    async def collect(self) -> list[Outcome]:
        """All outcomes since the last call, at least one; none if the flow is closed and every map is through.

        Raises the error that ended the flow.
        """
        while not self._outcomes:
            if self._error is not None:
                raise self._error
            if self._closed and not self._under_way:
                if self._last_words is not None:
                    raise self._last_words
                return []
            await self._change()
        outcomes, self._outcomes = self._outcomes, []
        # Room for the feeder.
        self._changed.set()
        return outcomes

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
