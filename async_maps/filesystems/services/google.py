"""The tokens of Google Cloud, by the library google-auth (extra ``gcs``). Blocks."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, NamedTuple

from urllib3.exceptions import MaxRetryError

from async_maps.errors import require_extra
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services.proxies import Http
from async_maps.filesystems.services.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

NONE_FOUND = (
    "no Google credentials found: set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
)
_UNUSABLE = "the Google credentials cannot be used"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_SCOPE_OF_SIGNING = "https://www.googleapis.com/auth/cloud-platform"
"""A machine's service account signs by the IAM API, which takes no tokens for storage alone."""
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

    Args:
        signs: whether they sign URLs.

    Raises:
        CredentialsError: all methods raise it if there are none, or if they cannot be used.
        MissingExtraError: all methods raise it without the extra ``gcs``.
    """

    def __init__(self, *, signs: bool = False) -> None:
        self._scope = _SCOPE_OF_SIGNING if signs else _SCOPE
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
            from google.auth import compute_engine

            # Its own signer would ask with a token for storage alone.
            if isinstance(credentials, compute_engine.Credentials):
                with self._request() as request:
                    credentials.refresh(request)
                return UrlSigner(credentials.service_account_email, self._sign_by_iam)
            email = getattr(credentials, "signer_email", None)
            if email is None:
                raise CredentialsError("these Google credentials cannot sign URLs: use those of a service account")
            return UrlSigner(email, self._sign)

    def _sign(self, text: bytes) -> bytes:
        # Impersonated credentials ask Google.
        with self._usable() as credentials:
            signature: bytes = credentials.sign_bytes(text)
            return signature

    def _sign_by_iam(self, text: bytes) -> bytes:
        with self._usable() as credentials, self._request() as request:
            from google.auth import iam

            signature: bytes = iam.Signer(request, credentials, credentials.service_account_email).sign(text)
            return signature

    @contextmanager
    def _usable(self) -> Iterator[Any]:
        """Yield the credentials, and translate the errors of the library."""
        with require_extra("gs://", "gcs"):
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
        try:
            if self._credentials is None:
                self._credentials = self._find()
            yield self._credentials
        except DefaultCredentialsError as error:
            is_missing = "were not found" in str(error)
            reason = NONE_FOUND if is_missing else f"{_UNUSABLE}: {_first_line(error)}"
            raise CredentialsError(reason) from error
        except (OSError, ValueError, ImportError) as error:
            # A file that cannot be read, or a library that some kinds of credentials need.
            raise CredentialsError(f"{_UNUSABLE}: {_first_line(error)}") from error
        except GoogleAuthError as error:
            retry = isinstance(error, TransportError) or error.retryable
            reason = f"the Google credentials cannot be renewed: {_first_line(error)}"
            raise CredentialsError(reason, may_pass=retry, retry=retry) from error

    def _find(self) -> Any:
        import google.auth

        try:
            return google.auth.default(scopes=[self._scope])[0]
        except (AttributeError, TypeError, LookupError) as error:
            # The library expects that the file has what its own tools write.
            raise CredentialsError(f"{_UNUSABLE}: GOOGLE_APPLICATION_CREDENTIALS is no file of credentials") from error

    @contextmanager
    def _request(self) -> Iterator[Any]:
        from google.auth.transport.urllib3 import Request

        with Http() as http:
            yield Request(http)


def _first_line(error: Exception) -> str:
    first = error.args[0] if error.args else error
    if isinstance(first, MaxRetryError):
        return f"no answer from {first.pool.host} ({type(first.reason).__name__})"
    # The first argument is the sentence, the others are the whole answer.
    text = str(error if isinstance(error, OSError) else first)
    return text.strip().partition("\n")[0].rstrip(".")
