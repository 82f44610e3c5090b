"""Fast PUTs: the same requests as the SDK's, signed by botocore, without the milliseconds that the SDK needs for each.

The SDK sends the first object. After its answer 200, that request is the template of the others: host and path style
(dual-stack, FIPS, custom endpoint), headers, region and payload signing. The others differ only in key, body, checksum
and time. They have connections of their own, with the client's time limits, certificates and number of connections.
The caller repeats a refused request with the SDK, which handles redirects, expired tokens and the names of errors.
Runs on the event loop.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth
from botocore.awsrequest import AWSRequest

from async_maps.filesystems.clock import timestamp
from async_maps.filesystems.http_messages import request_head
from async_maps.filesystems.pooled_session import PooledSession
from async_maps.filesystems.request_template import RequestTemplate, quote
from async_maps.filesystems.signing_key import SigningKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from aiohttp import ClientSession
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials
    from botocore.httpsession import ProxyConfiguration

    from async_maps.filesystems.sessions import AsyncCredentials

_CHECKSUMS = ("x-amz-checksum-crc32", "Content-MD5")
_PER_REQUEST = {
    *map(str.lower, _CHECKSUMS), "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token",
    "content-length", "host",
    # The SDK asks the server before it sends a body; ours is in memory, so that is not needed.
    "expect",
    # The number of the call and of the attempt, for the SDK's retries.
    "amz-sdk-invocation-id", "amz-sdk-request",
}  # fmt: skip
"""Headers of the SDK's request that are different, or left out, in the others."""
_NOT_PLAIN = {"transfer-encoding", "x-amz-trailer", "x-amz-s3session-token", "content-encoding"}
_NO_REFUSALS = {408, 412, 429}
"""4xx statuses that are no problem of the request's form: time-out, object exists, too many requests."""
_REFUSALS, _PLANS = 4, 3
"""The plan is discarded after this many refusals in a row; at most this many plans are made."""


class Plan(NamedTuple):
    """The common parts of all PutObject requests to one bucket.

    Attributes:
        base: the URL up to the key, percent-encoded.
        query: the query of the URL, with its question mark; mostly empty.
        signs_payload: whether the SDK signs the body's SHA-256.
        checksum: the name of the header with the checksum of the body.
        trusts_answers: whether the SHA-256 is left out, because each answer proves that the store has the body.
    """

    base: str
    query: str
    headers: dict[str, str]
    region: str
    service: str
    signs_payload: bool
    checksum: str
    trusts_answers: bool = False

    @classmethod
    def of(cls, request: AWSPreparedRequest, key: str) -> Plan | None:
        """Derive a plan from the SDK's PUT of a key; None if this kind of request is not supported."""
        found = RequestTemplate.of(request, key)
        if found is None:
            return None
        present = {name.lower() for name in found.headers}
        checksums = [name for name in _CHECKSUMS if name.lower() in present]
        if len(checksums) != 1 or present & _NOT_PLAIN:
            return None
        return cls(
            found.base,
            found.query,
            {name: value for name, value in found.headers.items() if name.lower() not in _PER_REQUEST},
            found.region,
            found.service,
            found.headers.get("X-Amz-Content-SHA256") != UNSIGNED_PAYLOAD,
            checksums[0],
        )


class Answer(NamedTuple):
    """The response of the server; the body is an XML error, or empty.

    Attributes:
        must_prove: whether the headers are the only proof of the body, as its SHA-256 was not signed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    must_prove: bool = False

    def blames_time(self) -> bool:
        """Whether the request was refused for the time of its signature."""
        return self.status == 403 and b"<Code>RequestTimeTooSkewed</Code>" in self.body


class Signer:
    """Signs the requests of a plan with one set of credentials.

    Most of the text to sign is the same in all requests. botocore writes it once, with marks for the parts that change.

    Attributes:
        host: the header Host of the requests.
    """

    def __init__(self, plan: Plan, credentials: ReadOnlyCredentials) -> None:
        self.plan = plan
        self.credentials = credentials
        auth = S3SigV4Auth(credentials, plan.service, plan.region)
        marks = {"x-amz-date": "\0date", "x-amz-content-sha256": "\0payload", plan.checksum: "\0checksum"}
        self._headers = dict(plan.headers)
        if credentials.token:
            self._headers["X-Amz-Security-Token"] = credentials.token
        request = AWSRequest("PUT", f"{plan.base}\0path{plan.query}", headers={**self._headers, **marks})
        signed = auth.headers_to_sign(request)
        self._signed_names = auth.signed_headers(signed)
        self.host = signed["host"]
        self._host_path = "/" + plan.base.split("/", 3)[3]
        # Method, path, query, headers, their names, hash: AWS Signature Version 4, "Create a canonical request".
        self._canonical = (
            f"PUT\n\0path\n{auth.canonical_query_string(request)}\n"
            f"{auth.canonical_headers(signed)}\n\n{self._signed_names}\n\0payload"
        )
        self._key = SigningKey(credentials, plan.region, plan.service)

    def sign(self, key: str, data: bytes, checksum: str, timestamp: str) -> tuple[str, dict[str, str]]:
        """Return the URL and the headers of a PUT; the timestamp has the form ``20261125T120000Z``."""
        quoted = quote(key)
        is_signed = self.plan.signs_payload and not self.plan.trusts_answers
        payload = hashlib.sha256(data).hexdigest() if is_signed else UNSIGNED_PAYLOAD
        canonical = (
            self._canonical.replace("\0path", self._host_path + quoted)
            .replace("\0payload", payload)
            .replace("\0date", timestamp)
            .replace("\0checksum", checksum)
        )
        headers = {
            **self._headers,
            self.plan.checksum: checksum,
            "X-Amz-Date": timestamp,
            "X-Amz-Content-SHA256": payload,
            "Authorization": self._key.authorization(canonical, self._signed_names, timestamp),
        }
        return f"{self.plan.base}{quoted}{self.plan.query}", headers


class DirectSession(PooledSession):
    """The HTTP session of an S3 client that can also send PUTs directly.

    Pass a function that returns it as ``http_session_cls`` of the client's configuration.

    Attributes:
        may_repeat: whether a request is repeated whose kept connection broke, also by aiohttp. It must be False for
            create-only uploads, because the server may have stored the object.
        may_trust_answers: whether PUTs over TLS may leave their body's SHA-256 out.
    """

    may_repeat = may_trust_answers = True

    if TYPE_CHECKING:  # what the stubs leave out
        _proxy_config: ProxyConfiguration

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._last: AWSPreparedRequest | None = None
        self._plan: Plan | None = None
        self._signer: Signer | None = None
        self._refusals = self._plans = 0

    async def _get_session(self, proxy_url: str | None) -> ClientSession:
        session = await super()._get_session(proxy_url)
        session._retry_connection = self.may_repeat
        return session

    async def send(self, request: Any) -> Any:
        """Send a request of the SDK; keep a PUT that was answered with 200."""
        response = await super().send(request)
        if self._plan is None and request.method == "PUT" and response.status_code == 200:
            self._last = request
        return response

    def learn(self, key: str) -> None:
        """Make a plan from the SDK's last PUT, which stored this key, if that is possible."""
        request, self._last = self._last, None
        # Requests through a proxy are left to the SDK.
        if self._plan is None and self._plans < _PLANS and request is not None:
            self._plan = None if self._proxy_config.proxy_url_for(request.url) else Plan.of(request, key)
            # The last PUT may be that of another key, if several run concurrently.
            self._plans += self._plan is not None

    def trust_answers(self) -> None:
        """Leave the SHA-256 out over TLS from now on: an answer has proved that the store has the body."""
        if self.may_trust_answers and self._plan is not None and self._plan.base.startswith("https:"):
            self.may_trust_answers = False
            self._plan = self._plan._replace(trusts_answers=True)

    def distrust_answers(self) -> None:
        """Sign the SHA-256 from now on."""
        self.may_trust_answers = False
        if self._plan is not None:
            self._plan = self._plan._replace(trusts_answers=False)

    async def put(self, key: str, data: bytes, checksum: str, credentials: AsyncCredentials) -> Answer | None:
        """Send one PUT directly.

        Returns:
            The answer; None if there is no plan, and nothing was sent.

        Raises:
            BotoCoreError: the credentials could not be refreshed.
            OSError: there was no answer.
            TooSlowError: no byte moved, or too few.
        """
        plan = self._plan
        if plan is None:
            return None
        frozen = await credentials.get_frozen_credentials()
        signer = self._signer
        if signer is None or signer.plan is not plan or signer.credentials != frozen:
            signer = self._signer = Signer(plan, frozen)
        clock = credentials.shared.clock
        pool = await self.pool(plan.base)
        signed_at = 0.0

        def head() -> bytes:
            nonlocal signed_at
            signed_at = clock.time()
            url, headers = signer.sign(key, data, checksum, timestamp(signed_at))
            more = {"Host": signer.host, "Content-Length": str(len(data))}
            return request_head("PUT", url.removeprefix(pool.origin), headers | more)

        for _ in range(2):
            with self.watches.watch(len(data)) as watch:
                answer = await pool.request(watch, head, data, may_repeat=self.may_repeat)
            found = Answer(answer.status, answer.headers, bytes(answer.body), plan.trusts_answers)
            if not (found.blames_time() and clock.correct(found.headers.get("date", ""), signed_at)):
                break
        if found.status == 200:
            self._refusals = 0
        elif 300 <= found.status < 500 and found.status not in _NO_REFUSALS and plan is self._plan:
            # Something has changed since the plan was made; the SDK may be able to handle it.
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self._plan, self._refusals = None, 0
        return found
