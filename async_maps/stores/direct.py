"""The hot path of the PUT: requests like the SDK's own, signed by botocore, without the SDK's milliseconds around them.

The SDK sends the first object. From that request, once it was answered 200, is learned what the others look like: where
the bucket lies (virtual host, path style, dual-stack, FIPS, a custom endpoint), every header, region and payload
signing; all of that stays the SDK's business. The others differ in key, body, checksum and time only. They go over the
SDK's own aiohttp pool, so that time-outs, certificates and the number of connections are the client's, too. A refusal
is for the SDK to do again, which owns redirects, expired tokens and what errors are called. Runs on the event loop.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from aiobotocore.httpsession import AIOHTTPSession
from botocore.auth import SIGV4_TIMESTAMP, UNSIGNED_PAYLOAD, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import percent_encode
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from aiobotocore.credentials import AioCredentials
    from aiohttp import ClientSession
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials
    from botocore.httpsession import ProxyConfiguration

_CHECKSUM = "x-amz-checksum-crc32"
_PER_REQUEST = {
    _CHECKSUM, "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "content-length", "host",
    # The SDK asks first whether it may send a body that it would have to read again; ours is bytes, and lies there.
    "expect",
    # Which attempt of which call this is, for the SDK's own retries.
    "amz-sdk-invocation-id", "amz-sdk-request",
}  # fmt: skip
"""Headers of the SDK's request that another one has with other values, or not at all."""
_NOT_PLAIN = {"transfer-encoding", "x-amz-trailer", "x-amz-s3session-token", "content-encoding"}
_AT_ONCE_BYTES = 2**20
_NO_REFUSALS = {408, 412, 429}
"""Answers of the range of refusals that say nothing against how we ask: too slow, there already, too often."""
_REFUSALS, _PLANS = 4, 3
"""After so many refusals in a row the plan is forgotten, and after so many plans no other is made."""


class Plan(NamedTuple):
    """What PutObject requests to one bucket have in common.

    Attributes:
        base: the URL up to the key, percent-encoded.
        query: of the URL, with its question mark; mostly empty.
        signs_payload: whether the body's SHA-256 is signed; over TLS a checksum is enough.
    """

    base: str
    query: str
    headers: dict[str, str]
    region: str
    service: str
    signs_payload: bool

    @classmethod
    def of(cls, request: AWSPreparedRequest, key: str) -> Plan | None:
        """The plan behind a request of the SDK that put that key; None if its kind cannot be had directly."""
        headers = {name: _text(value) for name, value in request.headers.items()}
        present = {name.lower() for name in headers}
        scheme, _, credential = headers.get("Authorization", "").partition(" Credential=")
        address, mark, query = request.url.partition("?")
        quoted = _quote(key)
        if (
            scheme != "AWS4-HMAC-SHA256"
            or _CHECKSUM not in present
            or present & _NOT_PLAIN
            or not address.endswith(f"/{quoted}")
        ):
            return None
        _, _, region, service, _ = credential.partition(",")[0].rsplit("/", 4)
        return cls(
            address[: -len(quoted)],
            mark + query,
            {name: value for name, value in headers.items() if name.lower() not in _PER_REQUEST},
            region,
            service,
            headers.get("X-Amz-Content-SHA256") != UNSIGNED_PAYLOAD,
        )


class Answer(NamedTuple):
    """The response of a server; the body is an error in XML, or empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Signer:
    """Makes the requests of a plan with one set of credentials.

    What is signed is text of which little changes from one request to the next: botocore writes it once, with marks in
    it where something does.
    """

    def __init__(self, plan: Plan, credentials: ReadOnlyCredentials) -> None:
        self.plan = plan
        self.credentials = credentials
        self._auth = S3SigV4Auth(credentials, plan.service, plan.region)
        marks = {"x-amz-date": "\0date", "x-amz-content-sha256": "\0payload", _CHECKSUM: "\0checksum"}
        self._headers = dict(plan.headers)
        if credentials.token:
            self._headers["X-Amz-Security-Token"] = credentials.token
        self._request = AWSRequest("PUT", f"{plan.base}\0path{plan.query}", headers={**self._headers, **marks})
        signed = self._auth.headers_to_sign(self._request)
        self._signed_names = self._auth.signed_headers(signed)
        self._host_path = "/" + plan.base.split("/", 3)[3]
        # Method, path, query, headers, their names, hash: AWS Signature Version 4, "Create a canonical request".
        self._canonical = (
            f"PUT\n\0path\n{self._auth.canonical_query_string(self._request)}\n"
            f"{self._auth.canonical_headers(signed)}\n\n{self._signed_names}\n\0payload"
        )

    def sign(self, key: str, data: bytes, checksum: str, timestamp: str) -> tuple[str, dict[str, str]]:
        """The URL and the headers of a PUT that is sent at a time such as ``20261125T120000Z``."""
        quoted = _quote(key)
        payload = hashlib.sha256(data).hexdigest() if self.plan.signs_payload else UNSIGNED_PAYLOAD
        canonical = (
            self._canonical.replace("\0path", self._host_path + quoted)
            .replace("\0payload", payload)
            .replace("\0date", timestamp)
            .replace("\0checksum", checksum)
        )
        self._request.context["timestamp"] = timestamp
        signature = self._auth.signature(self._auth.string_to_sign(self._request, canonical), self._request)
        headers = {
            **self._headers,
            _CHECKSUM: checksum,
            "X-Amz-Date": timestamp,
            "X-Amz-Content-SHA256": payload,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={self._auth.scope(self._request)}, "
            f"SignedHeaders={self._signed_names}, Signature={signature}",
        }
        return f"{self.plan.base}{quoted}{self.plan.query}", headers


class DirectSession(AIOHTTPSession):
    """The HTTP session of an S3 client, over which PUTs can also be sent directly.

    It is the client's: give it as ``http_session_cls`` of its configuration, by way of a function that keeps it.

    Attributes:
        may_repeat: whether aiohttp itself may send a request once more whose connection broke. Where an object is to be
            created and not replaced, it must not: the first may have been heard.
    """

    may_repeat = True

    if TYPE_CHECKING:  # what the stubs leave out
        _proxy_config: ProxyConfiguration

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._last: AWSPreparedRequest | None = None
        self._plan: Plan | None = None
        self._signer: Signer | None = None
        self._refusals = self._plans = 0

    async def _get_session(self, proxy_url: str | None) -> ClientSession:
        session: ClientSession = await super()._get_session(proxy_url)  # type: ignore[misc]  # the stubs leave it out
        session._retry_connection = self.may_repeat
        return session

    async def send(self, request: Any) -> Any:
        """Send a request of the SDK, and remember a PUT that was answered 200."""
        response = await super().send(request)
        if self._plan is None and request.method == "PUT" and response.status_code == 200:
            self._last = request
        return response

    def learn(self, key: str) -> None:
        """The SDK has put an object: let the next ones go as it did, if that can be."""
        request, self._last = self._last, None
        # Proxies are the SDK's business, too.
        if self._plan is None and self._plans < _PLANS and request is not None:
            self._plan = None if self._proxy_config.proxy_url_for(request.url) else Plan.of(request, key)
            self._plans += 1

    async def put(self, key: str, data: bytes, checksum: str, credentials: AioCredentials) -> Answer | None:
        """Put an object directly, once: the answer; None if nothing was sent, as nothing is known of how.

        Raises:
            BotoCoreError: the credentials could not be refreshed.
            aiohttp.ClientError, OSError, TimeoutError: there was no answer.
        """
        plan = self._plan
        if plan is None:
            return None
        frozen = await credentials.get_frozen_credentials()
        signer = self._signer
        if signer is None or signer.plan is not plan or signer.credentials != frozen:
            signer = self._signer = Signer(plan, frozen)
        url, headers = signer.sign(key, data, checksum, datetime.now(UTC).strftime(SIGV4_TIMESTAMP))
        session = await self._get_session(None)
        # Written in pieces, between which the loop turns.
        body = data if len(data) <= _AT_ONCE_BYTES else BytesIO(data)
        async with session.put(URL(url, encoded=True), data=body, headers=headers, allow_redirects=False) as answer:
            found = Answer(answer.status, answer.headers, await answer.read())
        if found.status == 200:
            self._refusals = 0
        elif 300 <= found.status < 500 and found.status not in _NO_REFUSALS and plan is self._plan:
            # What the SDK can do and we cannot: something has changed since it was learned.
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self._plan, self._refusals = None, 0
        return found


def _quote(key: str) -> str:
    quoted: str = percent_encode(key, safe="/~")
    return quoted


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")
