"""Checks of an S3 bucket, by the requests of a run, its readers and ``--if-exists``. Runs on the event loop."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from anyio import fail_after
from botocore.exceptions import BotoCoreError, ClientError

from async_maps.doctor.advice import for_code
from async_maps.doctor.browser import readable_from
from async_maps.doctor.bucket import check_encryption, check_listing, check_versioning, find_bucket
from async_maps.doctor.credentials import find_credentials
from async_maps.doctor.features import find_features
from async_maps.doctor.finding import Finding
from async_maps.doctor.pngs import overlay_sized_png
from async_maps.doctor.probe import ProbeObject
from async_maps.doctor.speed import concurrencies, judge, measure_latency, measure_throughput
from async_maps.doctor.target import FIRST_ANSWER_S, Target, with_short_limits
from async_maps.errors import StoreError
from async_maps.filesystems.addresses import parse_destination
from async_maps.filesystems.aws import client_options, pay_for_requests, refusal, unreachable, url_options
from async_maps.filesystems.http_session import session_class
from async_maps.filesystems.sessions import AsyncSession
from async_maps.filesystems.time_limits import TimeLimits
from async_maps.stores import open_store
from async_maps.stores.s3 import NO_ANSWER, UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from types_aiobotocore_s3 import S3Client

    from async_maps.doctor.finding import OnFinding
    from async_maps.settings import Settings

_ATTEMPTS = 2


async def examine(place: str, settings: Settings, extent: tuple[Sequence[str], bool], on_finding: OnFinding) -> None:
    """Check ``s3://bucket/prefix``; raise SettingsError if it is not valid.

    ``extent`` has the origins of web pages that will read the overlays, and whether to skip the throughput.
    """
    _, bucket, prefix, _ = parse_destination(place)
    async with AsyncExitStack() as opened:
        try:
            session = AsyncSession()
            credentials = await find_credentials(session.credentials)
            client = await opened.enter_async_context(_open_client(session, settings))
        except (BotoCoreError, ValueError) as error:
            on_finding(Finding("configuration", "failure", f"the AWS configuration cannot be used: {error}",
                         "check AWS_PROFILE and the other AWS_ variables, and ~/.aws/config"))  # fmt: skip
            return
        on_finding(credentials)
        if credentials.level != "failure":
            mark = f".async-maps-doctor-{uuid4().hex}"
            await _examine(Target(client, bucket, prefix, mark, settings, on_finding), *extent)


@asynccontextmanager
async def _open_client(session: AsyncSession, settings: Settings) -> AsyncIterator[S3Client]:
    """Open a client with short time limits."""
    s3_settings = with_short_limits(settings.s3)
    options = client_options(s3_settings, settings.first_concurrency, attempts=_ATTEMPTS)
    options["http_session_cls"] = session_class(TimeLimits.of(s3_settings))
    # By default botocore signs URLs with version 2, which many stores and regions refuse.
    options["signature_version"] = "s3v4"
    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(session.client(options))
        s3 = url_options(client)
        if s3 is not None:
            client = await opened.enter_async_context(session.client({**options, "s3": s3}))
        pay_for_requests(client, settings.s3)
        yield client


async def _examine(target: Target, origins: Sequence[str], quick: bool) -> None:
    probe = ProbeObject(target)
    try:
        # The client's time-outs do not apply to DNS.
        with fail_after(FIRST_ANSWER_S):
            found = await find_bucket(target)
        if not found:
            return
        await check_listing(target)
        written = await probe.write()
        can_prove = False
        if written:
            await probe.kept_headers()
            can_prove = await probe.finds_new_keys()
        if written and await probe.read():
            await probe.overwrite()
            if can_prove:
                await probe.create_only()
            if origins:
                target.on_finding(await readable_from(target.client, target.bucket, probe.key, origins))
        await check_versioning(target, seen=probe.versioned)
        await check_encryption(target, seen=probe.encryption)
        if written and await probe.remove():
            versions = ", with all its versions" if probe.versioned else ""
            target.say("delete", "ok", f"the written objects were deleted{versions}")
            if probe.features:
                target.on_finding(await find_features(target, probe))
            await _measure(target, probe, quick)
    except NO_ANSWER as error:
        target.say("endpoint", "failure", f"no answer from {target.client.meta.endpoint_url}: {unreachable(error)}",
                   "check AWS_ENDPOINT_URL, the network and its proxies (HTTPS_PROXY)")  # fmt: skip
    except ClientError as error:
        code, _, reason = refusal(error)
        target.say("store", "failure", f"{error.operation_name} is {reason}", for_code(code))
    except ValueError as error:
        target.say("store", "failure", f"{UNREADABLE}: {error}",
                   "check that AWS_ENDPOINT_URL is the address of an S3 server")  # fmt: skip
    finally:
        await probe.remove("clean-up")


async def _measure(target: Target, probe: ProbeObject, quick: bool) -> None:
    data = overlay_sized_png()
    concurrency = target.settings.first_concurrency
    # Like a run, but it overwrites its own objects.
    settings = target.settings.model_copy(
        update={"if_exists": "overwrite", "concurrency": concurrencies(concurrency)[-1]}
    )
    check = "latency"
    try:
        async with open_store(target.url, settings) as store:
            latency_s = await measure_latency(store, probe.sibling, data)
            target.say(check, "ok", f"{latency_s * 1e3:.1f} ms for a PUT of {len(data) / 1e3:.0f} KB (median)")
            if quick:
                return
            check = "throughput"
            loads = await measure_throughput(store, probe.sibling, data, concurrency)
    except StoreError as error:
        target.say(check, "warning", f"overlays of {len(data) / 1e3:.0f} KB are refused: {error}",
                   "smaller ones are accepted; check the proxies between here and the store")  # fmt: skip
        return
    for finding in judge(loads, latency_s, len(data), concurrency, grows=target.settings.concurrency == "auto"):
        target.on_finding(finding)
