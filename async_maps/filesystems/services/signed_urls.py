"""URLs with a signature, by which anyone can read an object. Everything here blocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import SettingsError, StoreError
from async_maps.filesystems.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.services.azure_account import Account

_EARLY = timedelta(minutes=5)
"""Signatures begin to be valid this long ago, as the clocks of other machines may be behind."""
_LONGEST = timedelta(days=7)
"""The longest life of a key that is delegated to a user (Azure, "Get User Delegation Key")."""


class Life(NamedTuple):
    """When URLs were signed, and for how many seconds they are valid since then."""

    begin: datetime
    seconds: int

    def texts(self) -> tuple[str, str]:
        """Return the times between which the URLs are valid, as Azure writes them."""
        begin = self.begin - _EARLY
        end = min(self.begin + timedelta(seconds=self.seconds), begin + _LONGEST)
        return f"{begin:%Y-%m-%dT%H:%M:%SZ}", f"{end:%Y-%m-%dT%H:%M:%SZ}"


def signing(destination: str, hours: float) -> Callable[[str], str]:
    """Return a function that turns a locator below a destination into a signed URL.

    Raises:
        SettingsError: the service is not set up, or cannot sign.
        CredentialsError: there are no credentials, or they cannot sign. The function raises it, too.
        StoreError: the service gives no key; or, in the function, the locator cannot be signed.
        MissingExtraError: an extra is not installed.
    """
    place, life = parse_address(destination, SettingsError), Life(datetime.now(UTC), round(hours * 3600))
    if place.scheme == "gs":
        from async_maps.filesystems.services.google import GoogleCredentials
        from async_maps.filesystems.services.google_urls import google_url

        signer = GoogleCredentials(signs=True).url_signer()

        def signed_by_google(locator: str) -> str:
            address = parse_address(locator, StoreError)
            if address.scheme != "gs":
                raise StoreError(f"cannot presign {locator}: the credentials are for Google Cloud")
            return google_url(address.bucket, address.key, life, signer)

        return signed_by_google
    from async_maps.filesystems.services.azure_account import Account

    return _signing_in_azure(Account.from_environment(place.account), life)


def _signing_in_azure(account: Account, life: Life) -> Callable[[str], str]:
    from async_maps.filesystems.services.azure_urls import SigningKey, azure_url, delegated_key
    from async_maps.filesystems.services.entra import EntraCredentials

    if account.key:
        signing_key = SigningKey(account.key, {})
    elif account.sas:
        raise SettingsError("presign: a shared access signature cannot sign others: set AZURE_STORAGE_KEY, or sign in")
    else:
        signing_key = delegated_key(account, EntraCredentials().token().text, life)

    def signed(locator: str) -> str:
        address = parse_address(locator, StoreError)
        if address.account != account.url:
            raise StoreError(f"cannot presign {locator}: the credentials are for {account.url}")
        return azure_url(account, address.bucket, address.key, life, signing_key)

    return signed
