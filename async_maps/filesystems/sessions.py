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
from anyio import CapacityLimiter, to_thread
from botocore.handlers import validate_bucket_name
from botocore.loaders import Loader

from async_maps.concurrency.tasks import see_error
from async_maps.filesystems.credentials import CredentialsError, shared_credentials
from async_maps.filesystems.endpoints import check_endpoint
from async_maps.filesystems.signing import REFUSED, corrects, refusal_in, sign_in_time, signature_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from botocore.credentials import ReadOnlyCredentials
    from types_aiobotocore_s3 import S3Client

    from async_maps.filesystems.credentials import SharedCredentials

_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}

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
    """The shared credentials for the clients of an event loop, which threads find, renew and replace."""

    def __init__(self, shared: SharedCredentials) -> None:
        self.shared = shared
        # Not those of the program, which all requests would take while they wait for new credentials.
        self._threads = CapacityLimiter(2)
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
            getting = to_thread.run_sync(self.shared.get, abandon_on_cancel=True, limiter=self._threads)
            self._getting = asyncio.create_task(getting)
            self._getting.add_done_callback(see_error)
        return await asyncio.shield(self._getting) if valid is None else valid

    async def sign_again(self, request_dict: Any, response: Any, **_: Any) -> float | None:
        """Return 0, the seconds before the repetition of a refused request, if another signature may be accepted."""
        if response is None or response[0].status_code not in REFUSED:
            return None
        work = partial(_sign_again, self.shared, request_dict, response)
        # In a thread, because credentials may be asked for.
        return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    def close(self) -> None:
        """Do not wait any longer for a program that gives credentials."""
        if self._getting is not None and not self._getting.done():
            from async_maps.filesystems.providers import end_programs

            end_programs()


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
        _load_s3_only(session)
        self._session = aioboto3.Session(botocore_session=session)

    @asynccontextmanager
    async def client(self, options: dict[str, Any]) -> AsyncIterator[S3Client]:
        """Open a client.

        Raises:
            BotoCoreError, ValueError: the AWS configuration cannot be used.
        """
        from aiobotocore.config import AioConfig

        async with self._session.client("s3", config=AioConfig(**options)) as client:
            untyped: Any = client
            check_endpoint(client.meta.endpoint_url)
            sign_in_time(untyped._request_signer, self.credentials.shared.clock)
            _allow_tenants(client)
            _bound_redirects(client)
            untyped.meta.events.register("needs-retry.s3", self.credentials.sign_again)
            clients = self.credentials.shared.clients
            clients.add(client)
            try:
                yield client
            finally:
                clients.discard(client)
                if not clients:
                    self.credentials.close()


def blocking_client(config: Any, patience_s: float = 0.0, closed: Event | None = None) -> Any:
    """Create an S3 client for threads; the arguments are those of :class:`BlockingCredentials`.

    Raises:
        BotoCoreError, ValueError: the AWS configuration cannot be used.
    """
    shared = shared_credentials()
    session = botocore.session.Session()
    session.register_component("credential_provider", BlockingCredentials(shared, patience_s, closed))
    _load_s3_only(session)
    client: Any = session.create_client("s3", config=config)
    check_endpoint(client.meta.endpoint_url)
    sign_in_time(client._request_signer, shared.clock)
    _allow_tenants(client)
    _bound_redirects(client)
    client.meta.events.register("needs-retry.s3", partial(_sign_again, shared))
    return client


class _S3Loader(Loader):
    """Loads the SDK's data of S3. The SDK's loader looks for those of all 400 services first, which takes 30 ms."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Return the only service of our clients."""
        return ["s3"]


def _load_s3_only(session: Any) -> None:
    loader = _S3Loader()
    # The session's own may have the folders of the AWS configuration.
    loader.search_paths[:] = session.get_component("data_loader").search_paths
    session.register_component("data_loader", loader)


def _bound_redirects(client: Any) -> None:
    """Keep the SDK from asking a server for the region of a bucket that it redirects without one, for ever.

    The SDK asks with HeadBucket, whose redirect it answers by asking for the region.
    """
    client.meta.events.register_first("needs-retry.s3.HeadBucket", _ask_once_for_region)


def _ask_once_for_region(request_dict: Any, response: Any, **_: Any) -> None:
    if response is None or response[0] is None:
        return
    if response[0].status_code in {301, 302, 307} and "x-amz-bucket-region" not in response[0].headers:
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def _allow_tenants(client: Any) -> None:
    """Allow ``tenant:bucket``, as Ceph names the buckets of another tenant; our addresses are checked already."""
    client.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)


def _sign_again(shared: SharedCredentials, request_dict: Any, response: Any, **_: Any) -> float | None:
    """Do as :meth:`AsyncCredentials.sign_again`; blocks."""
    if corrects(shared.clock, request_dict, response):
        return 0.0
    signed = signature_of(request_dict)
    if response is None or signed is None or signed.get("is_replaced"):
        return None
    # The answer to a HEAD has no code.
    if response[0].status_code in REFUSED and refusal_in(response)[0] in {*_EXPIRED, "400"}:
        signed["is_replaced"] = True
        return 0.0 if shared.replace(signed["access_key"]) else None
    return None
