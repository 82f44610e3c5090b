"""Signatures with the shared clock, in all clients of botocore and aiobotocore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from async_maps.filesystems.clock import blames_time, timestamp

if TYPE_CHECKING:
    from typing import Any

    from async_maps.filesystems.clock import Clock

REFUSED = {400, 401, 403}
"""The statuses of answers to signatures that are not accepted."""
_CONTEXT = "async_maps"


def sign_in_time(signer: Any, clock: Clock) -> None:
    """Let the signer of a client sign with a clock, and note the key and the time of each signature."""
    # botocore has no public way to either.
    create = signer.get_auth_instance

    def timed(auth: Any) -> Any:
        prepare = getattr(auth, "_modify_request_before_signing", None)
        if prepare is None or auth.credentials is None:
            return auth

        def prepare_in_time(request: Any) -> Any:
            now = clock.time()
            request.context["timestamp"] = timestamp(now)
            signed = request.context.setdefault(_CONTEXT, {})
            signed.update(at=now, access_key=auth.credentials.access_key or "")
            return prepare(request)

        auth._modify_request_before_signing = prepare_in_time
        return auth

    if asyncio.iscoroutinefunction(create):

        async def get_async(*arguments: Any, **options: Any) -> Any:
            return timed(await create(*arguments, **options))

        signer.get_auth_instance = get_async
    else:
        signer.get_auth_instance = lambda *arguments, **options: timed(create(*arguments, **options))


def signature_of(request_dict: Any) -> dict[str, Any] | None:
    """Return the notes on the signature of a request, which may be added to; None if it is unsigned."""
    found: dict[str, Any] | None = request_dict["context"].get(_CONTEXT)
    return found


def corrects(clock: Clock, request_dict: Any, response: Any) -> bool:
    """Take over the time of a server that refused a signature for its time; return whether to sign again, once."""
    signed = signature_of(request_dict)
    if response is None or signed is None or signed.get("is_corrected"):
        return False
    code, message, status = refusal_in(response)
    if status not in REFUSED or not blames_time(code, message, status):
        return False
    signed["is_corrected"] = clock.correct(response[0].headers.get("date", ""), signed["at"])
    return bool(signed["is_corrected"])


def refusal_in(response: Any) -> tuple[str, str, int]:
    """Return the code, the message and the HTTP status of an answer that botocore has parsed."""
    answer, parsed = response
    detail = parsed.get("Error") or {}
    return str(detail.get("Code") or ""), str(detail.get("Message") or ""), answer.status_code
