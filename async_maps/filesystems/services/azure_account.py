"""The storage account in Azure that the environment names."""

from __future__ import annotations

import base64
import os
import re
from binascii import Error
from typing import NamedTuple
from urllib.parse import urlsplit

from async_maps.errors import SettingsError
from async_maps.filesystems.addresses import parse_account

_NAME, CONNECTION = "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING"
_KEY, _SAS = "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"
_EMULATOR = "http://127.0.0.1:10000/devstoreaccount1"
_EMULATOR_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of every emulator, from its documentation; it protects nothing."""


_OF_THE_VENDOR = re.compile(
    r"https://[a-z0-9-]{3,}\.(?:z[0-9]+\.)?blob\."
    r"(?:core\.windows\.net|core\.usgovcloudapi\.net|core\.chinacloudapi\.cn|storage\.azure\.net)"
)
"""The accounts whose servers may see tokens, whoever has written their URL."""


class Account(NamedTuple):
    """An account, and what proves that requests may use it: a key, a query with a signature, else tokens.

    Attributes:
        url: the URL of its blobs, without a slash at its end.
        key: the shared key; empty if there is none.
        sas: the query of a shared access signature; empty if there is none.
    """

    url: str
    key: bytes = b""
    sas: str = ""

    def __repr__(self) -> str:
        return f"Account(url={self.url!r})"

    @property
    def name(self) -> str:
        """The name of the account: the first label of the host, or in emulators the path."""
        parts = urlsplit(self.url)
        return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]

    @property
    def is_emulator(self) -> bool:
        """Whether it is the account of an emulator."""
        return bool(urlsplit(self.url).path.strip("/"))

    @classmethod
    def from_environment(cls, url: str = "") -> Account:
        """Return the account of ``AZURE_STORAGE_CONNECTION_STRING``, else of ``AZURE_STORAGE_ACCOUNT``.

        Args:
            url: the URL of an account that an address names; by default that of the environment. The key and the
                signature in the environment are used if they belong to it.

        Raises:
            SettingsError: there is none, a variable is not valid, or no token may be sent to the account.
        """
        connection, name = (os.environ.get(variable, "").strip() for variable in (CONNECTION, _NAME))
        own = _connected(connection) if connection else _named(name) if name else None
        if own is None and not url:
            raise SettingsError(f"az:// needs the storage account: set {_NAME}, or {CONNECTION}")
        found = own if own is not None and url in {"", own.url} else cls(url)
        if not (found.key or found.sas):
            _check_token_may_be_sent(found.url, is_own=found is own)
        return found


def _check_token_may_be_sent(url: str, *, is_own: bool) -> None:
    if not url.startswith("https:"):
        raise SettingsError(f"{url}: tokens are not sent without TLS: set {CONNECTION}, with the AccountKey")
    if not (is_own or _OF_THE_VENDOR.fullmatch(url)):
        # Anyone may have written the table or the manifest that names it.
        raise SettingsError(
            f"{url} is no server of Azure, so no token is sent to it: if it is yours, set {CONNECTION}, with its "
            "BlobEndpoint"
        )


def _named(name: str) -> Account:
    if not re.fullmatch(r"[a-z0-9]{3,24}", name):
        raise SettingsError(f"{_NAME}: expected 3 to 24 lower-case letters and digits, found {name!r}")
    sas = os.environ.get(_SAS, "").strip().lstrip("?")
    return Account(f"https://{name}.blob.core.windows.net", _decoded(_KEY, os.environ.get(_KEY, "").strip()), sas)


def _connected(connection: str) -> Account:
    # The names are those of the vendor's libraries, in any case. Values have "=" in them.
    parts = {name.strip().lower(): value.strip() for name, _, value in _pairs(connection)}
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        return Account(_EMULATOR, base64.b64decode(_EMULATOR_KEY))
    name, url = parts.get("accountname", ""), parts.get("blobendpoint", "").rstrip("/")
    if not url and name:
        suffix = parts.get("endpointsuffix", "core.windows.net")
        url = f"{parts.get('defaultendpointsprotocol', 'https').lower()}://{name}.blob.{suffix}"
    # The URL is not shown: it may have a signature.
    if (found := parse_account(url)) is None or found[1]:
        raise SettingsError(f"{CONNECTION}: expected AccountName=..., or BlobEndpoint=https://ACCOUNT.blob.SUFFIX")
    key = _decoded(f"AccountKey in {CONNECTION}", parts.get("accountkey", ""))
    return Account(found[0], key, parts.get("sharedaccesssignature", "").lstrip("?"))


def _pairs(connection: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in connection.split(";") if part.strip()]


def _decoded(what: str, key: str) -> bytes:
    try:
        return base64.b64decode(key, validate=True)
    except (Error, ValueError):
        raise SettingsError(f"{what}: expected the key in base 64, as the portal shows it") from None
