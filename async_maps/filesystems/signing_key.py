"""The key of AWS Signature Version 4, which botocore derives anew for each request, though it is the same for a day."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials


class SigningKey:
    """Signs canonical requests with one set of credentials, for one region and service."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, service: str) -> None:
        self._credentials = credentials
        self._region, self._service = region, service
        self._day = self._scope = ""
        self._key = b""

    def authorization(self, canonical: str, signed_names: str, timestamp: str) -> str:
        """Return the Authorization header of a request.

        Args:
            canonical: the canonical request.
            signed_names: the names of the signed headers, as in the canonical request.
            timestamp: the time of the request, such as ``20261125T120000Z``.
        """
        if timestamp[:8] != self._day:
            self._begin_day(timestamp[:8])
        text = f"AWS4-HMAC-SHA256\n{timestamp}\n{self._scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.access_key}/{self._scope}, "
            f"SignedHeaders={signed_names}, Signature={signature}"
        )

    def _begin_day(self, day: str) -> None:
        # AWS Signature Version 4, "Derive a signing key".
        scope = (day, self._region, self._service, "aws4_request")
        key = f"AWS4{self._credentials.secret_key}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        self._day, self._scope, self._key = day, "/".join(scope), key
