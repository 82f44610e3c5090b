"""The identity of a bucket or folder: its address, and the S3 endpoint in one spelling."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

_AT_ENDPOINT = re.compile(r"(.*) at (https?://\S+)", re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AWS_CHINA, _AWS_GOVERNMENT = "https://amazonaws.com.cn", "https://us-gov.amazonaws.com"
"""The partitions of AWS with bucket names of their own. All other regions share one namespace."""


class Identity(NamedTuple):
    """The parts of a store's identity; ``endpoint`` is empty for AWS, Google Cloud, and stores without endpoints."""

    destination: str
    endpoint: str

    @classmethod
    def parse(cls, identity: str) -> Identity:
        """Split the text that :meth:`__str__` returns."""
        found = _AT_ENDPOINT.fullmatch(identity) if identity.startswith(("s3://", "gs://")) else None
        return cls(found[1], found[2]) if found else cls(identity, "")

    def __str__(self) -> str:
        return f"{self.destination} at {self.endpoint}" if self.endpoint else self.destination

    @property
    def shown(self) -> str:
        """The identity for messages, which also names AWS."""
        return f"{self.destination} at AWS" if self.destination.startswith("s3://") and not self.endpoint else str(self)

    @property
    def folder(self) -> str:
        """The destination with a slash at its end: the start of all locators."""
        # file:/// already ends in a slash.
        return self.destination if self.destination.endswith("/") else f"{self.destination}/"


def bucket_identity(destination: str, endpoint: str) -> str:
    """Return the identity of a bucket and prefix, which differs between servers with the same bucket name."""
    return str(Identity(destination, _without_aws(normalize_endpoint(endpoint))))


def normalize_endpoint(endpoint: str) -> str:
    """Return one spelling for the URLs of one endpoint: without default port, credentials, query and slash at its end.

    Scheme and host become lower case. An endpoint that is no URL is returned unchanged.
    """
    try:
        url = urlsplit(endpoint.strip())
        scheme, host, port = url.scheme, (url.hostname or "").rstrip("."), url.port
    except ValueError:
        return endpoint
    if scheme not in _DEFAULT_PORTS or not host:
        return endpoint
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = f"[{address.compressed}]" if address.version == 6 else host
    shown_port = "" if port in {None, _DEFAULT_PORTS[scheme]} else f":{port}"
    path = "/".join(part for part in url.path.split("/") if part not in {"", "."})
    return f"{scheme}://{host}{shown_port}{f'/{path}' if path else ''}"


def check_endpoint(endpoint: str) -> None:
    """Raise ValueError if no request can be sent to an endpoint: a later attempt would fail, too."""
    url = urlsplit(endpoint)
    shown = endpoint.rpartition("@")[2]
    if url.username is not None or url.password is not None:
        raise ValueError(
            f"the endpoint ...@{shown} has a user name or password: remove them from AWS_ENDPOINT_URL, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if re.fullmatch(r"[0-9.]+", url.hostname or ""):
        try:
            ipaddress.ip_address(url.hostname or "")
        except ValueError:
            raise ValueError(f"the endpoint {shown} has no valid IPv4 address: write all four numbers") from None


def is_aws(endpoint: str) -> bool:
    """Whether an endpoint is one of Amazon S3."""
    return "amazonaws.com" in endpoint


def missing_bucket(endpoint: str) -> str:
    """Return that a bucket does not exist, with the endpoint if its path may be the reason."""
    advice = f" at {normalize_endpoint(endpoint)}: check also the path in AWS_ENDPOINT_URL"
    return f"the bucket does not exist{advice if urlsplit(endpoint).path.strip('/') else ''}"


def _without_aws(endpoint: str) -> str:
    host = urlsplit(endpoint).hostname or ""
    if host.endswith(".amazonaws.com.cn"):
        return _AWS_CHINA
    if not host.endswith(".amazonaws.com"):
        return endpoint
    return _AWS_GOVERNMENT if any(label.startswith("us-gov-") for label in host.split(".")) else ""
