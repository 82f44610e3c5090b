"""The tokens of Google Cloud, by the library google-auth (extra ``gcs``). Blocks."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, NamedTuple

from urllib3 import PoolManager

from async_maps.errors import require_extra
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

NONE_FOUND = (
    "no Google credentials found: set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
)
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_LIFE_S = 3600.0
"""How long a token without an expiry is used."""

# Without a handler in the program, warnings of a library would be printed with tracebacks.
logging.getLogger("google").addHandler(logging.NullHandler())


class UrlSigner(NamedTuple):
    """A service account that signs URLs.

    Attributes:
        email: the address of the account.
        sign: returns the signature of a text; may ask Google for it.
    """

    email: str
    sign: Callable[[bytes], bytes]


class GoogleCredentials:
    """The Application Default Credentials of the environment.

    Raises:
        CredentialsError: all methods raise it if there are none, or if they cannot be used.
        MissingExtraError: all methods raise it without the extra ``gcs``.
    """

    def __init__(self) -> None:
        self._credentials: Any = None

    def token(self) -> Token:
        """Find a new token."""
        with self._usable() as credentials, self._request() as request:
            credentials.refresh(request)
            # It is in UTC, without a time zone.
            expires_at = None if credentials.expiry is None else credentials.expiry.replace(tzinfo=UTC).timestamp()
            return Token(credentials.token, expires_at or time.time() + _LIFE_S)

    def url_signer(self) -> UrlSigner:
        """Return the service account of the credentials: by its key, or on a machine of Google by its service."""
        with self._usable() as credentials:
            if email := getattr(credentials, "signer_email", None):
                return UrlSigner(email, credentials.sign_bytes)
            from google.auth import compute_engine, iam

            if not isinstance(credentials, compute_engine.Credentials):
                raise CredentialsError("these Google credentials cannot sign URLs: use those of a service account")
            with self._request() as request:
                credentials.refresh(request)
            email = credentials.service_account_email

            def sign(text: bytes) -> bytes:
                with self._usable(), self._request() as request:
                    signature: bytes = iam.Signer(request, credentials, email).sign(text)
                    return signature

            return UrlSigner(email, sign)

    @contextmanager
    def _usable(self) -> Iterator[Any]:
        """Yield the credentials, and translate the errors of the library."""
        with require_extra("gs://", "gcs"):
            import google.auth
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=_SCOPES)
            yield self._credentials
        except DefaultCredentialsError as error:
            is_missing = "were not found" in str(error)
            reason = NONE_FOUND if is_missing else f"the Google credentials cannot be used: {_first_line(error)}"
            raise CredentialsError(reason) from error
        except GoogleAuthError as error:
            retry = isinstance(error, TransportError) or error.retryable
            reason = f"the Google credentials cannot be renewed: {_first_line(error)}"
            raise CredentialsError(reason, may_pass=retry, retry=retry) from error

    @contextmanager
    def _request(self) -> Iterator[Any]:
        from google.auth.transport.urllib3 import Request

        with PoolManager() as http:
            yield Request(http)


def _first_line(error: Exception) -> str:
    # The first argument is the sentence, the others are the whole answer.
    text = str(error.args[0] if error.args else error)
    return text.strip().partition("\n")[0].rstrip(".")
