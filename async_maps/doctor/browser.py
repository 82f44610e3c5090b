"""Would a browser let a page of another origin read an overlay? A presigned GET with Origin tells."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from anyio import to_thread
from botocore.exceptions import ClientError
from yarl import URL

from async_maps.doctor.advice import put_cors_command
from async_maps.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from types_aiobotocore_s3 import S3Client

_TIMEOUT_S = 8.0
_URL_LASTS_S = 60


class _Answer(NamedTuple):
    status: int
    allowed: str | None


async def readable_from(client: S3Client, bucket: str, key: str, origins: Sequence[str]) -> Finding:
    """Whether pages of these origins may read the object.

    No preflight precedes a plain GET; the browser hands the answer to the page if its Access-Control-Allow-Origin is
    the page's own origin or ``*`` (Fetch standard, "CORS check").

    Raises:
        BotoCoreError: no URL can be made.
    """
    url = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, _URL_LASTS_S)
    try:
        answers = await _ask(url, origins)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        # Not its text: the URL may be in it, and in that the session token.
        return Finding("browser", "unknown", f"no answer to a presigned GET, without the SDK ({type(error).__name__})",
                       "see what lies between here and the store: proxies, certificates (AWS_CA_BUNDLE)")  # fmt: skip
    refused = next((answer.status for answer in answers.values() if answer.status != 200), None)
    if refused is not None:
        return Finding("browser", "failure", f"a presigned GET is answered with {refused}: nobody can read overlays so",
                       "allow s3:GetObject to those who presign; Kolena does it with its own integration")  # fmt: skip
    may = [origin for origin, answer in answers.items() if answer.allowed in {origin, "*"}]
    denied = [origin for origin in origins if origin not in may]
    if not denied:
        return Finding("browser", "ok", f"pages of {' and '.join(may)} may read overlays")
    text = f"pages of {' and '.join(denied)} may not read overlays: no Access-Control-Allow-Origin for them"
    if may:
        text += f"; those of {' and '.join(may)} may"
    rules = await _rules(client, bucket)
    keeps = "this keeps the rules that are there" if rules else "the bucket has no rules of its own yet"
    if rules is None:
        keeps = "this replaces whatever rules are there, which may not be read (s3:GetBucketCORS)"
    advice = f"let them in; {keeps}:\n{put_cors_command(bucket, rules or [], denied)}"
    return Finding("browser", "warning" if may else "failure", text, advice)


async def _ask(url: str, origins: Sequence[str]) -> dict[str, _Answer]:
    # As botocore does for its own requests.
    authorities = os.environ.get("AWS_CA_BUNDLE")
    trusted = await to_thread.run_sync(lambda: ssl.create_default_context(cafile=authorities))
    answers = {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted), timeout=aiohttp.ClientTimeout(_TIMEOUT_S), trust_env=True
    ) as web:
        for origin in origins:
            async with web.get(URL(url, encoded=True), headers={"Origin": origin}) as answer:
                answers[origin] = _Answer(answer.status, answer.headers.get("Access-Control-Allow-Origin"))
    return answers


async def _rules(client: S3Client, bucket: str) -> list[Any] | None:
    """The bucket's CORS rules; None if they may not be read."""
    try:
        return list((await client.get_bucket_cors(Bucket=bucket))["CORSRules"])
    except ClientError as error:
        return [] if error.response["Error"]["Code"] == "NoSuchCORSConfiguration" else None
