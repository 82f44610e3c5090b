"""The bucket itself: is it there and where, is the clock right, and how does it keep what it is given?"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from async_maps.doctor.advice import for_code
from async_maps.doctor.target import ask
from async_maps.filesystems.aws import STORE_CODES, TRANSIENT_STATUSES, refusal

if TYPE_CHECKING:
    from async_maps.doctor.finding import Level
    from async_maps.doctor.target import Target

_SKEW_REFUSED_S = 900.0
"""RequestTimeTooSkewed comes after 15 minutes (Amazon S3 API reference, "Error responses")."""
_SKEW_NOTED_S = 60.0


async def find_bucket(target: Target) -> bool:
    """Ask for the bucket; whether it makes sense to go on.

    Raises:
        ClientError: a refusal that may pass.
    """
    code, reason = "", ""
    asked_at = datetime.now(UTC)
    try:
        answer: Any = await target.client.head_bucket(Bucket=target.bucket)
    except ClientError as error:
        answer = error.response
        _, status, _ = refusal(error)
        if status in TRANSIENT_STATUSES:
            raise
        # An answer to HEAD has no body, so no code.
        code = "NoSuchBucket" if status == 404 else await _why(target)
        reason = STORE_CODES.get(code, "")
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    _compare_clocks(target, headers.get("date", ""), asked_at)
    region, ours = headers.get("x-amz-bucket-region", ""), target.client.meta.region_name
    where = f" in {region}" if region else ""
    if reason:
        create = f"create it: aws s3 mb s3://{target.bucket}"
        advice = create if code == "NoSuchBucket" else for_code(code)
        target.say("bucket", "failure", f"{target.bucket}{where}: {reason}", advice)
    elif code:
        # Whoever may only write objects is told so.
        target.say("bucket", "unknown", f"{target.bucket}{where} may not be asked for ({code})",
                   "allow s3:ListBucket")  # fmt: skip
    elif region and region != ours:
        target.say("bucket", "warning", f"{target.bucket} lies in {region}, and this machine asks {ours}",
                   f"set AWS_DEFAULT_REGION={region}: requests are redirected meanwhile")  # fmt: skip
    else:
        target.say("bucket", "ok", f"{target.bucket} is there{where}")
    return not reason


async def _why(target: Target) -> str:
    """The code behind a refusal of HeadBucket; empty if listing is allowed."""
    return (await ask(target.client.list_objects_v2(Bucket=target.bucket, Prefix=target.stem, MaxKeys=1)))[1]


def _compare_clocks(target: Target, date: str, asked_at: datetime) -> None:
    """The Date of an answer, in whole seconds, with the moment between request and answer."""
    now = datetime.now(UTC)
    try:
        ahead_s = (asked_at + (now - asked_at) / 2 - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        target.say("clock", "unknown", "the store does not say what time it is")
        return
    if abs(ahead_s) < _SKEW_NOTED_S:
        target.say("clock", "ok", "within a minute of the store's")
        return
    text = f"{abs(ahead_s) / 60:.0f} min {'ahead of' if ahead_s > 0 else 'behind'} the store's; S3 allows 15"
    level: Level = "failure" if abs(ahead_s) >= _SKEW_REFUSED_S else "warning"
    target.say("clock", level, text, for_code("RequestTimeTooSkewed"))


async def check_listing(target: Target) -> None:
    """Whether objects can be listed below the prefix."""
    code = await _why(target)
    if code:
        target.say("list", "warning", f"objects may not be listed ({code})",
                   "allow s3:ListBucket, for async-maps verify")  # fmt: skip
    else:
        target.say("list", "ok", "objects can be listed")


async def check_versioning(target: Target, *, seen: bool) -> None:
    """Whether what is overwritten stays; it does if an object that was put has been seen to get a version."""
    answer, code = await ask(target.client.get_bucket_versioning(Bucket=target.bucket))
    if answer.get("Status") == "Enabled" or (code and seen):
        target.say("versioning", "warning", "on: overlays that are overwritten stay as old versions, and cost",
                   "add a lifecycle rule with NoncurrentVersionExpiration")  # fmt: skip
    elif code:
        target.say("versioning", "unknown", f"may not be asked for ({code})", "allow s3:GetBucketVersioning")
    else:
        target.say("versioning", "ok", "off")


async def check_encryption(target: Target, *, seen: str) -> None:
    """How objects are encrypted: as the answer to a PUT was seen to say, else as the bucket does by default."""
    kind, code = seen, ""
    if not kind:
        answer, code = await ask(target.client.get_bucket_encryption(Bucket=target.bucket))
        rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        kind = next((rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] for rule in rules), "none")
    if code not in {"", "ServerSideEncryptionConfigurationNotFoundError"}:
        target.say("encryption", "unknown", f"may not be asked for ({code})", "allow s3:GetEncryptionConfiguration")
    elif kind.startswith("aws:kms"):
        target.say("encryption", "warning", f"{kind}: ETags are no MD5, and who reads overlays needs the key",
                   "allow kms:Decrypt for that key to Kolena's integration and other readers")  # fmt: skip
    else:
        target.say("encryption", "ok", {"AES256": "with keys of S3 (AES256)"}.get(kind, kind))
