"""Checks the AWS credentials of this machine: their source and their expiry. Never shows a secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anyio import fail_after

from async_maps.doctor.finding import Finding
from async_maps.filesystems.credentials import NONE_FOUND, CredentialsError, describe

if TYPE_CHECKING:
    from async_maps.filesystems.sessions import AsyncCredentials

_TOO_SHORT_S = 3600.0
_TIMEOUT_S = 30.0
_CORRECT = "sign in again, or correct the profile"
_REFRESH = "sign in again before a long run, or use a role or single sign-on, which are renewed during a run"


async def find_credentials(credentials: AsyncCredentials) -> Finding:
    """Check which credentials there are, and when they expire."""
    try:
        with fail_after(_TIMEOUT_S):
            frozen = await credentials.get_frozen_credentials()
    except CredentialsError as error:
        text, _, advice = str(error).partition(": ") if str(error) == NONE_FOUND else (str(error), "", _CORRECT)
        return Finding("credentials", "failure", text, advice)
    except TimeoutError:
        return Finding("credentials", "failure", f"none after {_TIMEOUT_S:g} s: their source does not answer", _CORRECT)
    found = credentials.shared.found
    text = f"{describe(found.method)}, access key ...{(frozen.access_key or '')[-4:]}"
    if found.expires_at is None and not frozen.token:
        return Finding("credentials", "ok", text)
    if found.expires_at is None:
        return Finding("credentials", "warning", f"{text}, temporary, expiry unknown", _REFRESH)
    text += f", until {datetime.fromtimestamp(found.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
    if found.method != "env":
        return Finding("credentials", "ok", f"{text}, renewed automatically")
    left_s = found.expires_at - credentials.shared.clock.time()
    return Finding("credentials", "ok" if left_s > _TOO_SHORT_S else "warning", f"{text}, not renewed", _REFRESH)
