"""A small object of ours: is it taken, given back, replaced, left where it is to be left, and removed?"""

from __future__ import annotations

import asyncio
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio import move_on_after
from botocore.exceptions import ClientError

from async_maps.doctor.advice import for_code, iam_policy
from async_maps.doctor.pngs import tiny_png
from async_maps.doctor.target import unbroken
from async_maps.filesystems.aws import STORE_CODES, refusal, unreachable
from async_maps.stores.s3 import NO_ANSWER, crc32, object_headers

if TYPE_CHECKING:
    from async_maps.doctor.finding import Level
    from async_maps.doctor.target import Target

_CLEAN_UP_S = 10.0


class ProbeObject:
    """An object that is written to see what becomes of it, and the others that were written beside it.

    Attributes:
        versioned: whether the bucket has given it a version.
        encryption: what the bucket has said of its encryption.
    """

    def __init__(self, target: Target) -> None:
        self.key = f"{target.stem}.png"
        self.versioned = False
        self.encryption = ""
        self._target = target
        self._client = target.client
        self._may_exist: set[str] = set()
        self._overwrites = target.settings.if_exists == "overwrite"

    def sibling(self, number: int) -> str:
        """The key of another object, which is removed with this one."""
        key = f"{self._target.stem}-{number}.png"
        self._may_exist.add(key)
        return key

    async def write(self) -> bool:
        """Whether it is there now."""
        try:
            answer = await self._put(tiny_png(self._target.settings))
        except ClientError as error:
            code, status, reason = refusal(error)
            if status < 500:
                self._may_exist.clear()
            advice = self._needed(reason) if status in {401, 403} and code not in STORE_CODES else for_code(code)
            self._target.say("write", "failure", f"PutObject is {reason}", advice)
            return False
        self.versioned = "VersionId" in answer
        self.encryption = answer.get("ServerSideEncryption", "")
        self._target.say("write", "ok", f"{self._target.url} takes objects")
        return True

    async def read(self) -> bool:
        """Whether it can be read."""
        say, useless = self._target.say, "do not use that store"
        try:
            data, content_type = await self._get()
        except ClientError as error:
            _, status, reason = refusal(error)
            if status == 403:
                kms = ", and kms:Decrypt for its key" if "kms" in f"{reason} {self.encryption}".lower() else ""
                say("read back", "warning", f"GetObject is {reason}",
                    f"allow s3:GetObject, for --if-exists skip, async-maps verify and readers{kms}")  # fmt: skip
            else:
                say("read back", "failure", f"what was written does not come back: GetObject is {reason}", useless)
            return False
        if data == tiny_png(self._target.settings):
            say("read back", "ok", "the same bytes come back")
        else:
            say("read back", "failure", "other bytes come back than were written", useless)
        if content_type == "image/png":
            say("content type", "ok", "it comes back as image/png")
        else:
            say("content type", "warning", f"it comes back as {content_type or 'nothing'}, not as image/png",
                "see what lies between here and the store: browsers go by it")  # fmt: skip
        return True

    async def overwrite(self) -> None:
        """Whether it can be replaced, and is at once."""
        turned = tiny_png(self._target.settings, turned=True)
        try:
            await self._put(turned)
            data, _ = await self._get()
        except ClientError as error:
            level: Level = "failure" if self._overwrites else "warning"
            self._target.say("overwrite", level, f"a second {error.operation_name} is {refusal(error)[2]}",
                             "a run that is repeated overwrites; see the bucket's policy and object lock")  # fmt: skip
            return
        if data == turned:
            self._target.say("overwrite", "ok", "an object is replaced at once")
        else:
            self._target.say("overwrite", "warning", "the old object comes back after it was replaced",
                             "a cache lies between; a key with {digest} changes when the map does")  # fmt: skip

    async def create_only(self) -> None:
        """Whether it is left where only a new object may be made."""
        level: Level = "warning" if self._overwrites else "failure"
        found = "the store ignores If-None-Match: --if-exists skip and error cannot be relied on"
        try:
            await self._put(tiny_png(self._target.settings), create_only=True)
        except ClientError as error:
            _, status, reason = refusal(error)
            if status == 412:
                self._target.say("create only", "ok", "an object that is there can be left: --if-exists skip and error")
                return
            found = f"a PUT with If-None-Match is {reason}"
        self._target.say("create only", level, found, "use --if-exists overwrite")

    async def remove(self) -> bool:
        """Whether all that was written is gone now; it is removed even if this task is cancelled."""
        if not self._may_exist:
            return True
        reason = "not removed in time"
        with move_on_after(_CLEAN_UP_S, shield=True):
            reason = await self._try_to_remove()
        self._may_exist.clear()
        if reason:
            self._say_left(reason)
        return not reason

    async def _try_to_remove(self) -> str:
        """Why something is left, if it is."""
        try:
            await self._delete(versions=self.versioned)
        except ClientError as error:
            if self.versioned:
                # So that at least no reader sees them.
                with suppress(ClientError, *NO_ANSWER):
                    await self._delete(versions=False)
            return f"{error.operation_name} is {refusal(error)[2]}"
        except NO_ANSWER as error:
            return unreachable(error)
        return ""

    async def _delete(self, *, versions: bool) -> None:
        objects: list[dict[str, Any]] = [{"Key": key} for key in self._may_exist]
        if versions:
            pages = self._client.get_paginator("list_object_versions")
            objects = [
                {"Key": one["Key"], "VersionId": one["VersionId"]}
                async for page in pages.paginate(Bucket=self._target.bucket, Prefix=self._target.stem)
                for one in (*page.get("Versions", []), *page.get("DeleteMarkers", []))
            ]
        requests = (self._client.delete_object(Bucket=self._target.bucket, **one) for one in objects)
        # All are waited for before the first error is raised.
        for result in await asyncio.gather(*requests, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _say_left(self, reason: str) -> None:
        text = f"what was written is left, s3://{self._target.bucket}/{self._target.stem}*: {reason}"
        advice = "runs delete nothing, but this does: allow "
        if self.versioned:
            advice += "s3:DeleteObjectVersion and s3:ListBucketVersions; old versions go by a lifecycle rule with "
            advice += "NoncurrentVersionExpiration, locked ones when their lock ends"
        else:
            folder = f"{self._target.url}/" if self._target.prefix else self._target.url
            advice += "s3:DeleteObject, or remove it:\n"
            advice += f"aws s3 rm {shlex.quote(folder)} --recursive --exclude '*' --include '{self._target.mark}*'"
        self._target.say("delete", "warning", text, advice)

    async def _put(self, data: bytes, *, create_only: bool = False) -> Any:
        self._may_exist.add(self.key)
        headers = object_headers(self._target.settings.s3, create_only=create_only)
        request = self._client.put_object(
            Bucket=self._target.bucket, Key=self.key, Body=data, ChecksumCRC32=crc32(data), **headers
        )
        return await unbroken(request)

    async def _get(self) -> tuple[bytes, str]:
        answer = await self._client.get_object(Bucket=self._target.bucket, Key=self.key)
        return await answer["Body"].read(), answer.get("ContentType", "")

    def _needed(self, reason: str) -> str:
        """What to allow."""
        s3 = self._target.settings.s3
        kms = s3.kms_key_id or ("*" if "kms" in f"{reason} {s3.server_side_encryption}".lower() else None)
        partition = self._client.meta.partition
        policy = iam_policy(self._target.bucket, self._target.prefix, partition=partition, kms_key=kms)
        of_kms = ", kms:GenerateDataKey, kms:Decrypt" if kms else ""
        return f"allow s3:PutObject, and s3:GetObject, s3:DeleteObject, s3:ListBucket{of_kms} for the rest:\n{policy}"
