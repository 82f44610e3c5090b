"""Would a browser let a page of another origin read an overlay? A presigned GET with Origin tells."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import aiohttp
from anyio import to_thread
from yarl import URL

from async_maps.doctor.advice import put_cors_command
from async_maps.doctor.finding import Finding
from async_maps.doctor.target import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from types_aiobotocore_s3 import S3Client

_TIMEOUT_S = 8.0
_URL_LASTS_S = 60


async def readable_from(client: S3Client, bucket: str, key: str, origins: Sequence[str]) -> Finding:
    """Whether pages of these origins may read the object.

    No preflight precedes a plain GET; the browser hands the answer to the page if its Access-Control-Allow-Origin is
    the page's own origin or ``*`` (Fetch standard, "CORS check").
    """
    url = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, _URL_LASTS_S)
    try:
        answers = await _get_from(url, origins)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        # Not its text: the URL may be in it, and in that the session token.
        return Finding("browser", "unknown", f"no answer to a presigned GET, without the SDK ({type(error).__name__})",
                       "see what lies between here and the store: proxies, certificates (AWS_CA_BUNDLE)")  # fmt: skip
    refused = next((status for status, _ in answers.values() if status != 200), None)
    if refused is not None:
        return Finding("browser", "failure", f"a presigned GET is answered with {refused}: nobody can read overlays so",
                       "allow s3:GetObject to those who presign; Kolena does it with its own integration")  # fmt: skip
    may = [origin for origin, (_, allowed) in answers.items() if allowed in {origin, "*"}]
    denied = [origin for origin in origins if origin not in may]
    if not denied:
        return Finding("browser", "ok", f"pages of {' and '.join(may)} may read overlays")
    text = f"pages of {' and '.join(denied)} may not read overlays: no Access-Control-Allow-Origin for them"
    if may:
        text += f"; those of {' and '.join(may)} may"
    answer, code = await ask(client.get_bucket_cors(Bucket=bucket))
    rules = answer.get("CORSRules", [])
    keeps = "this keeps the rules that are there" if rules else "the bucket has no rules of its own yet"
    if code not in {"", "NoSuchCORSConfiguration"}:
        keeps = "this replaces whatever rules are there, which may not be read (s3:GetBucketCORS)"
    advice = f"let them in; {keeps}:\n{put_cors_command(bucket, rules, denied)}"
    return Finding("browser", "warning" if may else "failure", text, advice)


async def _get_from(url: str, origins: Sequence[str]) -> dict[str, tuple[int, str | None]]:
    """The status, and the origin that is allowed, by the origin of the page that asks."""
    # As botocore does for its own requests.
    authorities = os.environ.get("AWS_CA_BUNDLE")
    trusted = await to_thread.run_sync(lambda: ssl.create_default_context(cafile=authorities))
    answers = {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted), timeout=aiohttp.ClientTimeout(_TIMEOUT_S), trust_env=True
    ) as web:
        for origin in origins:
            async with web.get(URL(url, encoded=True), headers={"Origin": origin}) as answer:
                answers[origin] = answer.status, answer.headers.get("Access-Control-Allow-Origin")
    return answers
