"""Clients of the AWS SDK with the credentials and the clock that all clients of this process share.

A request that the store refuses because its token has expired, or because of the time of its signature, is signed anew
and repeated once for each reason.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

import botocore.session
from anyio import to_thread
from botocore.auth import SIGV4_TIMESTAMP
from botocore.handlers import validate_bucket_name

from async_maps.concurrency.tasks import see_error
from async_maps.filesystems.clock import blames_time
from async_maps.filesystems.credentials import CredentialsError, shared_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from botocore.credentials import ReadOnlyCredentials
    from types_aiobotocore_s3 import S3Client

    from async_maps.filesystems.credentials import SharedCredentials

_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}
_REFUSED = {400, 401, 403}
_CONTEXT = "async_maps"

# botocore does the same: without a handler in the program, warnings of a library would be printed with tracebacks.
for _name in ("aiobotocore", "aioboto3"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class _Credentials:
    """What botocore asks of credentials when it creates a client, besides the credentials themselves."""

    method = "shared"

    def get_deferred_property(self, _name: str) -> Callable[[], None]:
        """Return a function for the account id."""
        return self.get_account_id

    def get_account_id(self) -> None:
        """Return None: no request to S3 needs the account id."""


class BlockingCredentials(_Credentials):
    """The shared credentials for clients of threads, which wait while they cannot be renewed.

    Args:
        shared: the credentials.
        patience_s: how long to wait at most.
        closed: set to end all waits.
    """

    def __init__(self, shared: SharedCredentials, patience_s: float = 0.0, closed: Event | None = None) -> None:
        self.shared = shared
        self._patience_s = patience_s
        self._closed = closed or Event()

    def load_credentials(self) -> BlockingCredentials:
        """Return itself: botocore asks for credentials when it creates a client, and again when it signs."""
        return self

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return valid credentials."""
        until = monotonic() + self._patience_s
        while True:
            try:
                return self.shared.get()
            except CredentialsError as error:
                wait_s = max(0.1, self.shared.wait_s())
                patient = error.retry and self.shared.has_worked and monotonic() + wait_s < until
                if not patient or self._closed.wait(wait_s):
                    raise


class AsyncCredentials(_Credentials):
    """The shared credentials for the clients of an event loop, which a thread finds and renews."""

    def __init__(self, shared: SharedCredentials) -> None:
        self.shared = shared
        self._getting: asyncio.Task[ReadOnlyCredentials] | None = None

    async def load_credentials(self) -> AsyncCredentials:
        """Return itself, as for threads."""
        return self

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return valid credentials; wait only if there are none."""
        valid = self.shared.valid()
        if not self.shared.is_due() and valid is not None:
            return valid
        if self._getting is None or self._getting.done():
            # One thread for all waiting requests; it goes on if they are cancelled.
            getting = to_thread.run_sync(self.shared.get, abandon_on_cancel=True)
            self._getting = asyncio.create_task(getting)
            self._getting.add_done_callback(see_error)
        return await asyncio.shield(self._getting) if valid is None else valid


class AsyncSession:
    """Creates S3 clients for an event loop.

    Attributes:
        credentials: the credentials of its clients.
    """

    def __init__(self) -> None:
        import aioboto3
        from aiobotocore.session import AioSession

        self.credentials = AsyncCredentials(shared_credentials())
        session = AioSession()
        session.register_component("credential_provider", self.credentials)
        self._session = aioboto3.Session(botocore_session=session)

    @asynccontextmanager
    async def client(self, options: dict[str, Any]) -> AsyncIterator[S3Client]:
        """Open a client.

        Raises:
            BotoCoreError, ValueError: the AWS configuration cannot be used.
        """
        from aiobotocore.config import AioConfig

        async with self._session.client("s3", config=AioConfig(**options)) as client:
            _sign_in_time(client, self.credentials.shared)
            _allow_tenants(client)
            events: Any = client.meta.events
            events.register("needs-retry.s3", partial(_sign_again_async, self.credentials.shared))
            yield client


def blocking_client(config: Any, patience_s: float = 0.0, closed: Event | None = None) -> Any:
    """Create an S3 client for threads; the arguments are those of :class:`BlockingCredentials`.

    Raises:
        BotoCoreError, ValueError: the AWS configuration cannot be used.
    """
    shared = shared_credentials()
    session = botocore.session.Session()
    session.register_component("credential_provider", BlockingCredentials(shared, patience_s, closed))
    client: Any = session.create_client("s3", config=config)
    _sign_in_time(client, shared)
    _allow_tenants(client)
    client.meta.events.register("needs-retry.s3", partial(_sign_again, shared))
    return client


def _allow_tenants(client: Any) -> None:
    """Allow ``tenant:bucket``, as Ceph names the buckets of another tenant; our addresses are checked already."""
    client.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)


def _sign_in_time(client: Any, shared: SharedCredentials) -> None:
    """Let a client sign with the shared clock, and note the key and the time of each signature."""
    # botocore has no public way to either.
    signer = client._request_signer
    create = signer.get_auth_instance

    def timed(auth: Any) -> Any:
        prepare = getattr(auth, "_modify_request_before_signing", None)
        if prepare is None or auth.credentials is None:
            return auth

        def prepare_in_time(request: Any) -> Any:
            now = shared.clock.now()
            request.context["timestamp"] = now.strftime(SIGV4_TIMESTAMP)
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


def _sign_again(shared: SharedCredentials, request_dict: Any, response: Any, **_: Any) -> float | None:
    expired_key = _refused_key(shared, request_dict, response)
    if expired_key and shared.replace(expired_key):
        return 0.0
    return 0.0 if expired_key == "" else None


async def _sign_again_async(shared: SharedCredentials, request_dict: Any, response: Any, **_: Any) -> float | None:
    is_refused = response is not None and response[0].status_code in _REFUSED
    if not is_refused:
        return None
    # In a thread, because credentials may be asked for.
    return await to_thread.run_sync(partial(_sign_again, shared, request_dict, response), abandon_on_cancel=True)


def _refused_key(shared: SharedCredentials, request_dict: Any, response: Any) -> str | None:
    """Return the access key that a request was refused for; empty if a signature with the time now may be accepted."""
    signed = request_dict["context"].get(_CONTEXT)
    if response is None or signed is None or response[0].status_code not in _REFUSED:
        return None
    answer, parsed = response
    detail = parsed.get("Error", {})
    code, message = str(detail.get("Code", "")), str(detail.get("Message", ""))
    if blames_time(code, message, answer.status_code) and not signed.get("is_corrected"):
        date = answer.headers.get("date", "")
        signed["is_corrected"] = shared.clock.correct(date, signed["at"])
        return "" if signed["is_corrected"] else None
    # The answer to a HEAD has no code.
    if (code in _EXPIRED or code == "400") and not signed.get("is_replaced"):
        signed["is_replaced"] = True
        return str(signed["access_key"])
    return None
