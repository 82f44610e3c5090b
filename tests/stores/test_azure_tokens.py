"""With a token of Microsoft Entra ID, a run, ``verify`` and signed URLs work over TLS."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.clouds import azurite

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# In a process of its own, as aiohttp reads the certificates when it is imported. Azurite looks at the claims of a
# token, not at its signature.
_PROGRAM = """
import asyncio, base64, json, sys, time, urllib.request
import azure.identity
import numpy as np
import async_maps as am
from azure.core.credentials import AccessToken
from async_maps.filesystems.presign import presigning
from async_maps.filesystems.services.azure import BlobStorage
from async_maps.filesystems.services.client import Client
from async_maps.filesystems.services.service import Request

now, tenant = int(time.time()), "ab1f708d-50f6-404c-a006-d71b2ac7a606"
claims = {
    "aud": "https://storage.azure.com", "iss": f"https://sts.windows.net/{tenant}/", "iat": now - 60, "nbf": now - 60,
    "exp": now + 3600, "oid": "23657296-5cd5-45b0-a809-d972a7f4dfe1", "tid": tenant, "ver": "1.0",
}
parts = ({"alg": "none", "typ": "JWT"}, claims, "signature")
token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)


class Credential:
    def get_token(self, scope):
        assert scope == "https://storage.azure.com/.default"
        return AccessToken(token, claims["exp"])


azure.identity.DefaultAzureCredential = Credential
settings, account = am.Settings(workers=0), sys.argv[1]


async def create_container():
    async with Client(BlobStorage.from_environment(), settings.s3, connections=1) as client:
        answer = await client.send(Request("PUT", f"{account}/maps?restype=container", {}))
        assert answer.status == 201, answer


asyncio.run(create_container())
maps = [(f"{number} é%", np.random.default_rng(number).random((4, 4))) for number in range(5)]
assert am.run(maps, "az://maps/p", settings=settings, manifest="m.sqlite").uploaded == 5
assert am.verify_locators("m.sqlite", settings=settings, deep=True).right == 5
# Lanes do not have these credentials: they begin with the token of this process.
for name, array in maps:
    np.save(f"{name}.npy", array)
lanes = am.Settings(processes=2, workers=1)
assert am.run("*.npy", "az://maps/lanes", settings=lanes, manifest="lanes.sqlite").uploaded == 5
with presigning(1, f"{account}/maps/p") as presigned:
    url = presigned(f"{account}/maps/p/1%20%C3%A9%25.png")
with urllib.request.urlopen(url) as answer:
    assert answer.read().startswith(b"\\x89PNG")
"""


def test_tokens_are_accepted_and_sign_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.identity", reason="the package azure-identity is not installed")
    with azurite(tmp_path, with_tokens=True) as url:
        account = f"{url}/devstoreaccount1"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint={account}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        command = [sys.executable, "-c", _PROGRAM, account]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
