"""The expected overlays of a manifest. Blocks; row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import ManifestError
from async_maps.filesystems.endpoints import Identity
from async_maps.manifest.manifest import Manifest
from async_maps.verify.comparison import Expected

if TYPE_CHECKING:
    from collections.abc import Generator
    from os import PathLike

    from async_maps.manifest.destination import Relocation


def destination_in(path: str | PathLike[str]) -> tuple[Identity, int]:
    """Return the destination of a manifest, and the number of its failed maps without an overlay."""
    with Manifest(path, read_only=True) as opened:
        identity = opened.destination()
        failed = opened.counts().get("failed", 0) - sum(opened.broken().values())
    if identity is None:
        raise ManifestError(f"{path} has no run yet: there is nothing to verify")
    return Identity.parse(identity), failed


def open_rows(path: str | PathLike[str], relocation: Relocation | None) -> Manifest:
    """Open a manifest for reading, with the locators at a new address."""
    opened = Manifest(path, read_only=True)
    opened.relocation = relocation
    return opened


def rows_in(path: str | PathLike[str], relocation: Relocation | None) -> Generator[Expected, None, None]:
    """Yield the expected overlay of each row with a locator."""
    with open_rows(path, relocation) as opened:
        for row in opened.located():
            yield Expected(
                locator=row["locator"],
                name=row["name"],
                size=row["bytes"],
                etag=row["etag"],
                crc32=row["crc32"],
                width=row["width"],
                height=row["height"],
                written_at=row["time"],
                broken=row["error"],
            )
