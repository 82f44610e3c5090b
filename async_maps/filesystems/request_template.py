"""What a request that the AWS SDK has signed tells of others for the keys of its bucket."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from botocore.utils import percent_encode

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest

_UNQUOTED = re.compile("[A-Za-z0-9._~/-]*")
"""Keys that are the same percent-encoded."""


class RequestTemplate(NamedTuple):
    """A request for a key, taken apart.

    Attributes:
        base: the URL up to the key, percent-encoded.
        query: the query of the URL, with its question mark; mostly empty.
        headers: all headers, as text.
        region: the region of the signature.
        service: the service of the signature.
    """

    base: str
    query: str
    headers: dict[str, str]
    region: str
    service: str

    @classmethod
    def of(cls, request: AWSPreparedRequest, key: str) -> RequestTemplate | None:
        """Take the SDK's request for a key apart; None if it is for another key, or is not signed with AWS4-HMAC."""
        headers = {name: _text(value) for name, value in request.headers.items()}
        scheme, _, credential = headers.get("Authorization", "").partition(" Credential=")
        address, mark, query = request.url.partition("?")
        quoted = quote(key)
        if scheme != "AWS4-HMAC-SHA256" or not address.endswith(f"/{quoted}"):
            return None
        _, _, region, service, _ = credential.partition(",")[0].rsplit("/", 4)
        return cls(address[: -len(quoted)], mark + query, headers, region, service)


def quote(key: str) -> str:
    """Return a key in the form that it has in URLs."""
    if _UNQUOTED.fullmatch(key):
        return key
    quoted: str = percent_encode(key, safe="/~")
    return quoted


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")
