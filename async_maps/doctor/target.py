"""The bucket that is looked at, the keys below its prefix that are used for it, and requests to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import CancelScope
from botocore.exceptions import ClientError

from async_maps.doctor.finding import Finding
from async_maps.filesystems.aws import refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from types_aiobotocore_s3 import S3Client

    from async_maps.doctor.finding import Level, OnFinding
    from async_maps.settings import Settings

_PATIENCE_S = 5.0


class Target(NamedTuple):
    """What every check of S3 needs; only the names of our own objects start with the mark."""

    client: S3Client
    bucket: str
    prefix: str
    mark: str
    settings: Settings
    on_finding: OnFinding

    @property
    def stem(self) -> str:
        """What the keys of our objects start with."""
        return f"{self.prefix}/{self.mark}" if self.prefix else self.mark

    @property
    def url(self) -> str:
        """The destination."""
        return f"s3://{self.bucket}/{self.prefix}"

    def say(self, check: str, level: Level, text: str, advice: str = "") -> None:
        """Report a finding."""
        self.on_finding(Finding(check, level, text, advice))


async def ask(request: Awaitable[Any]) -> tuple[Any, str]:
    """The answer and no code, or no answer and the code of the refusal."""
    try:
        return await request, ""
    except ClientError as error:
        return {}, refusal(error)[0]


async def unbroken(request: Coroutine[Any, Any, Any]) -> Any:
    """Wait for the request; who is cancelled meanwhile still waits for it, if it does not take long.

    A PUT that is broken off may arrive after its object was removed, and then it stays.
    """
    task = asyncio.create_task(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait({task}, timeout=_PATIENCE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise
