"""What all GETs of objects in a bucket have in common, from one that the AWS SDK has sent; and their signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest

from async_maps.filesystems.request_template import RequestTemplate, quote
from async_maps.filesystems.signing_key import SigningKey

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials

_PAYLOAD = "X-Amz-Content-SHA256"
_PER_REQUEST = {
    "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "host", "range", "if-match",
    # The number of the call and of the attempt, for the SDK's retries.
    "amz-sdk-invocation-id", "amz-sdk-request",
}  # fmt: skip
"""Headers of the SDK's request that are different, or left out, in the others."""


class GetPlan(NamedTuple):
    """The common parts of all GETs of objects in one bucket.

    Attributes:
        base: the URL up to the key, percent-encoded.
        query: the query of the URL, with its question mark; mostly empty.
        headers: the headers that are alike.
        payload: the hash of the empty body, as it is signed.
    """

    base: str
    query: str
    headers: dict[str, str]
    region: str
    service: str
    payload: str

    @classmethod
    def of(cls, request: AWSPreparedRequest, key: str) -> GetPlan | None:
        """Derive a plan from the SDK's GET of a key; None if this kind of request is not supported."""
        found = RequestTemplate.of(request, key)
        if request.method != "GET" or found is None:
            return None
        headers = {name: value for name, value in found.headers.items() if name.lower() not in _PER_REQUEST}
        if "x-amz-s3session-token" in map(str.lower, headers):
            return None
        return cls(found.base, found.query, headers, found.region, found.service, found.headers.get(_PAYLOAD, ""))


class GetSigner:
    """Signs the GETs of a plan with one set of credentials.

    Attributes:
        host: the header Host of the requests.
    """

    def __init__(self, plan: GetPlan, credentials: ReadOnlyCredentials) -> None:
        self.plan = plan
        self.credentials = credentials
        self._key = SigningKey(credentials, plan.region, plan.service)
        self._headers = {**plan.headers, _PAYLOAD: plan.payload}
        if credentials.token:
            self._headers["X-Amz-Security-Token"] = credentials.token
        auth = S3SigV4Auth(credentials, plan.service, plan.region)
        request = AWSRequest("GET", f"{plan.base}{plan.query}", headers=self._headers)
        signed = auth.headers_to_sign(request)
        self._signed = dict(line.split(":", 1) for line in auth.canonical_headers(signed).split("\n"))
        self.host = self._signed["host"]
        self._query = auth.canonical_query_string(request)
        self._path = "/" + plan.base.split("/", 3)[3]

    def sign(self, key: str, byte_range: str, etag: str | None, timestamp: str) -> tuple[str, dict[str, str]]:
        """Return the URL and the headers of a GET.

        Args:
            key: the key of the object.
            byte_range: the value of the Range header.
            etag: the value of the If-Match header; None for none.
            timestamp: the time, such as ``20261125T120000Z``.
        """
        quoted = quote(key)
        own = {"Range": byte_range, "X-Amz-Date": timestamp, **({"If-Match": etag} if etag else {})}
        signed = {**self._signed, **{name.lower(): value for name, value in own.items()}}
        names = sorted(signed)
        signed_names = ";".join(names)
        # Method, path, query, headers, their names, hash: AWS Signature Version 4, "Create a canonical request".
        lines = "\n".join(f"{name}:{signed[name]}" for name in names)
        canonical = f"GET\n{self._path}{quoted}\n{self._query}\n{lines}\n\n{signed_names}\n{self.plan.payload}"
        authorization = self._key.authorization(canonical, signed_names, timestamp)
        return f"{self.plan.base}{quoted}{self.plan.query}", {**self._headers, **own, "Authorization": authorization}
