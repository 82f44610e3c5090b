"""The tokens of requests: found in a thread at the first request, and renewed before they expire."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from anyio import CapacityLimiter, to_thread

from async_maps.concurrency.tasks import see_error
from async_maps.filesystems.credentials import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_EARLY_S = 300.0
"""Tokens are renewed this long before they expire. The libraries of the vendors renew theirs later."""
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
"""The wait after a failed renewal doubles between these."""


class Token(NamedTuple):
    """A token, and the time of its expiry in seconds since 1970."""

    text: str
    expires_at: float

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"


class Tokens:
    """The tokens of a client, on its event loop.

    Args:
        find: finds a new token; blocks.
        wall: returns the time in seconds since 1970.
        timer: returns seconds for the waits between attempts.

    Raises:
        CredentialsError: :meth:`get` raises it if there is no valid token.
    """

    def __init__(
        self,
        find: Callable[[], Token],
        wall: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._wall, self._timer = wall, timer
        self._token: Token | None = None
        self._renew_at = 0.0
        self._refused = ""
        self._found_again = False
        self._renewing: asyncio.Task[Token] | None = None
        self._error: CredentialsError | None = None
        self._failures = 0
        self._try_at = 0.0
        # A thread of its own, because all others may wait for the store.
        self._threads = CapacityLimiter(1)

    async def get(self) -> str:
        """Return a valid token; wait only if there is none."""
        token, now, may_try = self._token, self._wall(), self._timer() >= self._try_at
        is_valid = token is not None and now < token.expires_at and token.text != self._refused
        if token is not None and is_valid and not (now >= self._renew_at and may_try):
            return token.text
        if self._error is not None and not may_try:
            raise _again(self._error)
        if self._renewing is None or self._renewing.done():
            # One thread for all waiting requests; it goes on if they are cancelled.
            self._renewing = asyncio.create_task(self._renew())
            self._renewing.add_done_callback(see_error)
        if token is not None and is_valid:
            return token.text
        return (await asyncio.shield(self._renewing)).text

    def known(self) -> list[Any] | None:
        """Return the token as plain values, for :meth:`begin` in another process; None if there is none yet."""
        return None if self._token is None else list(self._token)

    def begin(self, known: list[Any]) -> None:
        """Use a token that another process has found."""
        self._use(Token(*known))

    def refuse(self, text: str) -> bool:
        """Note a token that the service refuses as unknown; return whether another one may be accepted."""
        if self._token is not None and self._token.text != text:
            return True
        if text != self._refused:
            self._refused, self._found_again = text, False
        return not self._found_again

    async def _renew(self) -> Token:
        try:
            token = await to_thread.run_sync(self._find, abandon_on_cancel=True, limiter=self._threads)
        except CredentialsError as error:
            self._failures += 1
            self._try_at = self._timer() + min(_LONGEST_WAIT_S, _SHORTEST_WAIT_S * 2 ** min(self._failures - 1, 5))
            # If they have worked, they may work again after a new sign-in.
            self._error = _again(error, may_pass=error.may_pass or self._token is not None)
            raise _again(self._error) from error
        self._use(token)
        return token

    def _use(self, token: Token) -> None:
        self._token, self._error, self._failures, self._try_at = token, None, 0, 0.0
        self._found_again = token.text == self._refused
        self._renew_at = token.expires_at - min(_EARLY_S, (token.expires_at - self._wall()) / 2)


def _again(error: CredentialsError, *, may_pass: bool | None = None) -> CredentialsError:
    """Return an equal error: one that is raised several times would keep the frames of all callers."""
    return CredentialsError(str(error), may_pass=error.may_pass if may_pass is None else may_pass, retry=error.retry)
