"""Object services besides S3: how each spells its requests, and one client and one filesystem for all of them.

A :class:`~async_maps.filesystems.services.service.Service` has no input or output: it makes requests and understands
answers. :mod:`~async_maps.filesystems.services.client` sends them. S3 has a client of its own, with faster requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote, parse_address

if TYPE_CHECKING:
    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.remote import RemoteFilesystem
    from async_maps.filesystems.services.service import Service
    from async_maps.settings import S3Settings


def open_filesystem(address: Address, settings: S3Settings | None) -> RemoteFilesystem:
    """Open the filesystem of the service at an address.

    Raises:
        SettingsError: the service is not set up.
        MissingExtraError: it needs an extra.
    """
    if address.scheme == "s3":
        from async_maps.filesystems.s3 import S3Filesystem

        return S3Filesystem(settings)
    from async_maps.filesystems.services.filesystem import ServiceFilesystem

    return ServiceFilesystem(open_service(address), settings)


def open_service(address: Address) -> Service:
    """Open the service at an address in Google Cloud Storage or Azure.

    Raises:
        SettingsError: the service is not set up.
        MissingExtraError: it needs an extra.
    """
    if address.scheme == "gs":
        from async_maps.filesystems.services.gcs import CloudStorage

        return CloudStorage.from_environment()
    from async_maps.filesystems.services.azure import BlobStorage

    return BlobStorage.from_environment(address.account)


def canonical(locator: str) -> str:
    """Return a locator as stores write it: of objects in Azure, others write ``az://`` or encode other characters.

    Raises:
        SettingsError: the account of the locator is not known.
    """
    if not locator.startswith(("az://", "https://", "http://")) or not is_remote(locator):
        return locator
    try:
        return str(_with_account(parse_address(locator)))
    except SourceError:
        return locator


def locator_of(address: Address) -> str:
    """Return the start of the locators of a store at an address, without a slash at its end.

    Raises:
        SettingsError: the account of the address is not known.
    """
    return _with_account(address).folder


def _with_account(address: Address) -> Address:
    if address.scheme != "az" or address.account:
        return address
    from async_maps.filesystems.services.azure_account import Account

    return address._replace(account=Account.from_environment().url)
