"""The credentials of Google Cloud and Azure, by the vendors' libraries, against a stand-in of the token service."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from async_maps.errors import StoreError
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.presign import presigning
from async_maps.filesystems.services.client import Client
from async_maps.filesystems.services.entra import EntraCredentials
from async_maps.filesystems.services.gcs import CloudStorage
from async_maps.filesystems.services.google import GoogleCredentials
from async_maps.filesystems.services.tokens import Tokens
from async_maps.settings import S3Settings
from tests.support.gcs_server import GcsServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREACHABLE = (
    "failed.\nAttempted credentials:\n\tEnvironmentCredential: Authentication failed: HTTPSConnectionPool("
    "host='login.microsoftonline.com', port=443): Max retries exceeded (Caused by NameResolutionError(...))\n"
    "\tManagedIdentityCredential: unavailable"
)
EMAIL = "maps@project.iam.gserviceaccount.com"


class TokenService:
    """Gives tokens, each another one, or refuses with a status and an error.

    Attributes:
        given: the number of tokens.
        refusal: the status and the body of refusals; None to give tokens.
        key: the private key of the service account.
        signature: what it answers to requests to sign; empty for those of tokens.
        targets, authorizations, proxy_authorizations: what was in the requests, where they had it.
    """

    def __init__(self) -> None:
        self.given = 0
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.url = ""
        self.key: Any = None
        self.signature = b""
        self.targets: list[str] = []
        self.authorizations: list[str] = []
        self.proxy_authorizations: list[str] = []

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Answer a request."""
        if self.refusal is not None:
            return self.refusal
        if self.signature:
            return 200, {"keyId": "1", "signedBlob": base64.b64encode(self.signature).decode()}
        self.given += 1
        return 200, {"access_token": f"token {self.given}", "expires_in": 3600, "token_type": "Bearer"}


@contextmanager
def _serving(service: TokenService) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            service.targets.append(self.path)
            service.authorizations += self.headers.get_all("Authorization", [])
            service.proxy_authorizations += self.headers.get_all("Proxy-Authorization", [])
            status, answer = service.answer()
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        running = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        running.start()
        service.url = f"http://127.0.0.1:{server.server_address[1]}/token"
        try:
            yield
        finally:
            server.shutdown()
            running.join()


@pytest.fixture
def token_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenService]:
    """A token service, and a key of a service account that leads to it."""
    pytest.importorskip("google.auth", reason="the package google-auth is not installed")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as forms

    service = TokenService()
    with _serving(service):
        service.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key = service.key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
        account = {
            "type": "service_account", "project_id": "project", "private_key_id": "1", "private_key": key.decode(),
            "client_email": EMAIL, "client_id": "1", "token_uri": service.url,
        }  # fmt: skip
        (tmp_path / "key.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        yield service


# Google Cloud -------------------------------------------------------------------------------------------------------


def test_a_service_account_gets_tokens(token_service: TokenService) -> None:
    credentials = GoogleCredentials()
    first, second = credentials.token(), credentials.token()
    assert (first.text, second.text, token_service.given) == ("token 1", "token 2", 2)
    assert 3500 < first.expires_at - time.time() <= 3600


@pytest.mark.parametrize(
    ("refusal", "words", "retry"),
    [
        ((400, {"error": "invalid_grant", "error_description": "Invalid JWT"}), "invalid_grant: Invalid JWT", False),
        ((401, {"error": "deleted_client"}), "deleted_client", False),
        ((503, {"error": "server_error"}), "", True),
    ],
)
def test_a_refused_token_is_one_sentence(
    refusal: tuple[int, dict[str, str]],
    words: str,
    retry: bool,
    token_service: TokenService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The library waits between its attempts.
    monkeypatch.setattr("time.sleep", lambda _: None)
    token_service.refusal = refusal
    with pytest.raises(CredentialsError, match=f"^the Google credentials cannot be renewed: .*{words}") as raised:
        GoogleCredentials().token()
    assert "\n" not in str(raised.value)
    assert (raised.value.retry, raised.value.may_pass) == (retry, retry)


@pytest.mark.parametrize(
    "content",
    ["{}", "no JSON", '{"type": "service_account"}', "[]", "null", '{"type": "impersonated_service_account"}'],
)
def test_a_damaged_key_is_one_sentence(content: str, token_service: TokenService) -> None:
    Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).write_text(content)
    with pytest.raises(CredentialsError, match=r"^the Google credentials cannot be used: ") as raised:
        GoogleCredentials().token()
    assert "\n" not in str(raised.value)
    assert token_service.given == 0


async def test_a_withdrawn_token_is_replaced(token_service: TokenService) -> None:
    from google_crc32c import value

    with serving(GcsServer()) as server:
        server.objects["bucket"] = {}
        service = CloudStorage(server.url, Tokens(GoogleCredentials().token), value)
        async with Client(service, S3Settings(), connections=4) as client:
            for token in ("token 1", "token 2"):
                server.token = token
                assert (await client.send(service.listing("bucket", ""))).is_success
            assert token_service.given == 2
            server.token = "none of these"
            assert (await client.send(service.listing("bucket", ""))).status == 401
            assert token_service.given == 3


def test_a_service_account_signs_urls(token_service: TokenService) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    with presigning(2, "gs://bucket/p") as presigned:
        url = urlsplit(presigned("gs://bucket/p/a b.png"))
        for other in ("s3://bucket/p/a.png", "https://account1.blob.core.windows.net/maps/a.png"):
            with pytest.raises(StoreError, match="the credentials are for Google Cloud"):
                presigned(other)
    query = parse_qs(url.query)
    assert (url.netloc, url.path) == ("storage.googleapis.com", "/bucket/p/a%20b.png")
    assert query["X-Goog-Expires"] == ["7200"]
    assert query["X-Goog-Credential"][0].startswith(f"{EMAIL}/")
    assert len(bytes.fromhex(query["X-Goog-Signature"][0])) == 256
    signer = GoogleCredentials().url_signer()
    assert signer.email == EMAIL
    # It raises if the signature is not that of the key.
    token_service.key.public_key().verify(signer.sign(b"text"), b"text", padding.PKCS1v15(), hashes.SHA256())
    assert token_service.given == 0


@pytest.mark.parametrize("kind", ["a folder", "missing"])
def test_a_key_that_cannot_be_read_is_named(kind: str, token_service: TokenService, tmp_path: Path) -> None:
    path = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    with pytest.raises(CredentialsError, match=f"^the Google credentials cannot be used: .*{re.escape(str(path))}"):
        GoogleCredentials().token()


def test_a_machine_of_google_signs_by_the_iam_api(token_service: TokenService, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth import compute_engine, iam

    # Its metadata server cannot be reached here.
    def refresh(self: Any, _: object) -> None:
        self.token, self._service_account_email = f"token for {self._scopes}", EMAIL

    monkeypatch.setattr(compute_engine.Credentials, "refresh", refresh)
    found = partial(compute_engine.Credentials, universe_domain="googleapis.com")
    monkeypatch.setattr("google.auth.default", lambda scopes: (found(scopes=scopes), "project"))
    monkeypatch.setattr(iam, "_IAM_SIGN_ENDPOINT", token_service.url + "?{}")
    token_service.signature = b"signed"
    with presigning(1, "gs://bucket/p") as presigned:
        url = presigned("gs://bucket/p/a.png")
    assert url.endswith(f"X-Goog-Signature={b'signed'.hex()}")
    assert token_service.authorizations == ["Bearer token for ['https://www.googleapis.com/auth/cloud-platform']"]
    token_service.refusal = (403, {"error": "no permission"})
    with (
        pytest.raises(StoreError, match="cannot presign: the Google credentials cannot be renewed: "),
        presigning(1, "gs://bucket/p") as presigned,
    ):
        presigned("gs://bucket/p/a.png")


def test_tokens_are_asked_for_through_the_proxy(token_service: TokenService, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = urlsplit(token_service.url)
    key = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    key.write_text(key.read_text().replace(token_service.url, "http://tokens.invalid/token"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:pass%40word@{asked.netloc}")
    assert GoogleCredentials().token().text == "token 1"
    assert token_service.targets == ["http://tokens.invalid/token"]
    assert token_service.proxy_authorizations == ["Basic " + base64.b64encode(b"user:pass@word").decode()]


def test_a_token_service_that_does_not_answer_is_named(
    token_service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    key = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    key.write_text(key.read_text().replace(token_service.url, "http://127.0.0.1:1/token"))
    words = r"^the Google credentials cannot be renewed: no answer from 127\.0\.0\.1 \(NewConnectionError\)$"
    with pytest.raises(CredentialsError, match=words) as raised:
        GoogleCredentials().token()
    assert raised.value.retry


# Azure --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "retry"),
    [
        (
            "DefaultAzureCredential failed to retrieve a token.\nAttempted credentials:\n\tEnvironmentCredential: no",
            "^no Azure credentials found: run az login, or set ",
            False,
        ),
        (
            "failed.\nEnvironmentCredential: AADSTS7000215: Invalid client secret provided.\nTrace ID: 1",
            "^the Azure credentials are refused: AADSTS7000215: Invalid client secret provided$",
            False,
        ),
        (
            UNREACHABLE,
            "^the Azure credentials cannot be renewed: no answer from login.microsoftonline.com$",
            True,
        ),
        (
            "failed.\n\tEnvironmentCredential: Authentication failed: the certificate is no PEM.\n\tOthers: no",
            "^the Azure credentials cannot be used: the certificate is no PEM$",
            False,
        ),
        (None, "^the Azure credentials cannot be renewed: no route to the host$", True),
    ],
)
def test_an_error_of_azure_identity_is_one_sentence(
    error: str | None, words: str, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.identity", reason="the package azure-identity is not installed")
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

    class Failing:
        def get_token(self, _: str) -> None:
            if error is None:
                raise ServiceRequestError("no route to the host.\nand more")
            raise ClientAuthenticationError(error)

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Failing)
    with pytest.raises(CredentialsError, match=words) as raised:
        EntraCredentials().token()
    assert (raised.value.retry, raised.value.may_pass) == (retry, retry)


def test_a_refused_token_of_azure_is_not_taken_from_the_cache_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.identity", reason="the package azure-identity is not installed")
    made: list[int] = []

    class Caching:
        def __init__(self) -> None:
            made.append(len(made))

        def get_token(self, _: str) -> Any:
            return SimpleNamespace(token=f"token {made[-1]}", expires_on=1e10)

        def close(self) -> None:
            pass

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Caching)
    credentials = EntraCredentials()
    assert [credentials.token().text for _ in range(3)] == ["token 0", "token 1", "token 2"]


def test_libraries_of_vendors_print_nothing() -> None:
    for name in ("google", "azure", "msal"):
        assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger(name).handlers)
