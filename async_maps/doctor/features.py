"""Asks what a server honors of S3, beyond what a run needs, so that servers can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from async_maps.doctor.browser import status_of
from async_maps.doctor.finding import Finding
from async_maps.doctor.target import Reply, ask
from async_maps.stores.headers import crc32, md5

if TYPE_CHECKING:
    from async_maps.doctor.probe import ProbeObject
    from async_maps.doctor.target import Target

_DATA = b"of the doctor"
_ODD = {"odd keys": "a b+c%41&=;'<é", "backslash in keys": "a\\b"}
"""Characters that are special in URLs, XML or paths."""
_NO_RULES = {"NoSuchCORSConfiguration", "NoSuchLifecycleConfiguration"}
_URL_LASTS_S = 60


async def find_features(target: Target, probe: ProbeObject) -> Finding:
    """Ask which features the server honors: "yes", "no", "refused", or "unknown" if it did not answer.

    ``probe`` is an object that could be written, read and deleted.
    """
    found, key = dict(probe.features), probe.sibling(1)
    await ask(probe.put(key, _DATA))
    found["wrong CRC32 refused"] = await _refuses(probe, ChecksumCRC32=crc32(b"other")) if probe.takes_crc32 else "no"
    found["wrong MD5 refused"] = await _refuses(probe, ContentMD5=md5(b"other"))
    found["wrong signature refused"] = await _refuses_signature(target, key)
    found["encryption answered"] = await _answers_encryption(probe)
    found["range"] = await _knows_ranges(target, key)
    for name, odd in _ODD.items():
        found[name] = await _lists_key(target, probe, odd)
    bucket = target.bucket
    found["CORS rules"] = _is_supported(await ask(target.client.get_bucket_cors(Bucket=bucket)))
    lifecycle = target.client.get_bucket_lifecycle_configuration(Bucket=bucket)
    found["lifecycle rules"] = _is_supported(await ask(lifecycle))
    honored = [name for name, answer in found.items() if answer == "yes"]
    others = [f"{name} ({answer})" for name, answer in found.items() if answer != "yes"]
    text = f"{len(honored)} of {len(found)}" + (f"; not: {', '.join(others)}" if others else "")
    return Finding("features", "ok", text, features=found)


async def _refuses(probe: ProbeObject, **wrong: str) -> str:
    """Whether a PUT with a wrong checksum is refused."""
    reply = await ask(probe.put(probe.sibling(0), _DATA, **wrong))
    return "yes" if reply.code else "unknown" if reply.reason else "no"


async def _refuses_signature(target: Target, key: str) -> str:
    url = await target.client.generate_presigned_url("get_object", {"Bucket": target.bucket, "Key": key}, _URL_LASTS_S)
    wrong = f"{url[:-1]}{'0' if url[-1] != '0' else '1'}"
    try:
        good, bad = [await status_of(each) for each in (url, wrong)]
    except (aiohttp.ClientError, OSError, TimeoutError):
        return "unknown"
    return "no" if bad == 200 else "yes" if (good, bad // 100) == (200, 4) else "unknown"


async def _answers_encryption(probe: ProbeObject) -> str:
    reply = await ask(probe.put(probe.sibling(0), _DATA, ServerSideEncryption="AES256"))
    if reply.reason:
        return "refused" if reply.code else "unknown"
    return "yes" if reply.answer.get("ServerSideEncryption") == "AES256" else "no"


async def _knows_ranges(target: Target, key: str) -> str:
    reply = await ask(target.client.get_object(Bucket=target.bucket, Key=key, Range="bytes=1-2"))
    if reply.reason:
        return "refused" if reply.code else "unknown"
    reply.answer["Body"].close()
    is_part = reply.answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    return "yes" if is_part and reply.answer.get("ContentLength", 2) == 2 else "no"


async def _lists_key(target: Target, probe: ProbeObject, odd: str) -> str:
    """Whether a key with these characters is listed as it was put."""
    key = probe.add(f"-{odd}.png")
    if (reply := await ask(probe.put(key, _DATA))).reason:
        return "refused" if reply.code else "unknown"
    listed = await ask(target.client.list_objects_v2(Bucket=target.bucket, Prefix=target.stem))
    if listed.reason:
        return "unknown"
    return "yes" if key in {entry.get("Key") for entry in listed.answer.get("Contents", [])} else "no"


def _is_supported(reply: Reply) -> str:
    if not reply.reason or reply.code in _NO_RULES:
        return "yes"
    return "unknown" if reply.is_denied or not reply.code else "no"
