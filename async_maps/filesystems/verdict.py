"""What the judgement of an error says: whom it concerns, and whether it may pass. Imports no library."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from async_maps.errors import ObjectError, StoreError, TransientError


class Scope(StrEnum):
    """What the cause of a failed request concerns."""

    KEY = "key"
    """This object alone."""
    BUCKET = "bucket"
    """All objects of the bucket, and the settings of their requests."""
    CREDENTIALS = "credentials"
    STORE = "store"
    LINK = "link"
    """The connection: addresses, names, proxies, certificates, the network."""
    DISK = "disk"


class Verdict(NamedTuple):
    """The judgement of one error.

    Attributes:
        scope: what its cause concerns, if other objects meet it too; with :attr:`Scope.KEY`, no others do.
        may_pass: whether the same command may succeed later, without a change by the user.
        certain: whether this one answer proves that every object meets it.
        slow_down: whether the store asks for fewer requests.
        reason: one sentence, with the store's own words where it has any.
        retry: whether the same request may succeed within seconds.
        code: the error code of the store; empty if it gave none.
        timed_out: whether there was no answer in time, so that fewer requests should run concurrently.
    """

    scope: Scope
    may_pass: bool
    certain: bool
    slow_down: bool
    reason: str
    retry: bool = False
    code: str = ""
    timed_out: bool = False


class UnjudgedError(StoreError):
    """The store refuses an object, and perhaps all: other objects must show which.

    Attributes:
        verdict: the judgement of this refusal alone.
    """

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message, may_pass=verdict.may_pass)
        self.verdict = verdict


def store_error(destination: str, verdict: Verdict) -> StoreError:
    """Return the error to raise for a failed PUT: a StoreError if it is certain that every object meets it."""
    text = f"{destination}: {verdict.reason}"
    if verdict.retry:
        return TransientError(text, slow_down=verdict.slow_down, timed_out=verdict.timed_out)
    if verdict.certain:
        return StoreError(text, may_pass=verdict.may_pass)
    return ObjectError(text) if verdict.scope == Scope.KEY else UnjudgedError(text, verdict)
