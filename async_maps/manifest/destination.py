"""Whether a manifest belongs to a destination that has another address now. Everything here blocks.

One bucket has many addresses: a port that is forwarded, the name or the number of a host, a proxy. One folder has many,
too: it is linked, mounted elsewhere or moved. So the destination is asked: a few overlays that the manifest lists as
done must be there, with the same size and ETag, or as files with the same CRC32.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import ManifestError, ObjectError, SettingsError
from async_maps.filesystems.addresses import SCHEMES, is_remote, parse_destination
from async_maps.filesystems.endpoints import Identity
from async_maps.filesystems.locators import file_path, place_at
from async_maps.filesystems.objects import Objects, checksum
from async_maps.filesystems.services import locator_of
from async_maps.keys import printable

if TYPE_CHECKING:
    from async_maps.manifest.manifest import Manifest
    from async_maps.settings import Settings

_logger = logging.getLogger("async_maps")

_SAMPLE = 5
_ENVIRONMENTS = {
    "s3": ("AWS", "AWS_ENDPOINT_URL"),
    "gs": ("Google", "STORAGE_EMULATOR_HOST"),
    "https": ("Azure", "AZURE_STORAGE_ACCOUNT"),
}
"""Whose variables name the server of a destination, and which one, by scheme."""
_ASKED = {*SCHEMES, "https", "http", "file"}
"""The schemes of destinations whose objects can be looked up."""
_TELL = 'add --same-destination yes (in Python same_destination="yes")'
ANOTHER = "choose another manifest file, with --manifest (in Python manifest)"


class Relocation(NamedTuple):
    """A new address of a manifest's destination.

    Attributes:
        identity: the new identity of the store.
        old: the start of the locators in the manifest, with a slash at its end.
        new: the start of the locators at the new address; mostly the same, because endpoints are no part of locators.
    """

    identity: str
    old: str
    new: str

    def __call__(self, locator: str) -> str:
        """Return a locator of the manifest at the new address."""
        return self.new + locator.removeprefix(self.old) if locator.startswith(self.old) else locator


def relocated(  # noqa: PLR0913  # one argument for each part of the question
    manifest: Manifest,
    here: str,
    settings: Settings,
    *,
    where: str = "this run writes to",
    else_: str = ANOTHER,
    objects: Objects | None = None,
) -> Relocation | None:
    """Return the new address of a manifest's destination; None if it has not changed or the manifest has no maps.

    Args:
        manifest: the manifest.
        here: the identity of the store now.
        settings: ``same_destination``, and the time-outs and attempts of requests.
        where: how ``here`` is introduced in a message.
        else_: what to do if it is another destination.
        objects: looks up the overlays; None to open connections for that.

    Raises:
        ManifestError: it is another destination, or that cannot be known.
        StoreError: the store cannot be reached.
    """
    known = manifest.destination()
    if known is None or known == here or not manifest.counts():
        return None
    was, now = Identity.parse(known), Identity.parse(here)
    moved = Relocation(here, was.folder, now.folder)
    if _is_same_folder(was, now):
        return moved
    refusal = f"{manifest.path} is the manifest of {was.shown}, but {where} {now.shown}"
    if settings.same_destination == "no" or _scheme(was) != _scheme(now) or _scheme(was) not in _ASKED:
        raise ManifestError(f"{refusal}: {else_}")
    is_told = settings.same_destination == "yes"
    if was.destination == now.destination:
        if not is_told and (problem := _problem(manifest, moved, settings, objects)):
            raise ManifestError(f"{refusal}, where {problem}: if it is the same bucket, {_TELL}; if not, {else_}")
    # An existing folder may have been copied, by mistake: that is asked, too.
    elif not is_told and (not _is_gone(was) or not manifest.sample(1)):
        raise ManifestError(f"{refusal}: {else_}, or {_TELL} if its overlays were moved there")
    elif problem := _problem(manifest, moved, settings, objects):
        raise ManifestError(f"{refusal}, where {problem}: move the overlays there, or {else_}")
    if not is_told:
        _logger.warning("%s was the manifest of %s; the same overlays are at %s", manifest.path, was.shown, now.shown)
    return moved


def relocated_by_environment(
    manifest: Manifest, objects: Objects, settings: Settings, destination: str | None = None
) -> Relocation | None:
    """Return the new address of a manifest's destination as the environment has it, or a place that is named.

    Arguments and errors are those of :func:`relocated`; None stands for the manifest's destination.
    """
    was = Identity.parse(manifest.destination() or "")
    vendor, variable = _ENVIRONMENTS.get(was.destination.partition(":")[0], _ENVIRONMENTS["https"])
    where, else_ = f"the {vendor} environment points to", f"set {variable} as it was in the run"
    here = objects.identity(was.destination if destination is None else place_of_overlays(destination))
    if Identity.parse(here).destination != was.destination:
        where, else_ = "destination is", "name the place of its overlays"
        if settings.same_destination == "ask":
            settings = settings.model_copy(update={"same_destination": "yes"})
    return relocated(manifest, here, settings, where=where, else_=else_, objects=objects)


def place_of_overlays(destination: str) -> str:
    """Return a destination as manifests have it: ``s3://bucket/prefix``, the URL of ``az://``, or ``file:///folder``.

    Raises SettingsError if it is neither the address of objects nor a folder.
    """
    place = place_at(destination, SettingsError)
    if is_remote(place):
        return locator_of(parse_destination(place))
    return Path(os.path.abspath(place)).as_uri()


def _problem(manifest: Manifest, moved: Relocation, settings: Settings, objects: Objects | None) -> str:
    """Return how one of a few overlays differs at the new address; empty if none does."""
    with Objects(settings.s3) if objects is None else nullcontext(objects) as asked:
        for expected in manifest.sample(_SAMPLE):
            locator = moved(expected.locator)
            try:
                found = asked.find(locator)
                crc32 = None if found is None or is_remote(locator) else checksum(locator).crc32
            except FileNotFoundError:
                found = None
            except ObjectError as error:
                return str(error)
            if found is None:
                return f"{printable(locator)} is missing"
            if found.size != expected.size:
                return f"{printable(locator)} has {found.size:,} bytes instead of {expected.size:,}"
            if expected.etag not in {None, found.etag} or crc32 not in {None, expected.crc32}:
                return f"{printable(locator)} has other bytes or another ETag"
    return ""


def _is_same_folder(was: Identity, now: Identity) -> bool:
    old, new = file_path(was.destination), file_path(now.destination)
    if old is None or new is None:
        return False
    with suppress(OSError):
        return os.path.samefile(old, new)
    return False


def _is_gone(was: Identity) -> bool:
    """Whether the old folder does not exist anymore; a bucket always counts as existing."""
    folder = file_path(was.destination)
    return folder is not None and not os.path.lexists(folder)


def _scheme(identity: Identity) -> str:
    return identity.destination.partition("://")[0]
