"""The bucket to check, the keys that the checks use, and requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import CancelScope
from botocore.exceptions import ClientError

from async_maps.doctor.finding import Finding
from async_maps.filesystems.aws import refusal, unreachable
from async_maps.stores.s3 import NO_ANSWER, UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from types_aiobotocore_s3 import S3Client

    from async_maps.doctor.finding import Level, OnFinding
    from async_maps.settings import S3Settings, Settings

_GRACE_S = 5.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 3.0, 5.0
FIRST_ANSWER_S = 15.0
"""The longest time of a request."""


def with_short_limits(settings: S3Settings) -> S3Settings:
    """Return the settings with short time limits, so that a store that does not answer is reported soon."""
    limits = {
        "connect_timeout_s": min(settings.connect_timeout_s, _CONNECT_TIMEOUT_S),
        "read_timeout_s": min(settings.read_timeout_s, _READ_TIMEOUT_S),
        "give_up_s": min(settings.give_up_s, FIRST_ANSWER_S),
    }
    return settings.model_copy(update=limits)


class Target(NamedTuple):
    """The parameters of all S3 checks. Only the names of our objects start with ``mark``."""

    client: S3Client
    bucket: str
    prefix: str
    mark: str
    settings: Settings
    on_finding: OnFinding

    @property
    def stem(self) -> str:
        """The start of the keys of our objects."""
        return f"{self.prefix}/{self.mark}" if self.prefix else self.mark

    @property
    def url(self) -> str:
        """The destination."""
        return f"s3://{self.bucket}/{self.prefix}"

    def say(self, check: str, level: Level, text: str, advice: str = "") -> None:
        """Report a finding."""
        self.on_finding(Finding(check, level, text, advice))


class Reply(NamedTuple):
    """The reply to a question that a store need not answer.

    Attributes:
        answer: the answer; empty if there is none.
        code: the error code of a refusal.
        reason: why there is no answer; empty if there is one.
        is_denied: whether a permission is missing.
    """

    answer: Any
    code: str = ""
    reason: str = ""
    is_denied: bool = False


async def ask(request: Awaitable[Any]) -> Reply:
    """Ask a question that a store may refuse, not support, or answer with anything."""
    try:
        return Reply(await request)
    except ClientError as error:
        code, status, reason = refusal(error)
        return Reply({}, code, reason, status in {401, 403})
    except NO_ANSWER as error:
        return Reply({}, reason=unreachable(error))
    except ValueError as error:
        # For example text where a number or a date is expected.
        return Reply({}, reason=f"{UNREADABLE}: {error}")


async def unbroken(request: Coroutine[Any, Any, Any]) -> Any:
    """Wait for a request; on cancellation, wait a few more seconds for it.

    The server may process a cancelled PUT after its object was deleted, and then the object would stay.
    """
    task = asyncio.create_task(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait({task}, timeout=_GRACE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise
