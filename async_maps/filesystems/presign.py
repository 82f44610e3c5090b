"""Presigned URLs: anyone who has the URL can read the object. Signing may fetch credentials.

Everything here blocks.
"""

from __future__ import annotations

import logging
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from async_maps.errors import SettingsError, SourceError, StoreError
from async_maps.filesystems.addresses import is_in_s3, parse_address
from async_maps.filesystems.aws import unreachable, url_options
from async_maps.filesystems.credentials import CredentialsError, shared_credentials
from async_maps.filesystems.endpoints import Identity, bucket_identity
from async_maps.filesystems.sessions import blocking_client
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_logger = logging.getLogger("async_maps")

_TIMEOUT_S = 2.0
MAX_HOURS = 168
"""Seven days, the limit of signature version 4 (Amazon S3 API reference, "Authenticating Requests: Using Query
Parameters")."""


@contextmanager
def presigning(
    hours: float, identity: str | None = None, request_payer: str | None = None
) -> Iterator[Callable[[str], str]]:
    """Yield a function that turns a locator into a presigned URL, with the credentials of the environment.

    The URL allows a GET for the given hours, or until the credentials expire. In Google Cloud it is a signed URL of
    version 4, in Azure a shared access signature; the hours count from the entry of the ``with`` block.

    In S3, it contains the access key's id, the session token of temporary credentials and a signature for one object,
    never the secret key. The configured region (AWS_DEFAULT_REGION or the profile's) must be the bucket's. One URL
    takes about 0.5 ms. The first one takes a request, which shows whether this machine's clock is wrong; its failure
    has no effect.

    Args:
        hours: 1 to :data:`MAX_HOURS`.
        identity: the identity of the store of the objects; a warning is logged if the URLs lead to another server.
        request_payer: ``requester`` lets the URLs say that the signer pays, as Requester Pays buckets demand.

    Raises:
        SettingsError: the number of hours, or the configuration of the service, cannot be used.
        StoreError: there are no credentials; or, in the function, the locator is in another service, or cannot be
            signed.
    """
    if not 1 <= hours <= MAX_HOURS:
        raise SettingsError(f"presign: expected 1 to {MAX_HOURS} hours, found {hours:g}")
    if identity is not None and not is_in_s3(identity):
        from async_maps.filesystems.services.signed_urls import signing

        place = Identity.parse(identity)
        if place.endpoint:
            raise SettingsError(f"cannot presign: no URL can be signed for {place.endpoint}, an emulator")
        try:
            yield signing(place.destination, hours)
        except CredentialsError as error:
            raise StoreError(f"cannot presign: {error}", may_pass=error.may_pass) from error
        return
    try:
        client = _client()
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"the AWS configuration cannot be used: {error}") from error
    with closing(client):
        try:
            shared_credentials().get()
        except CredentialsError as error:
            raise StoreError(f"cannot presign: {error}", may_pass=error.may_pass) from error
        has_asked = False
        if identity is not None:
            _notice_other_server(Identity.parse(identity), client.meta.endpoint_url)
        if request_payer is not None:
            client.meta.events.register("before-sign.s3.GetObject", partial(_add_payer, request_payer))

        def presigned(locator: str) -> str:
            nonlocal has_asked
            try:
                scheme, bucket, key, _ = parse_address(locator)
                if scheme != "s3":
                    raise SourceError("it is not in S3")
                if not has_asked:
                    has_asked = True
                    # A wrong clock is corrected by the refusal.
                    with suppress(BotoCoreError, ClientError):
                        client.head_bucket(Bucket=bucket)
                url: str = client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=round(hours * 3600)
                )
            except (BotoCoreError, ClientError, SourceError) as error:
                reason = " ".join(unreachable(error).split())
                may_pass = isinstance(error, CredentialsError) and error.may_pass
                raise StoreError(f"cannot presign {printable(locator)}: {reason}", may_pass=may_pass) from error
            return url

        yield presigned


def _add_payer(payer: str, request: Any, **_: object) -> None:
    # As a part of the URL: a browser sends no header for it.
    request.url += f"{'&' if '?' in request.url else '?'}x-amz-request-payer={payer}"


def _notice_other_server(was: Identity, endpoint: str) -> None:
    now = Identity.parse(bucket_identity(was.destination, endpoint))
    if was != now:
        _logger.warning("the URLs lead to %s, but the overlays were uploaded to %s", now.shown, was.shown)


def _client() -> Any:
    # By default the SDK signs URLs with version 2, which newer AWS regions and other servers refuse.
    config = Config(
        signature_version="s3v4",
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    client = blocking_client(config)
    options: Any = url_options(client)
    if options is None:
        return client
    client.close()
    return blocking_client(config.merge(Config(s3=options)))
