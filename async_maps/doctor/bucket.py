"""Checks of the bucket: existence, region, clock, listing, versioning and encryption."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from async_maps.doctor.advice import for_code
from async_maps.doctor.clock import compare_clocks
from async_maps.doctor.target import Reply, ask
from async_maps.filesystems.aws import refusal
from async_maps.filesystems.blame import judge, meaning
from async_maps.filesystems.endpoints import missing_bucket

if TYPE_CHECKING:
    from async_maps.doctor.target import Target

_SKEW_REFUSED_S = 900.0
"""RequestTimeTooSkewed comes after 15 minutes (Amazon S3 API reference, "Error responses")."""
_ASK = "see the store's documentation, or ask its operator"


async def find_bucket(target: Target) -> bool:
    """Check the bucket and the clock; return whether further checks make sense.

    Raises:
        ClientError: the refusal may be temporary.
    """
    reply, reason = Reply({}), ""
    asked_at = datetime.now(UTC)
    try:
        answer: Any = await target.client.head_bucket(Bucket=target.bucket)
    except ClientError as error:
        answer = error.response
        _, status, _ = refusal(error)
        if judge(error).retry:
            raise
        # The answer to HEAD has no body, so no error code: find it by another request.
        reply = Reply({}, "NoSuchBucket") if status == 404 else await _list(target)
        reason = missing_bucket(target.client.meta.endpoint_url) if status == 404 else meaning(reply.code)
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    skewed = for_code("RequestTimeTooSkewed")
    target.on_finding(compare_clocks(headers.get("date", ""), asked_at, skewed, _limits))
    region, ours = headers.get("x-amz-bucket-region", ""), target.client.meta.region_name
    where = f" in {region}" if region else ""
    if reason:
        is_plain = ":" not in target.bucket
        create = f"create it: aws s3 mb s3://{target.bucket}" if is_plain else "check its name, and the region in it"
        advice = create if reply.code == "NoSuchBucket" else for_code(reply.code)
        target.say("bucket", "failure", f"{target.bucket}{where}: {reason}", advice)
    elif reply.is_denied:
        # Credentials that may only write objects get this answer.
        target.say("bucket", "unknown", f"no permission to check {target.bucket}{where} ({reply.code})",
                   "allow s3:ListBucket")  # fmt: skip
    elif reply.reason:
        target.say("bucket", "unknown", f"{target.bucket}{where} cannot be checked: {_said(reply)}", _ASK)
    elif region and region != ours:
        target.say("bucket", "warning", f"{target.bucket} is in {region}, but this machine is set to {ours}",
                   f"set AWS_DEFAULT_REGION={region} to avoid redirects")  # fmt: skip
    else:
        target.say("bucket", "ok", f"{target.bucket} exists{where}")
    return not reason


async def _list(target: Target) -> Reply:
    # With a slash at its end, as directory buckets of S3 Express demand.
    prefix = f"{target.prefix}/" if target.prefix else ""
    return await ask(target.client.list_objects_v2(Bucket=target.bucket, Prefix=prefix, MaxKeys=1))


def _said(reply: Reply) -> str:
    return f"the request is {reply.reason}" if reply.code else reply.reason


def _limits(ahead_s: float) -> str:
    corrected = "; commands then sign with the store's time" if abs(ahead_s) >= _SKEW_REFUSED_S else ""
    return f"; S3 allows 15{corrected}"


async def check_listing(target: Target) -> None:
    """Check whether objects below the prefix can be listed."""
    reply = await _list(target)
    if reply.is_denied:
        target.say("list", "warning", f"no permission to list objects ({reply.code})",
                   "allow s3:ListBucket, for async-maps verify")  # fmt: skip
    elif reply.reason:
        target.say("list", "warning", f"objects cannot be listed: {_said(reply)}",
                   "async-maps verify needs ListObjectsV2; see the store's documentation")  # fmt: skip
    else:
        target.say("list", "ok", "objects can be listed")


async def check_versioning(target: Target, *, seen: bool) -> None:
    """Check whether old versions are kept; ``seen`` if an upload got a version id."""
    reply = await ask(target.client.get_bucket_versioning(Bucket=target.bucket))
    if reply.answer.get("Status") == "Enabled" or (reply.reason and seen):
        target.say("versioning", "warning", "on: overwritten overlays are kept as old versions, which cost storage",
                   "add a lifecycle rule with NoncurrentVersionExpiration")  # fmt: skip
    elif reply.is_denied:
        target.say("versioning", "unknown", f"no permission to check ({reply.code})", "allow s3:GetBucketVersioning")
    elif reply.reason:
        target.say("versioning", "unknown", f"the store does not say: {_said(reply)}", _ASK)
    else:
        target.say("versioning", "ok", "off")


async def check_encryption(target: Target, *, seen: str) -> None:
    """Check the encryption of objects, by the answer to an upload (``seen``), else by the bucket's default."""
    kind, reply = seen, Reply({})
    if not kind:
        reply = await ask(target.client.get_bucket_encryption(Bucket=target.bucket))
        rules = reply.answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules]
        kind = next(filter(None, defaults), "none")
    if reply.is_denied:
        target.say("encryption", "unknown", f"no permission to check ({reply.code})",
                   "allow s3:GetEncryptionConfiguration")  # fmt: skip
    elif reply.reason and reply.code != "ServerSideEncryptionConfigurationNotFoundError":
        target.say("encryption", "unknown", f"the store does not say: {_said(reply)}", _ASK)
    elif kind.startswith("aws:kms"):
        target.say("encryption", "warning", f"{kind}: ETags are not MD5s, and readers of overlays need the key",
                   "allow kms:Decrypt for that key to Kolena's integration and other readers")  # fmt: skip
    else:
        target.say("encryption", "ok", {"AES256": "with keys of S3 (AES256)"}.get(kind, kind))
