"""Checks with a small object: write, read, overwrite, create only and delete."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio import move_on_after
from botocore.exceptions import ClientError

from async_maps.doctor.advice import actions_of_headers, for_code, iam_policy
from async_maps.doctor.pngs import tiny_png
from async_maps.doctor.target import unbroken, with_short_limits
from async_maps.filesystems.aws import refusal, unreachable
from async_maps.filesystems.blame import judge, meaning
from async_maps.filesystems.endpoints import is_aws
from async_maps.filesystems.http_session import read_body
from async_maps.filesystems.time_limits import TimeLimits
from async_maps.stores.headers import (
    STORAGE_CLASS,
    advice_for,
    asked_headers,
    crc32,
    is_kept,
    may_refuse_header,
    md5,
    not_kept,
    object_headers,
    refused_crc32,
    unknown_storage_class,
)
from async_maps.stores.promises import (
    ALLOW_PROOF,
    ALLOW_READING,
    IGNORES_CONDITION,
    OPAQUE_ETAGS,
    OVERWRITE,
    UNPROVED_CONDITION,
    UNREAD,
)
from async_maps.stores.s3 import NO_ANSWER, Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_maps.doctor.finding import Level
    from async_maps.doctor.target import Target
    from async_maps.filesystems.verdict import Verdict

_CLEAN_UP_S = 10.0


class ProbeObject:
    """The object that the checks write, and its siblings for the throughput.

    Attributes:
        versioned: whether the object got a version id.
        encryption: the server-side encryption of the object, according to the answer.
        takes_crc32: whether the store accepts the header ``x-amz-checksum-crc32``.
        features: what the checks have found of the features of the server.
    """

    def __init__(self, target: Target) -> None:
        self.key = f"{target.stem}.png"
        self.versioned = False
        self.encryption = ""
        self._target = target
        self._client = target.client
        self.takes_crc32 = True
        self.features: dict[str, str] = {}
        self._may_exist: set[str] = set()
        self._overwrites = target.settings.if_exists == "overwrite"
        self._answer: Mapping[str, str] = {}

    def sibling(self, number: int) -> str:
        """Return the key of another object, which is deleted with this one."""
        return self.add(f"-{number}.png")

    def add(self, end: str) -> str:
        """Return the key of another object by its end."""
        key = f"{self._target.stem}{end}"
        self._may_exist.add(key)
        return key

    async def write(self) -> bool:
        """Check that the object can be written; return whether it was."""
        try:
            answer = await self._put_first(tiny_png(self._target.settings))
        except ClientError as error:
            code, status, reason = refusal(error)
            if status < 500:
                self._may_exist.clear()
            advice = self._needed(reason) if status in {401, 403} and not meaning(code) else for_code(code)
            self._target.say("write", "failure", f"PutObject is {reason}", advice)
            return False
        self.versioned = "VersionId" in answer
        self.encryption = answer.get("ServerSideEncryption", "")
        self._answer = answer["ResponseMetadata"]["HTTPHeaders"]
        self._target.say("write", "ok", f"{self._target.url} is writable")
        return True

    async def _put_first(self, data: bytes) -> Any:
        try:
            return await self._put(data)
        except ClientError as error:
            if not may_refuse_header(error):
                raise
            refused = error
        self.takes_crc32 = False
        try:
            answer = await self._put(data)
        except ClientError:
            self.takes_crc32 = True
            raise refused from None
        self._target.say("checksum", "warning", refused_crc32(judge(refused).reason), "a run does the same")
        return answer

    async def kept_headers(self) -> None:
        """Check that the store keeps the encryption and the storage class that the settings ask for."""
        asked = asked_headers(object_headers(self._target.settings.s3))
        # The storage class is not in the answer to a PUT.
        lacking = [name for name, value in asked.items() if not is_kept(name, value, self._answer.get(name))]
        if lacking:
            try:
                head = await self._client.head_object(Bucket=self._target.bucket, Key=self.key)
            except ClientError as error:
                self._say_unlooked(lacking[0], asked[lacking[0]], judge(error))
                return
            headers = head["ResponseMetadata"]["HTTPHeaders"]
            for name in lacking:
                if not is_kept(name, asked[name], headers.get(name)):
                    sentence = not_kept(name, asked[name], f"found {headers.get(name) or 'none'}")
                    self._target.say("kept headers", "failure", sentence, advice_for(name))
                    return
        if asked:
            self._target.say("kept headers", "ok", "the store keeps the encryption and storage class that were asked")

    def _say_unlooked(self, header: str, asked: str, verdict: Verdict) -> None:
        """Say that a header, the first one that the answer to the PUT lacks, cannot be looked up."""
        level: Level = "unknown" if verdict.retry or header == STORAGE_CLASS else "failure"
        text = f"HeadObject is {verdict.reason}"
        if header == STORAGE_CLASS:
            text = unknown_storage_class(asked, verdict.reason)
        elif not verdict.retry:
            text = not_kept(header, asked, text)
        self._target.say("kept headers", level, text, for_code(verdict.code) if verdict.retry else ALLOW_READING)

    async def read(self) -> bool:
        """Check that the object can be read, with the same bytes and content type; return whether it was."""
        say, useless = self._target.say, "do not use that store"
        try:
            data, content_type = await self._get()
        except ClientError as error:
            _, status, reason = refusal(error)
            if status == 403 and self._is_unproved(tiny_png(self._target.settings)):
                say("read back", "failure", f"{UNREAD} {reason}", ALLOW_READING)
            elif status == 403:
                kms = ", and kms:Decrypt for its key" if "kms" in f"{reason} {self.encryption}".lower() else ""
                say("read back", "warning", f"GetObject is {reason}",
                    f"allow s3:GetObject, for --if-exists skip, async-maps verify and readers{kms}")  # fmt: skip
            else:
                say("read back", "failure", f"the object that was written cannot be read: GetObject is {reason}",
                    useless)  # fmt: skip
            return False
        if data == tiny_png(self._target.settings):
            say("read back", "ok", "the object has the bytes that were written")
            self._compare_etag(data)
        else:
            say("read back", "failure", "the object has other bytes than were written", useless)
        if content_type == "image/png":
            say("content type", "ok", "image/png")
        else:
            say("content type", "warning", f"{content_type or 'none'}, not image/png",
                "browsers need it; check the proxies between here and the store")  # fmt: skip
        return True

    def _compare_etag(self, data: bytes) -> None:
        self.features["MD5 as ETag"] = "yes" if self._answered(data).has_md5 else "no"
        if self._is_unproved(data):
            self._target.say("ETags", "warning", OPAQUE_ETAGS, "compare the bytes with async-maps verify --deep")

    def _answered(self, data: bytes) -> Stored:
        return Stored(data, self._answer.get("etag", "").strip('"'), "kms" in self.encryption)

    def _is_unproved(self, data: bytes) -> bool:
        """Whether neither a checksum nor the ETag in the answer to the PUT proves these bytes."""
        answered = self._answered(data)
        has_proof = bool(self._answer.get("x-amz-checksum-crc32")) or answered.has_md5
        return not has_proof and (answered.claims_md5 or not answered.etag)

    async def overwrite(self) -> None:
        """Check that the object can be replaced, and that the next GET returns the new one."""
        turned = tiny_png(self._target.settings, turned=True)
        try:
            await self._put(turned)
            data, _ = await self._get()
        except ClientError as error:
            level: Level = "failure" if self._overwrites else "warning"
            self._target.say("overwrite", level, f"a second {error.operation_name} is {refusal(error)[2]}",
                             "repeated runs overwrite objects; check the bucket's policy and object lock")  # fmt: skip
            return
        if data == turned:
            self._target.say("overwrite", "ok", "a replaced object is visible immediately")
        else:
            self._target.say("overwrite", "warning", "a GET after the overwrite returns the old object",
                             "there is a cache; use a key with {digest}, which changes with the map")  # fmt: skip

    async def finds_new_keys(self) -> bool:
        """Check that a run can prove create-only on a key that does not exist; return whether it can."""
        if self._overwrites or is_aws(self._client.meta.endpoint_url):
            return True
        try:
            await self._client.get_object(Bucket=self._target.bucket, Key=f"{self._target.stem}-new.png")
        except ClientError as error:
            _, status, reason = refusal(error)
            if status == 403:
                self._target.say("create only", "failure", f"{UNPROVED_CONDITION} {reason}", ALLOW_PROOF)
                return False
        return True

    async def create_only(self) -> None:
        """Check that a create-only PUT does not replace the object."""
        level: Level = "warning" if self._overwrites else "failure"
        found, self.features["If-None-Match"] = IGNORES_CONDITION, "no"
        try:
            await self._put(tiny_png(self._target.settings), create_only=True)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                self._target.say("create only", "ok", "--if-exists skip and error work; a plan can lie here")
                self.features["If-None-Match"] = "yes"
                return
            self.features["If-None-Match"] = "refused"
            found = f"a PUT with If-None-Match is {judge(error).reason}"
        self._target.say("create only", level, found, OVERWRITE)

    async def remove(self, check: str = "delete") -> bool:
        """Delete all written objects, even if this task is cancelled; return whether that succeeded."""
        if not self._may_exist:
            return True
        reason = "not deleted in time"
        with move_on_after(_CLEAN_UP_S, shield=True):
            reason = await self._try_to_remove()
        self._may_exist.clear()
        if reason:
            self._say_left(check, reason)
        return not reason

    async def _try_to_remove(self) -> str:
        try:
            await self._delete(versions=self.versioned)
        except ClientError as error:
            if self.versioned:
                # A plain delete at least hides them from readers.
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
                {"Key": one["Key"], "VersionId": one.get("VersionId", "null")}
                async for page in pages.paginate(Bucket=self._target.bucket, Prefix=self._target.stem)
                for one in (*page.get("Versions", []), *page.get("DeleteMarkers", []))
                if one.get("Key", "").startswith(self._target.stem)
            ]
        requests = (self._client.delete_object(Bucket=self._target.bucket, **one) for one in objects)
        # Wait for all requests before the first error is raised.
        for result in await asyncio.gather(*requests, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _say_left(self, check: str, reason: str) -> None:
        text = f"the written objects were not deleted, s3://{self._target.bucket}/{self._target.stem}*: {reason}"
        advice = "only these checks delete objects, runs do not; allow "
        if self.versioned:
            advice += "s3:DeleteObjectVersion and s3:ListBucketVersions, or delete old versions by a lifecycle rule "
            advice += "with NoncurrentVersionExpiration; locked ones stay until their lock ends"
        else:
            folder = f"{self._target.url}/" if self._target.prefix else self._target.url
            advice += "s3:DeleteObject, or delete them:\n"
            advice += f"aws s3 rm {shlex.quote(folder)} --recursive --exclude '*' --include '{self._target.mark}*'"
        self._target.say(check, "warning", text, advice)

    async def _put(self, data: bytes, *, create_only: bool = False) -> Any:
        self._may_exist.add(self.key)
        more = {"IfNoneMatch": "*"} if create_only else {}
        checksum = {"ChecksumCRC32": crc32(data)} if self.takes_crc32 else {"ContentMD5": md5(data)}
        return await self.put(self.key, data, **checksum, **more)

    async def put(self, key: str, data: bytes, **arguments: str) -> Any:
        """Put an object as a run does, with these arguments of PutObject instead of or besides the others."""
        headers = {**object_headers(self._target.settings.s3), **arguments}
        return await unbroken(self._client.put_object(Bucket=self._target.bucket, Key=key, Body=data, **headers))

    async def _get(self) -> tuple[bytes, str]:
        answer = await self._client.get_object(Bucket=self._target.bucket, Key=self.key)
        limits = TimeLimits.of(with_short_limits(self._target.settings.s3))
        return await read_body(answer, limits), answer.get("ContentType", "")

    def _needed(self, reason: str) -> str:
        s3 = self._target.settings.s3
        kms = s3.kms_key_id or ("*" if "kms" in f"{reason} {s3.server_side_encryption}".lower() else None)
        partition = self._client.meta.partition
        more = actions_of_headers(s3)
        policy = iam_policy(self._target.bucket, self._target.prefix, partition=partition, kms_key=kms, more=more)
        of_kms = ", kms:GenerateDataKey, kms:Decrypt" if kms else ""
        puts = ", ".join(["s3:PutObject", *more])
        return f"allow {puts}, and for all checks s3:GetObject, s3:DeleteObject, s3:ListBucket{of_kms}:\n{policy}"
