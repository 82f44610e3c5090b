"""Checks the AWS credentials of this machine: their source and their expiry. Never shows a secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from anyio import fail_after

from async_maps.doctor.finding import Finding
from async_maps.filesystems.aws import translate_credential_errors, unreachable
from async_maps.stores.s3 import NO_ANSWER

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import aioboto3
    from aiobotocore.credentials import AioCredentials

_KINDS = {
    "env": "from the environment",
    "shared-credentials-file": "from profile {profile} of the credentials file",
    "config-file": "from profile {profile} of the config file",
    "assume-role": "a role, by profile {profile}",
    "assume-role-with-web-identity": "a role, by web identity",
    "sso": "a role, by the single sign-on of profile {profile}",
    "iam-role": "the role of this machine",
    "container-role": "the role of this container",
    "custom-process": "from the process in profile {profile}",
}
"""The text for each of botocore's credential providers."""
_TOO_SHORT_S = 3600.0
_TIMEOUT_S = 10.0
_REFRESH = "sign in again before a long run, or use a role or single sign-on, which are renewed during a run"


async def find_credentials(session: aioboto3.Session) -> Finding:
    """Check which credentials there are, and when they expire."""
    try:
        # The stubs declare boto3's method, which is not a coroutine.
        with fail_after(_TIMEOUT_S), translate_credential_errors():
            credentials = await cast("Awaitable[AioCredentials | None]", session.get_credentials())
            frozen = None if credentials is None else await credentials.get_frozen_credentials()
    except NO_ANSWER as error:
        return Finding("credentials", "failure", f"found, but cannot be loaded: {unreachable(error)}",
                       "sign in again, or correct the profile")  # fmt: skip
    if credentials is None or frozen is None or frozen.access_key is None:
        return Finding("credentials", "failure", "no AWS credentials found",
                       "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")  # fmt: skip
    kind = _KINDS.get(credentials.method, credentials.method).format(profile=session.profile_name)
    text = f"{kind}, access key ...{frozen.access_key[-4:]}"
    # botocore has no public attribute for it.
    expiry: datetime | None = getattr(credentials, "_expiry_time", None)
    if expiry is None and not frozen.token:
        return Finding("credentials", "ok", text)
    if expiry is None:
        return Finding("credentials", "warning", f"{text}, temporary, expiry unknown", _REFRESH)
    text += f", until {expiry.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if credentials.method != "env":
        return Finding("credentials", "ok", f"{text}, renewed automatically")
    left_s = (expiry - datetime.now(UTC)).total_seconds()
    return Finding("credentials", "ok" if left_s > _TOO_SHORT_S else "warning", f"{text}, not renewed", _REFRESH)
