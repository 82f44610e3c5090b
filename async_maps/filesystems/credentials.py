"""The AWS credentials of this process: found once for all its clients, and renewed once. Thread-safe.

botocore would ask for them once in each session, and renew them once in each, at every request if that fails.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import CredentialRetrievalError

from async_maps.filesystems.clock import Clock
from async_maps.filesystems.filesystem import file_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_logger = logging.getLogger("async_maps")

NONE_FOUND = "no AWS credentials found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

CANNOT_LOAD = "AWS credentials cannot be loaded"
PROVIDERS = {
    "env": "from the environment",
    "shared-credentials-file": "from profile {profile} of the credentials file",
    "config-file": "from profile {profile} of the config file",
    "assume-role": "a role, by profile {profile}",
    "assume-role-with-web-identity": "a role, by web identity",
    "sso": "a role, by the single sign-on of profile {profile}",
    "iam-role": "the role of this machine",
    "container-role": "the role of this container",
    "custom-process": "from the credential_process of profile {profile}",
}
"""What the credentials of each of botocore's providers are, in words."""

_EARLY_S = 900.0
"""Credentials are renewed this long before they expire, or when half of their time is left."""
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
"""The wait after a failed renewal doubles between these."""


def describe(method: str, profile: str = "") -> str:
    """Return what the credentials of a provider are, in words."""
    return PROVIDERS.get(method, method).format(profile=profile or os.environ.get("AWS_PROFILE") or "default")


class CredentialsError(CredentialRetrievalError):
    """There are no credentials; the message is a sentence that says why.

    Args:
        reason: the sentence.
        may_pass: whether the same command may succeed later without a change by the user.
        retry: whether the next attempt of this process may succeed.
    """

    fmt = "{reason}"

    def __init__(self, reason: str, *, may_pass: bool = False, retry: bool = False) -> None:
        super().__init__(reason=reason)
        self.may_pass = may_pass
        self.retry = retry


class Found(NamedTuple):
    """Credentials, the time of their expiry in seconds since 1970, and the name of botocore's provider."""

    frozen: ReadOnlyCredentials
    expires_at: float | None
    method: str

    def __repr__(self) -> str:
        return f"Found(method={self.method!r}, expires_at={self.expires_at})"


class SharedCredentials:
    """Finds the credentials at the first call, and renews them before they expire.

    Args:
        find: finds credentials; its argument says whether it may ask a person for an MFA code.
        clock: tells whether they have expired.
        timer: returns seconds for the waits between attempts.

    Attributes:
        clients: the open clients of event loops that use them.

    Raises:
        CredentialsError: all methods raise it if there are no valid credentials.
    """

    def __init__(
        self, find: Callable[[bool], Found], clock: Clock | None = None, timer: Callable[[], float] = monotonic
    ) -> None:
        self.clock = clock or Clock()
        self.clients: set[object] = set()
        self._find = find
        self._timer = timer
        self._lock = Lock()
        self._found: Found | None = None
        self._renew_at = 0.0
        self._refused: ReadOnlyCredentials | None = None
        self._error: CredentialsError | None = None
        self._failures = 0
        self._try_at = 0.0

    @property
    def has_worked(self) -> bool:
        """Whether there have been credentials."""
        return self._found is not None

    @property
    def found(self) -> Found:
        """The credentials that were found last, even if they have expired; there must be some."""
        assert self._found is not None  # noqa: S101  # see has_worked
        return self._found

    def valid(self) -> ReadOnlyCredentials | None:
        """Return the credentials; None if there are none that are valid. Never blocks."""
        found = self._found
        if found is None or (found.expires_at is not None and found.expires_at <= self.clock.time()):
            return None
        return found.frozen

    def is_due(self) -> bool:
        """Whether it is time to call :meth:`get`, because there are no valid credentials, or not for long."""
        found = self._found
        if found is None or self.valid() is None:
            return True
        return found.expires_at is not None and self.clock.time() >= self._renew_at and self._timer() >= self._try_at

    def wait_s(self) -> float:
        """Return the seconds until the next attempt is allowed."""
        return max(0.0, self._try_at - self._timer())

    def get(self) -> ReadOnlyCredentials:
        """Return valid credentials; find or renew them if necessary. Blocks."""
        if not self.is_due() and (valid := self.valid()) is not None:
            return valid
        if not self._lock.acquire(blocking=self.valid() is None):
            return self.found.frozen  # another thread renews them
        try:
            if self.is_due():
                self._renew()
            return self.found.frozen
        finally:
            self._lock.release()

    def replace(self, access_key: str) -> bool:
        """Find other credentials than those with an access key, which the store has refused as expired. Blocks.

        Returns:
            Whether there are others now.
        """
        with self._lock:
            if self._found is None or self._found.frozen.access_key != access_key:
                return self._found is not None
            refused = self._found.frozen
            if self._refused == refused:
                return False
            self._renew()
            if self._error is not None:
                raise self._error
            self._refused = refused
            return self.found.frozen != refused

    def _renew(self) -> None:
        """Find credentials; keep those that are valid if that fails."""
        if self._error is not None and self._timer() < self._try_at:
            raise self._error
        try:
            found = self._find(self._found is None)
            if found.expires_at is not None and found.expires_at <= self.clock.time():
                raise CredentialsError("the AWS credentials have expired: sign in again, or set new ones")
        except CredentialsError as error:
            self._failed(error)
            return
        if self._failures:
            _logger.debug("the AWS credentials were renewed")
        self.begin(found)

    def begin(self, found: Found) -> None:
        """Use credentials that were found just now."""
        self._found, self._error, self._failures, self._try_at = found, None, 0, 0.0
        if found.expires_at is not None:
            left_s = found.expires_at - self.clock.time()
            self._renew_at = found.expires_at - min(_EARLY_S, left_s / 2)

    def _failed(self, error: CredentialsError) -> None:
        self._failures += 1
        wait_s = min(_SHORTEST_WAIT_S * 2 ** (self._failures - 1), _LONGEST_WAIT_S)
        self._try_at = self._timer() + wait_s
        if self._found is None:
            self._error = error
            raise error
        # They have worked: they may work again after a new sign-in, or when the service is back.
        gone = str(error) == NONE_FOUND
        reason = f": {error}"
        if gone:
            reason = f": {describe(self._found.method)} gives none now"
        elif str(error).startswith(CANNOT_LOAD):
            reason = str(error).removeprefix(CANNOT_LOAD)
        self._error = CredentialsError(
            f"the AWS credentials could not be renewed{reason}", may_pass=True, retry=gone or error.retry
        )
        is_over = self.valid() is None
        if self._failures == 1 and (self._error.retry or not is_over):
            still = "" if is_over else "those in use are still valid, and "
            _logger.warning("%s; %sthe next attempt follows", self._error, still)
        if is_over:
            raise self._error from error


class BorrowedCredentials(SharedCredentials):
    """Credentials of the parent process, which finds and renews them, and says why it cannot.

    Args:
        ask: asks the parent, see :func:`lend`; its arguments are the access key in use, and whether the store refused
            it. Blocks.
        clock: as for :class:`SharedCredentials`.
        timer: as for :class:`SharedCredentials`.
    """

    def __init__(
        self,
        ask: Callable[[str, bool], list[Any]],
        clock: Clock | None = None,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(self._borrow, clock, timer)
        self._ask = ask

    def _borrow(self, _: bool) -> Found:
        in_use = self.found.frozen.access_key or "" if self.has_worked else ""
        answer = self._ask(in_use, not self.is_due())
        if len(answer) == len(Found._fields):
            return _restored(answer)
        reason, may_pass, retry, _ = answer
        raise CredentialsError(reason, may_pass=may_pass, retry=retry)

    def _failed(self, error: CredentialsError) -> None:
        self._failures += 1
        self._error = error
        self._try_at = self._timer() + min(_SHORTEST_WAIT_S * 2 ** (self._failures - 1), _LONGEST_WAIT_S)
        if self.valid() is None:
            raise error


_shared: WeakValueDictionary[bytes, SharedCredentials] = WeakValueDictionary()
_borrowed: list[SharedCredentials] = []
_sharing = Lock()


def shared_credentials() -> SharedCredentials:
    """Return the credentials of this process for its AWS environment and files; the same while anything uses them."""
    from async_maps.filesystems.providers import find_credentials

    with _sharing:
        if _borrowed:
            return _borrowed[0]
        environment = _environment()
        shared = _shared.get(environment)
        if shared is None:
            clock = Clock()
            shared = _shared[environment] = SharedCredentials(partial(find_credentials, clock=clock), clock)
        return shared


def known_credentials() -> list[Any] | None:
    """Return the shared credentials for :func:`adopt_credentials` in a child process; None if there are none."""
    with _sharing:
        shared = _borrowed[0] if _borrowed else _shared.get(_environment())
    return None if shared is None or shared.valid() is None else _kept(shared.found)


def adopt_credentials(known: list[Any]) -> SharedCredentials:
    """Share those of the parent process until they expire; the caller keeps the result."""
    shared = shared_credentials()
    shared.begin(_restored(known))
    return shared


def borrow_credentials(known: list[Any] | None, ask: Callable[[str, bool], list[Any]]) -> None:
    """Use those of the parent process in all clients of this process, and let the parent renew them.

    Args:
        known: the result of :func:`known_credentials` in the parent.
        ask: as for :class:`BorrowedCredentials`.
    """
    borrowed = BorrowedCredentials(ask)
    if known is not None:
        borrowed.begin(_restored(known))
    with _sharing:
        _borrowed[:] = [borrowed]


def lend_credentials(shared: SharedCredentials, in_use: str, is_refused: bool) -> list[Any]:
    """Answer a child process that needs other credentials than it has. Blocks.

    Args:
        shared: those of this process.
        in_use: the access key that the child uses; empty if it has none.
        is_refused: whether the store has refused that key as expired.

    Returns:
        As :func:`known_credentials`, or why there are none: the reason, and whether that may pass, twice.
    """
    try:
        if is_refused and shared.has_worked and shared.found.frozen.access_key == in_use:
            shared.replace(in_use)
        shared.get()
    except CredentialsError as error:
        return [str(error), error.may_pass, error.retry, None]
    return _kept(shared.found)


def _kept(found: Found) -> list[Any]:
    return [list(found.frozen), found.expires_at, found.method]


def _restored(kept: list[Any]) -> Found:
    frozen, expires_at, method = kept
    return Found(ReadOnlyCredentials(*frozen), expires_at, method)


def _environment() -> bytes:
    """Return a digest of all that chooses credentials: variables, and the state of the files."""
    parts = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "HOME", "USERPROFILE")))
    for variable, usual in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = os.path.expanduser(os.environ.get(variable) or f"~/.aws/{usual}")
        with suppress(OSError):
            parts.append((path, file_fingerprint(os.stat(path))))
    return blake2b(repr(parts).encode(errors="surrogateescape")).digest()
