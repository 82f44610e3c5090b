"""Checks of a bucket in Google Cloud Storage or Azure, by the requests of a run and its readers. Runs on the loop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING
from uuid import uuid4

import aiohttp
from anyio import fail_after, move_on_after, to_thread
from yarl import URL

from async_maps.doctor.clock import compare_clocks
from async_maps.doctor.finding import Finding
from async_maps.doctor.pngs import overlay_sized_png, tiny_png
from async_maps.doctor.speed import concurrencies, judge, measure_latency, measure_throughput
from async_maps.doctor.target import FIRST_ANSWER_S, unbroken, with_short_limits
from async_maps.errors import AsyncMapsError, ExistsError, StoreError, TransientError
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services.client import NO_ANSWER
from async_maps.filesystems.services.service import NOT_UNDERSTOOD
from async_maps.filesystems.services.signed_urls import signing
from async_maps.filesystems.verdict import Scope, UnjudgedError
from async_maps.stores.service import open_service_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.doctor.finding import Level, OnFinding
    from async_maps.settings import Settings
    from async_maps.stores.service import ServiceStore

_CLEAN_UP_S = 10.0
_DELETES = 8
"""The number of concurrent requests that delete objects."""
_BROWSER_S = 8.0
_PUT_WAITS_S = (1.0, 2.0, 0.0)


async def examine(place: str, settings: Settings, extent: tuple[Sequence[str], bool], on_finding: OnFinding) -> None:
    """Check ``gs://bucket/prefix`` or ``az://container/prefix``.

    ``extent`` has the origins of web pages that will read the overlays, and whether to skip the throughput.

    Raises:
        SettingsError: the address or the set-up of the service is not valid.
        MissingExtraError: the service needs an extra.
    """
    most = concurrencies(settings.first_concurrency)[-1]
    # It overwrites its own objects.
    changed = {"s3": with_short_limits(settings.s3), "if_exists": "overwrite", "concurrency": most}
    async with open_service_store(place, settings.model_copy(update=changed)) as store:
        await _Examination(store, settings, on_finding).run(*extent)


class _Examination:
    """The checks of one destination. Only the names of our objects start with ``mark``."""

    def __init__(self, store: ServiceStore, settings: Settings, on_finding: OnFinding) -> None:
        self._store, self._client, self._service = store, store.client, store.client.service
        self._settings, self._on_finding = settings, on_finding
        self._mark = f".async-maps-doctor-{uuid4().hex}"
        self._numbers = count(1)
        self._may_exist: set[str] = set()

    def _say(self, check: str, level: Level, text: str, advice: str = "") -> None:
        self._on_finding(Finding(check, level, text, advice))

    def _key(self, number: int = 0) -> str:
        name = f"{self._mark}-{number}.png"
        key = f"{self._store.prefix}/{name}" if self._store.prefix else name
        self._may_exist.add(key)
        return key

    def _new_key(self, _: int = 0) -> str:
        # Google Cloud takes about one object a second under one key.
        return self._key(next(self._numbers))

    async def _put(self, data: bytes, store: ServiceStore | None = None) -> None:
        """Put an object under the first key; wait if the service asks for fewer requests."""
        for wait_s in _PUT_WAITS_S:
            try:
                await unbroken((store or self._store).put_once(self._key(), data))
            except TransientError as error:
                if not (error.slow_down and wait_s):
                    raise
                await asyncio.sleep(wait_s)
            else:
                return

    async def run(self, origins: Sequence[str], quick: bool) -> None:
        """Check all, as far as one check allows the next."""
        if not await self._credentials():
            return
        try:
            with fail_after(FIRST_ANSWER_S):
                if not await self._bucket():
                    return
        except TimeoutError:
            self._say("endpoint", "failure", f"no answer from {self._service.endpoint} in time", self._service.advice)
            return
        try:
            if not (await self._write() and await self._read()):
                return
            await self._create_only()
            if origins:
                await self._browser(origins)
            await self._measure(quick)
        finally:
            await self._remove()

    async def _credentials(self) -> bool:
        tokens = self._service.tokens
        if tokens is None:
            self._say("credentials", "ok", self._service.proof_words)
            return True
        try:
            with fail_after(FIRST_ANSWER_S):
                await tokens.get()
        except TimeoutError:
            self._say("credentials", "failure", f"no token after {FIRST_ANSWER_S:g} s: its source does not answer",
                      "check the network, and which credentials the environment names")  # fmt: skip
            return False
        except CredentialsError as error:
            text, _, advice = str(error).partition(": ")
            self._say("credentials", "failure", text, advice)
            return False
        self._say("credentials", "ok", f"{self._service.proof_words}, renewed automatically")
        return True

    async def _bucket(self) -> bool:
        """Check the bucket, the listing and the clock; return whether further checks make sense."""
        word, asked_at = self._service.bucket_word, datetime.now(UTC)
        try:
            answer = await self._client.send(self._service.listing(self._store.bucket, self._store.prefix, most=1))
        except NO_ANSWER as error:
            reason = self._client.judge_error(error).reason
            self._say("endpoint", "failure", f"no answer from {self._service.endpoint}: {reason}", self._service.advice)
            return False
        date = answer.headers.get("Date", "")
        self._on_finding(compare_clocks(date, asked_at, "set this machine's clock, by NTP"))
        if answer.is_success:
            try:
                self._service.page(answer)
            except NOT_UNDERSTOOD as error:
                self._say("bucket", "failure", f"the answer of {self._service.endpoint} cannot be understood: {error}",
                          "check its address, and the proxies before it")  # fmt: skip
                return False
            self._say("bucket", "ok", f"{self._store.bucket} exists")
            self._say("list", "ok", "objects can be listed")
            return True
        verdict = self._client.judge(answer)
        if answer.status == 404 or verdict.certain:
            reason = f"the {word} does not exist" if answer.status == 404 else verdict.reason
            self._say("bucket", "failure", f"{self._store.bucket}: {reason}", "check its name and the account")
            return False
        level: Level = "warning" if answer.status in {401, 403} else "failure"
        self._say("list", level, f"objects cannot be listed: the request is {verdict.reason}",
                  "async-maps verify needs it: allow listing")  # fmt: skip
        return level == "warning"

    async def _write(self) -> bool:
        try:
            await self._put(tiny_png(self._settings))
        except StoreError as error:
            is_denied = isinstance(error, UnjudgedError) and error.verdict.scope is Scope.CREDENTIALS
            if not isinstance(error, TransientError):
                self._may_exist.clear()
            self._say("write", "failure", str(error), self._service.advice_if_denied if is_denied else "")
            return False
        self._say("write", "ok", "an object was written, and the answer proves its bytes")
        return True

    async def _read(self) -> bool:
        """Read the object, replace it, and read it again."""
        for turned in (False, True):
            data = tiny_png(self._settings, turned=turned)
            check = "overwrite" if turned else "read back"
            if turned:
                try:
                    await self._put(data)
                except StoreError as error:
                    self._say(check, "failure", str(error), "repeated runs overwrite objects; allow replacing them")
                    return False
            found = await self._store.read(self._key())
            if isinstance(found, str):
                self._say(check, "warning", f"the object cannot be read: {found}", "allow reading, for verify --deep")
                return False
            if found.body != data:
                self._say(check, "warning", "a GET returns other bytes than were written",
                          "there is a cache; use a key with {digest}, which changes with the map")  # fmt: skip
                return False
            self._say(check, "ok", "a replaced object is visible immediately" if turned else "the bytes are right")
        return True

    async def _create_only(self) -> None:
        changed = {"s3": with_short_limits(self._settings.s3), "if_exists": "error"}
        # The level is that of a run with these settings.
        level: Level = "warning" if self._settings.if_exists == "overwrite" else "failure"
        settings = self._settings.model_copy(update=changed)
        try:
            async with open_service_store(self._store.place, settings) as store:
                await self._put(tiny_png(self._settings), store)
        except ExistsError:
            self._say("create only", "ok", "--if-exists skip and error work; a plan can lie here")
        except StoreError as error:
            self._say("create only", level, str(error))
        else:
            self._say(
                "create only",
                level,
                f"the store ignores {self._service.condition}",
                "use --if-exists overwrite; a plan cannot lie here",
            )

    async def _browser(self, origins: Sequence[str]) -> None:
        """Check by a signed URL whether pages of these origins may read the object."""
        try:
            signed = await to_thread.run_sync(signing, self._store.destination, 1.0)
            url = await to_thread.run_sync(signed, self._store.locator(self._key()))
        except (AsyncMapsError, CredentialsError) as error:
            self._say("browser", "unknown", f"no URL can be signed to ask as a browser: {error}")
            return
        answers = {}
        try:
            timeout = aiohttp.ClientTimeout(_BROWSER_S)
            async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as web:
                for origin in origins:
                    async with web.get(URL(url, encoded=True), headers={"Origin": origin}) as answer:
                        answers[origin] = answer.status, answer.headers.get("Access-Control-Allow-Origin")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # Not its text, which may contain the URL with the signature.
            self._say("browser", "unknown", f"no answer to a GET of a signed URL ({type(error).__name__})")
            return
        denied = [origin for origin, (_, allowed) in answers.items() if allowed not in {origin, "*"}]
        if refused := next((status for status, _ in answers.values() if status != 200), None):
            text = f"a GET of a signed URL is refused ({refused}): browsers cannot read overlays"
            self._say("browser", "failure", text, "check the role of the account that signs")
        elif denied:
            text = f"pages of {' and '.join(denied)} may not read overlays: no Access-Control-Allow-Origin for them"
            command = self._service.cors_command(self._store.bucket, denied)
            self._say("browser", "failure", text, f"allow GET from these origins:\n{command}")
        else:
            self._say("browser", "ok", f"pages of {' and '.join(origins)} may read overlays")

    async def _measure(self, quick: bool) -> None:
        data, concurrency = overlay_sized_png(), self._settings.first_concurrency
        check = "latency"
        try:
            latency_s = await measure_latency(self._store, self._new_key, data)
            self._say(check, "ok", f"{latency_s * 1e3:.1f} ms for a PUT of {len(data) / 1e3:.0f} KB (median)")
            if quick:
                return
            check = "throughput"
            loads = await measure_throughput(self._store, self._new_key, data, concurrency)
        except StoreError as error:
            self._say(check, "warning", f"overlays of {len(data) / 1e3:.0f} KB are refused: {error}",
                      "smaller ones are accepted; check the proxies between here and the store")  # fmt: skip
            return
        grows = self._settings.concurrency == "auto"
        for finding in judge(loads, latency_s, len(data), concurrency, grows=grows):
            self._on_finding(finding)

    async def _delete(self, keys: Sequence[str]) -> list[str]:
        """Delete objects; return why each was not deleted, or an empty text."""
        turns = asyncio.Semaphore(_DELETES)

        async def delete(key: str) -> str:
            async with turns:
                return await self._store.delete(key)

        return await asyncio.gather(*map(delete, keys))

    async def _remove(self) -> None:
        """Delete all written objects, even if this task is cancelled."""
        left = list(self._may_exist)
        if not left:
            return
        reason = "not deleted in time"
        with move_on_after(_CLEAN_UP_S, shield=True):
            # Twice, because emulators break connections if there are many.
            for _ in range(2):
                reasons = await self._delete(left)
                left = [key for key, reason in zip(left, reasons, strict=True) if reason]
                reason = next(filter(None, reasons), "")
        if not reason:
            self._say("delete", "ok", "the written objects were deleted")
            return
        stem = self._store.locator(f"{self._store.prefix}/{self._mark}".lstrip("/"))
        self._say("delete", "warning", f"the written objects were not deleted, {stem}*: {reason}",
                  "only these checks delete objects, runs do not; allow deleting, or delete them")  # fmt: skip
