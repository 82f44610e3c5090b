"""URLs with a signature, by which anyone can read an object: V4 signed URLs and shared access signatures. Blocks."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from async_maps.errors import SettingsError, StoreError
from async_maps.filesystems.addresses import parse_address, quote_key
from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.azure_keys import sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.services.google import UrlSigner

_GOOGLE = "https://storage.googleapis.com"
_AZURE_VERSION = "2021-12-02"
_EARLY = timedelta(minutes=5)
"""Signatures begin to be valid this long ago, as the clocks of other machines may be behind."""


class Life(NamedTuple):
    """When a URL begins to be valid, and for how long."""

    begin: datetime
    seconds: int

    @classmethod
    def from_now(cls, hours: float) -> Life:
        """Return the life of a URL that is signed now."""
        return cls(datetime.now(UTC), round(hours * 3600))

    @property
    def end(self) -> datetime:
        """When the URL ends to be valid."""
        return self.begin + timedelta(seconds=self.seconds)


def google_url(bucket: str, key: str, life: Life, signer: UrlSigner) -> str:
    """Return a signed URL of version 4 (Cloud Storage documentation, "V4 signing process with your own program")."""
    moment = life.begin.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/auto/storage/goog4_request"
    path = f"/{bucket}/{quote_key(key)}"
    query = urlencode(
        {
            "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
            "X-Goog-Credential": f"{signer.email}/{scope}",
            "X-Goog-Date": moment,
            "X-Goog-Expires": str(life.seconds),
            "X-Goog-SignedHeaders": "host",
        },
        quote_via=quote,
        safe="",
    )
    host = urlsplit(_GOOGLE).netloc
    request = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"GOOG4-RSA-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return f"{_GOOGLE}{path}?{query}&X-Goog-Signature={signer.sign(text.encode()).hex()}"


def azure_url(account: Account, container: str, key: str, life: Life) -> str:
    """Return the URL of a blob with a signature by the key of the account (Azure, "Create a service SAS")."""
    begin, end = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (life.begin - _EARLY, life.end))
    protocol = "https" if account.url.startswith("https:") else "https,http"
    resource = f"/blob/{account.name}/{container}/{key}"
    # The empty lines are what this URL does not restrict or replace.
    fields = ("r", begin, end, resource, "", "", protocol, _AZURE_VERSION, "b", "", "", "", "", "", "", "")
    query = urlencode(
        {
            "sv": _AZURE_VERSION, "st": begin, "se": end, "sr": "b", "sp": "r", "spr": protocol,
            "sig": sign(account.key, "\n".join(fields)),
        },
        quote_via=quote,
        safe="",
    )  # fmt: skip
    return f"{account.url}/{container}/{quote_key(key)}?{query}"


def signing(destination: str, hours: float) -> Callable[[str], str]:
    """Return a function that turns a locator below a destination into a signed URL.

    Raises:
        SettingsError: the service is not set up, or cannot sign.
        StoreError: there are no credentials; or, in the function, the locator cannot be signed.
        MissingExtraError: it needs an extra.
    """
    place = parse_address(destination, SettingsError)
    if place.scheme == "gs":
        from async_maps.filesystems.services.google import GoogleCredentials

        signer = GoogleCredentials().url_signer()

        def signed(locator: str) -> str:
            address = parse_address(locator, StoreError)
            return google_url(address.bucket, address.key, Life.from_now(hours), signer)

        return signed
    account = Account.from_environment(place.account)
    if not account.key:
        raise SettingsError("presign: a shared access signature needs the key of the account: set AZURE_STORAGE_KEY")

    def with_signature(locator: str) -> str:
        address = parse_address(locator, StoreError)
        if address.account != account.url:
            raise StoreError(f"cannot presign {locator}: the key in the environment is that of {account.url}")
        return azure_url(account, address.bucket, address.key, Life.from_now(hours))

    return with_signature
