"""How a pipeline opens and ends: it is left in order, drained in a limited time, or abandoned."""

from __future__ import annotations

import asyncio
import logging
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope

from async_maps.concurrency.tasks import OrderlyTask, done_while_alive, first_error
from async_maps.errors import AsyncMapsError, PipelineClosedError, name_shortage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from async_maps.pipeline.tally import Tally
    from async_maps.stages.graph import Stages

T = TypeVar("T")

_logger = logging.getLogger("async_maps")

_CLOSED = "the pipeline was closed"
_NAMED = 3
"""The number of abandoned maps that the log names."""


class Lifecycle:
    """Runs the stages in a task of its own, from the entry of the pipeline's block to its end.

    Args:
        open_stages: opens what the stages need, and closes it at the end of its block.
        tally: the maps of the pipeline.
        drain_timeout_s: see :class:`~async_maps.Settings`.

    Attributes:
        stages: the stages; None before they are open.
        is_draining: whether the sources are read no further.
        is_leaving: whether the block is being left, so that no map is accepted.
        ended_early: whether an error or an abandonment has ended the pipeline.
        abandoned_because: why the maps without an outcome were abandoned; empty if none was.
        callers: what ends each waiting caller, and the name of its map if it waits for one map.
        unfinished: the tasks and rooms that an orderly end waits for.
    """

    def __init__(
        self, open_stages: Callable[[], AbstractAsyncContextManager[Stages]], tally: Tally, drain_timeout_s: float
    ) -> None:
        self._open_stages = open_stages
        self._tally = tally
        self._timeout_s = drain_timeout_s
        self.stages: Stages | None = None
        self.is_draining = self.is_leaving = self._is_bounded = False
        self.ended_early = False
        self.abandoned_because = ""
        self.callers: dict[Callable[[AsyncMapsError], None], str] = {}
        self.unfinished: set[asyncio.Future[Any]] = set()
        self._until_drain: set[CancelScope] = set()
        self._serving: OrderlyTask[None] | None = None
        self._end: AsyncMapsError = PipelineClosedError("the pipeline was closed before this map was uploaded")

    @property
    def is_open(self) -> bool:
        """Whether the pipeline accepts maps."""
        return self.stages is not None and self._serving is not None and not self._serving.done()

    def opened(self) -> tuple[asyncio.Task[None], Stages]:
        """Return the task of the stages and the stages.

        Raises:
            PipelineClosedError: the pipeline is not open.
        """
        if self.stages is None or self._serving is None:
            raise PipelineClosedError("the pipeline is not open; use it inside 'async with'")
        if self._serving.done():
            raise PipelineClosedError("the pipeline is not open anymore") from self._end
        return self._serving.task, self.stages

    def ended(self) -> AsyncMapsError:
        """Return why the pipeline has ended: a new error for each caller, because each adds its own traceback."""
        error = copy(self._end)
        error.__cause__ = self._end.__cause__
        return error

    # Opening --------------------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Open the stages; raise what prevents it."""
        if self._serving is not None:
            raise PipelineClosedError("a pipeline can be entered only once; create a new Pipeline")
        opened = asyncio.Event()
        # In a separate task, so that the block may be left in another task than it was entered in (test fixtures and
        # frameworks do that), and so that the failure of a stage does not cancel the caller's task.
        self._serving = OrderlyTask(partial(self._serve, opened), "async-maps")
        opening = asyncio.create_task(opened.wait())
        try:
            await asyncio.wait({self._serving.task, opening}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self._serving.cancel()
            raise
        finally:
            opening.cancel()
        if self._serving.done():
            await self._serving.result()

    async def _serve(self, opened: asyncio.Event) -> None:
        try:
            async with self._open_stages() as self.stages:
                await self.stages.run(opened)
        except (Exception, BaseExceptionGroup) as caught:  # noqa: BLE001  # raised again, named
            error, self.ended_early = name_shortage(first_error(caught)), True
            if isinstance(error, AsyncMapsError):
                self._end = error
            else:
                self._end.__cause__ = error
            raise error from None
        finally:
            if self.stages is not None:
                self.stages.abandon()
            self._end_callers()

    # Closing --------------------------------------------------------------------------------------------------------

    async def leave(self, kind: type[BaseException] | None) -> None:
        """End the pipeline: wait for all accepted maps if the block was left without an error, else abandon them."""
        assert self._serving is not None and self.stages is not None  # noqa: S101, PT018  # entered
        self._stop_reading()
        self.is_leaving = True
        if kind is not None:
            self._abandon(f"the block of the pipeline was left by {kind.__name__}")
            await self._serving.cancel()
            return
        finishing, idle_s = asyncio.create_task(self._finish(self.stages, self._serving.task)), self._timeout_s
        try:
            if await done_while_alive(finishing, self.stages.life, idle_s):
                finishing.result()
            else:
                self._abandon(f"{_CLOSED}, and for {idle_s:g} s nothing was stored and no byte moved", warn=True)
        except BaseException:
            self._abandon(f"{_CLOSED}, and that was cancelled")
            await self._serving.cancel()
            raise
        finally:
            finishing.cancel()
        if self.abandoned_because:
            await asyncio.wait({self._serving.task})
        else:
            await self._serving.result()

    async def _finish(self, stages: Stages, serving: asyncio.Task[None]) -> None:
        """Wait for the end of all accepted maps."""
        while waiting := {future for future in self.unfinished if not future.done()}:
            await asyncio.wait(waiting)
        stages.close()
        await asyncio.wait({serving})

    def _abandon(self, reason: str, *, warn: bool = False) -> None:
        """End the pipeline: tell all callers first, so that runs commit their receipts, then cancel the stages."""
        if self.stages is None or self._serving is None or self._serving.done():
            return
        abandoned = self._tally.abandoned = self._tally.unsettled
        self.ended_early, self.abandoned_because = True, reason
        self._end = PipelineClosedError(
            f"{reason}; maps without an outcome may or may not be stored: put them again", may_pass=True
        )
        if warn and abandoned:
            names = [name for name in self.callers.values() if name][:_NAMED]
            _logger.warning(
                "%s: %s abandoned%s; they may or may not be stored; put them again",
                reason, "1 map is" if abandoned == 1 else f"{abandoned:,} maps are",
                f", such as {', '.join(names)}" if names else "",
            )  # fmt: skip
        self._end_callers()
        self.stages.abandon()
        self._serving.request_cancel()

    def _end_callers(self) -> None:
        for end in list(self.callers):
            end(self.ended())

    # Draining -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop reading the sources, and abandon what is not finished in ``drain_timeout_s``."""
        if not self._is_bounded and self._serving is not None and self.is_open:
            self._is_bounded = True
            reason = f"the pipeline was drained, and that took longer than drain_timeout_s = {self._timeout_s:g}"
            ending = self._serving.task.get_loop().call_later(
                self._timeout_s, partial(self._abandon, reason, warn=True)
            )
            self._serving.task.add_done_callback(lambda _: ending.cancel())
        self._stop_reading()

    def _stop_reading(self) -> None:
        self.is_draining = True
        for waiting in self._until_drain:
            waiting.cancel()

    async def until_drained(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of ``wait``, or None if the pipeline is drained first."""
        if self.is_draining:
            return None
        with CancelScope() as waiting:
            self._until_drain.add(waiting)
            try:
                return await wait()
            finally:
                self._until_drain.discard(waiting)
        return None
