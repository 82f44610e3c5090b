"""Finds out whether the store refuses one object or all, with requests for objects that it has accepted before.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import ExistsError, ObjectError, StoreError, TransientError
from async_maps.filesystems.verdict import Scope, UnjudgedError
from async_maps.stages.judge import FEW, Case, Ruling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_maps.stages.judge import Judge

_SMALL = 64 * 2**10
"""A PNG up to this size replaces the one that is kept; a larger one only if it is not larger."""
_TOLD = 4 * 2**20
"""The largest object that a lane tells others of, in bytes."""
_LOOK_S, _AGAIN_S = 0.05, 1.0
_PATIENCE_S = 5.0
"""The longest wait for a source that has no map in the pipeline."""


class Earlier(Protocol):
    """Objects that an earlier run has stored."""

    async def keys(self) -> list[str]:
        """Return the keys of a few of them."""

    async def read(self, key: str) -> bytes | None:
        """Return the bytes of one; None if it cannot be read."""

    def done(self) -> None:
        """Note that none of them is put now."""


class Control:
    """Puts an object that the store has accepted again, where no other object shows whether the store is down.

    The store may refuse that object too, because something has changed for a part of the keys. So a few are asked for
    before all count as refused.

    Args:
        judge: the evidence.
        send: sends the request for an object again.
        check: checks the bucket.
        silence: the start of a sentence about a store that is down.

    Attributes:
        maps: returns the number of maps that have no outcome yet.
        is_reading: returns whether a source is still being read.
        has_others: returns whether other processes of this run may still find out whether the store is down.
        alone: the number of objects that wait for that, because the store has accepted nothing.
        earlier: the objects of an earlier run, asked for after those of this one.
    """

    def __init__(
        self,
        judge: Judge,
        send: Callable[[str, bytes], Awaitable[object]],
        check: Callable[[], Awaitable[None]],
        silence: str = "the store has accepted nothing",
    ) -> None:
        self.maps: Callable[[], int] = lambda: 0
        self.is_reading: Callable[[], bool] = lambda: False
        self.has_others: Callable[[], bool] = lambda: False
        self.alone = 0
        self.earlier: Earlier | None = None
        self._has_earlier = False
        self._judge = judge
        self._send = send
        self._check = check
        self._silence = silence
        self._kept: dict[str, bytes] = {}  # the newest last
        self._under_way: Counter[str] = Counter()
        self._asking = asyncio.Lock()
        self._asked_key = ""
        self._refused: StoreError | None = None
        self._refused_at = -1.0

    def making_way(self, key: str) -> _Way:
        """Do not put the object with this key again: other bytes may be put there in the ``async with`` block."""
        return _Way(self, key)

    async def _make_way(self, key: str) -> None:
        self._under_way[key] += 1
        self._kept.pop(key, None)
        if self._asked_key == key:
            try:
                async with self._asking:
                    pass
            except BaseException:
                self._arrived(key)
                raise

    def _arrived(self, key: str) -> None:
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]

    def keep(self, key: str, data: bytes) -> None:
        """Keep an object that the store has accepted, unless other bytes with its key are on their way."""
        if key in self._under_way:
            return
        if len(data) > _SMALL and self._kept:
            if len(data) > min(map(len, self._kept.values())):
                return
            self._kept.clear()
        self._kept.pop(key, None)
        self._kept[key] = data
        if len(self._kept) > FEW:
            del self._kept[next(iter(self._kept))]

    @property
    def kept(self) -> tuple[str, bytes] | None:
        """The key and the bytes of an object that is kept, and is not too large to tell others; None without one."""
        return next((item for item in reversed(self._kept.items()) if len(item[1]) <= _TOLD), None)

    def forget(self) -> None:
        """Keep none of the objects: other bytes may be put elsewhere under their keys."""
        self._kept.clear()

    async def ask(self, case: Case) -> bool:
        """Put a kept object again, unless there was an answer since the case's last attempt.

        Returns:
            False if there is no such object.

        Raises:
            StoreError: the store refuses a few of them.
        """
        async with self._asking:
            if self._refused is not None and self._refused_at >= case.ended_at:
                raise self._refused
            if self._judge.has_passed_since(case):
                return True
            try:
                return await self._put_some(asked=set())
            finally:
                self._asked_key = ""
                if self.earlier is not None:
                    self.earlier.done()

    async def _put_some(self, asked: set[str]) -> bool:
        """Put objects again until the store accepts one or does not answer; return whether there was one."""
        began_at: float = -1.0
        refused: StoreError | None = None
        while len(asked) < FEW and (found := await self._find(asked)) is not None:
            key, data = found
            asked.add(key)
            control = Case()
            try:
                await self._put(control, key, data)
            except TransientError as error:
                from async_maps.filesystems.blame import judge

                self._judge.failed(control, judge(error))
                return True
            except ObjectError:
                # This object cannot be replaced: it is locked, for instance.
                self._kept.pop(key, None)
            except StoreError as error:
                began_at, refused = control.began_at, error
                if not isinstance(error, UnjudgedError):
                    break
            else:
                self._refused = None
                return True
            finally:
                self._judge.close(control)
        if refused is None:
            return False
        self._refused, self._refused_at = _of_all(refused), began_at
        raise self._refused from refused

    async def _find(self, asked: set[str]) -> tuple[str, bytes] | None:
        """Return an object to put again, and let uploads with its key wait from now on."""
        for key in reversed(self._kept):
            if key not in asked:
                self._asked_key = key
                return key, self._kept[key]
        if self.earlier is None:
            return None
        for key in await self.earlier.keys():
            if key in asked or key in self._under_way:
                continue
            self._has_earlier, self._asked_key = True, key
            if (data := await self.earlier.read(key)) is not None:
                return key, data
            asked.add(key)
        return None

    async def _put(self, control: Case, key: str, data: bytes) -> None:
        self._judge.begin(control)
        with suppress(ExistsError):
            await self._send(key, data)
        self._judge.accepted(control)
        self.keep(key, data)

    async def hear(self, case: Case, error: UnjudgedError) -> None:
        """Hold a refused object back until there is evidence; return if it is to be tried again.

        Raises:
            ObjectError: the object is to blame.
            StoreError: all objects are refused, or nothing shows whether they are.
        """
        waited_s = 0.0
        while (ruling := self._judge.rule(case)) is not Ruling.RETRY:
            if ruling is Ruling.BLAME:
                raise ObjectError(str(error)) from error
            if ruling is Ruling.DOWN:
                raise self.down(error, f"for {self._judge.failing_s:.0f} s")
            pause_s = _LOOK_S
            if ruling is Ruling.CONTROL:
                if await self.ask(case):
                    pause_s = 0.0 if self._judge.has_passed_since(case) else _AGAIN_S
                elif self._judge.are_all_refused(case):
                    raise _of_all(error) from error
                elif self.maps() <= self._judge.objects and (not self.is_reading() or waited_s >= _PATIENCE_S):
                    await self._check()
                    if self._has_earlier and error.verdict.scope is Scope.CREDENTIALS:
                        # The credentials were accepted for other objects, which they may not read.
                        raise ObjectError(str(error)) from error
                    raise _of_all(error) from error
            await asyncio.sleep(pause_s)
            waited_s += pause_s

    async def rule(self, case: Case, error: TransientError) -> None:
        """Record a failure that may pass; return if the object is to be tried again.

        Raises:
            ObjectError: the object is to blame.
            StoreError: the store is down, or nothing shows whether it is.
        """
        from async_maps.filesystems.blame import judge

        ruling = self._judge.failed(case, judge(error))
        if ruling is Ruling.BLAME:
            raise ObjectError(f"{error} (after {case.attempts} attempts)") from error
        if ruling is Ruling.DOWN:
            some = self._judge.has_accepted
            raise self.down(error, f"for {self._judge.failing_s:.0f} s" if some else f"in {case.attempts} attempts")
        if ruling is Ruling.ALONE:
            await self.hear_alone(case, error)

    async def hear_alone(self, case: Case, error: TransientError) -> None:
        """Return if an object is to be tried again, though the store has accepted nothing in this run.

        Raises:
            StoreError: it does not accept an object of an earlier run either, or there is none.
        """
        self.alone += 1
        try:
            while not (await self.ask(case) and self._judge.has_passed_since(case)):
                if not self.has_others() or self._judge.is_over:
                    await self._check()
                    raise self.down(error, f"in {case.attempts} attempts")
                await asyncio.sleep(_AGAIN_S)
        finally:
            self.alone -= 1

    def down(self, error: StoreError, since: str) -> StoreError:
        """Return the error of a store that is down."""
        return StoreError(
            f"{self._silence} {since}: {error}; run the same command again when the store is back", may_pass=True
        )


class _Way:
    # Not asynccontextmanager, which takes longer for each object.
    __slots__ = ("_control", "_key")

    def __init__(self, control: Control, key: str) -> None:
        self._control, self._key = control, key

    async def __aenter__(self) -> None:
        await self._control._make_way(self._key)

    async def __aexit__(self, *_: object) -> None:
        self._control._arrived(self._key)


def _of_all(error: StoreError) -> StoreError:
    return StoreError(str(error), may_pass=error.may_pass)
