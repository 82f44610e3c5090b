"""What is known of what a store keeps: found with the first object of a run, and kept in the manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_maps.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNPROVED = "the answer does not prove that the store has these bytes"
UNREAD = f"{UNPROVED}, and they cannot be read back: GetObject is"
ALLOW_READING = "allow s3:GetObject"
IGNORES_CONDITION = "the store ignores If-None-Match, which --if-exists skip and error need"
OVERWRITE = "use --if-exists overwrite"
UNPROVED_CONDITION = (
    "whether it keeps If-None-Match cannot be proved without overwriting, because GetObject of a new key is"
)
ALLOW_PROOF = "allow s3:GetObject and s3:ListBucket, or use --if-exists overwrite"
OPAQUE_ETAGS = "the store's ETags are not the MD5s of the objects, so they are not compared"


class BrokenPromiseError(StoreError):
    """The store does not keep what the settings ask for: the settings or the store must be changed."""


@dataclass(slots=True)
class Promises:
    """What is known of a destination.

    Attributes:
        create_only: whether a PUT with If-None-Match left an existing object as it was.
        takes_crc32: False if the store refuses the header ``x-amz-checksum-crc32``: PUTs send Content-MD5.
        etags_are_md5: False if ETags cannot be compared; None if that is not known.
        kept: headers that a PUT asked for, and that only HeadObject returned.
        is_news: whether something was found since :meth:`dump`.
    """

    create_only: bool = False
    takes_crc32: bool = True
    etags_are_md5: bool | None = None
    kept: dict[str, str] = field(default_factory=dict)
    is_news: bool = False

    def known(self) -> dict[str, Any]:
        """Return what later runs need not find out again, for JSON."""
        values = {"create_only": self.create_only, "takes_crc32": self.takes_crc32, "kept": {**self.kept}}
        return values | ({"etags_are_md5": False} if self.etags_are_md5 is False else {})

    def dump(self) -> dict[str, Any]:
        """Return :meth:`known` to save it; it is no news from now on."""
        self.is_news = False
        return self.known()

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Add what an earlier run found, the result of :meth:`dump`."""
        self.create_only |= dumped["create_only"]
        self.takes_crc32 &= dumped["takes_crc32"]
        self.kept |= dumped["kept"]
        if self.etags_are_md5 is None:
            self.etags_are_md5 = dumped.get("etags_are_md5")
