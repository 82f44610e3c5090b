"""Checks by presigned GETs whether browsers let pages of other origins read an overlay (CORS)."""

from __future__ import annotations

import os
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from anyio import to_thread
from yarl import URL

from async_maps.doctor.advice import put_cors_command
from async_maps.doctor.finding import Finding
from async_maps.doctor.target import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from types_aiobotocore_s3 import S3Client

_TIMEOUT_S = 8.0
_URL_LASTS_S = 60


async def readable_from(client: S3Client, bucket: str, key: str, origins: Sequence[str]) -> Finding:
    """Check whether pages of these origins may read the object.

    A plain GET needs no preflight. The browser gives the answer to the page if its Access-Control-Allow-Origin is the
    page's origin or ``*`` (Fetch standard, "CORS check").
    """
    url = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, _URL_LASTS_S)
    try:
        answers = await _get_from(url, origins)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        # Not its text, which may contain the URL with the session token.
        return Finding("browser", "unknown", f"no answer to a presigned GET ({type(error).__name__})",
                       "check the proxies and certificates (AWS_CA_BUNDLE) between here and the store")  # fmt: skip
    refused = next((status for status, _ in answers.values() if status != 200), None)
    if refused is not None:
        return Finding("browser", "failure", f"a presigned GET is refused ({refused}): browsers cannot read overlays",
                       "allow s3:GetObject to the role that presigns; Kolena uses its integration's")  # fmt: skip
    may = [origin for origin, (_, allowed) in answers.items() if allowed in {origin, "*"}]
    denied = [origin for origin in origins if origin not in may]
    if not denied:
        return Finding("browser", "ok", f"pages of {' and '.join(may)} may read overlays")
    text = f"pages of {' and '.join(denied)} may not read overlays: no Access-Control-Allow-Origin for them"
    if may:
        text += f"; those of {' and '.join(may)} may"
    reply = await ask(client.get_bucket_cors(Bucket=bucket))
    rules = reply.answer.get("CORSRules", [])
    keeps = "this keeps the bucket's existing rules" if rules else "the bucket has no rules yet"
    if reply.is_denied:
        keeps = "this replaces all existing rules, because there is no permission to read them (s3:GetBucketCORS)"
    elif reply.reason and reply.code != "NoSuchCORSConfiguration":
        keeps = f"this replaces all existing rules, which cannot be read: GetBucketCors is {reply.reason}"
    advice = f"allow these origins; {keeps}:\n{put_cors_command(bucket, rules, denied)}"
    return Finding("browser", "warning" if may else "failure", text, advice)


async def status_of(url: str) -> int:
    """Return the status of the answer to a GET.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: there is no answer.
    """
    async with _session() as web, web.get(URL(url, encoded=True)) as answer:
        return answer.status


async def _get_from(url: str, origins: Sequence[str]) -> dict[str, tuple[int, str | None]]:
    answers = {}
    async with _session() as web:
        for origin in origins:
            async with web.get(URL(url, encoded=True), headers={"Origin": origin}) as answer:
                answers[origin] = answer.status, answer.headers.get("Access-Control-Allow-Origin")
    return answers


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session with the same certificates as botocore uses."""
    authorities = os.environ.get("AWS_CA_BUNDLE")
    trusted = await to_thread.run_sync(lambda: ssl.create_default_context(cafile=authorities))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted), timeout=aiohttp.ClientTimeout(_TIMEOUT_S), trust_env=True
    ) as web:
        yield web
