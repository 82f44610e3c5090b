"""Presigned URLs: one object of a private bucket, for anyone with the URL. They are made here, without a request.

Credentials may have to be fetched or renewed, which blocks: call it in a thread.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from async_maps.errors import SettingsError, SourceError, StoreError
from async_maps.filesystems.aws import translate_credential_errors, unreachable, url_options
from async_maps.filesystems.locators import parse_s3_address
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from botocore.session import Session

MAX_HOURS = 168
"""Seven days: what signature version 4 allows (Amazon S3 API reference, "Authenticating Requests: Using Query
Parameters")."""


@contextmanager
def presigning(hours: float) -> Iterator[Callable[[str], str]]:
    """A function that makes a URL of a locator, with the credentials, endpoint and region of the AWS environment.

    The URL answers a GET for 1 to :data:`MAX_HOURS` hours, or until the credentials themselves expire, whichever is
    sooner. It holds the access key's id, the session token of temporary credentials, and a signature for this one
    object, never the secret key. The function raises a StoreError if it cannot sign, or the locator is not in S3.

    The region, AWS_DEFAULT_REGION or the profile's, must be the bucket's own, as no request is made. About 2,000 URLs
    are made in a second; most of it is spent in the SDK's rules for endpoints.

    Raises:
        SettingsError: the number of hours or the AWS configuration cannot be used.
        StoreError: no credentials.
    """
    if not 1 <= hours <= MAX_HOURS:
        raise SettingsError(f"presign: expected 1 to {MAX_HOURS} hours, found {hours:g}")
    try:
        session = botocore.session.Session()
        if session.get_credentials() is None:
            raise StoreError(f"cannot presign: {unreachable(NoCredentialsError())}")
        client = _client(session)
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"the AWS configuration cannot be used: {error}") from error
    with closing(client):

        def presigned(locator: str) -> str:
            try:
                bucket, key = parse_s3_address(locator)
                with translate_credential_errors():
                    url: str = client.generate_presigned_url(
                        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=round(hours * 3600)
                    )
            except (BotoCoreError, ClientError, SourceError) as error:
                reason = " ".join(unreachable(error).split())
                raise StoreError(f"cannot presign {printable(locator)}: {reason}") from error
            return url

        yield presigned


def _client(session: Session) -> Any:
    # The SDK's default for URLs is version 2, which newer regions and other servers refuse.
    config = Config(signature_version="s3v4")
    client: Any = session.create_client("s3", config=config)
    options: Any = url_options(client)
    if options is None:
        return client
    client.close()
    return session.create_client("s3", config=config.merge(Config(s3=options)))
