"""Whose fault it is that an object of a source in a bucket cannot be listed. Blocking; for the thread that lists."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.filesystem import UnavailableError, verdict_of
from async_maps.filesystems.verdict import Scope
from async_maps.keys import printable
from async_maps.sources.formats.registry import suffix_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.filesystems.verdict import Verdict
    from async_maps.outcomes import Failure

_FOLDERS = {None, ".zarr"}
"""The suffixes of files that are folders of objects."""
_TRIES = 3
_PAUSE_S = 1.0
_MOST_UNSURE = 16
"""After this many refused objects, and none that could be read, the bucket is wrong, not some rows of a table."""
_MOST_HELD = 1000
"""After this many refused objects, and none that could be read, all are refused, not only those of some folders."""


class Hearing:
    """Decides by another object, which could be read: the control.

    Attributes:
        control: its path; None if no object could be read, or if it was deleted.
    """

    def __init__(self, filesystems: Filesystems) -> None:
        self.control: str | None = None
        self._filesystems = filesystems
        self._read: str | None = None
        self._held: list[tuple[Failure, Verdict]] = []
        self._unsure = 0

    def could_read(self, path: str) -> None:
        """Note a file that could be read, in this listing or, by the manifest, in an earlier run."""
        self._read = path
        if suffix_of(path) not in _FOLDERS:
            self.control = path

    def may_pass(self, path: str, verdict: Verdict, tries: int) -> bool:
        """Return whether to try an object again, after it could not be read ``tries`` times; False if it is to blame.

        Raises:
            UnavailableError: the others cannot be read either.
        """
        is_certain = verdict.certain and not self._may_be_this_bucket_alone(path, verdict)
        if is_certain or (verdict.retry and self.control is None):
            raise UnavailableError(f"{printable(path)}: {verdict.reason}", may_pass=verdict.may_pass)
        if self.control is not None:
            self._wait_for(self.control, path, verdict)
        return verdict.retry and tries < _TRIES

    def _may_be_this_bucket_alone(self, path: str, verdict: Verdict) -> bool:
        """Whether other objects of a table may be in a bucket that can be read."""
        if verdict.scope is not Scope.BUCKET:
            return False
        if self._read is None:
            self._unsure += 1
            return self._unsure <= _MOST_UNSURE
        read, refused = (parse_address(each)._replace(key="") for each in (self._read, path))
        return read != refused

    def _wait_for(self, control: str, path: str, verdict: Verdict) -> None:
        address = parse_address(control)
        filesystem = self._filesystems.at(address)
        until = time.monotonic() + filesystem.settings.give_up_s
        while True:
            try:
                filesystem.get(address, 0, 1)
                return
            except FileNotFoundError:
                # It was deleted meanwhile; but the store answers, and does not refuse.
                self.control = None
                return
            except SourceError as error:
                found = verdict_of(error)
                if found is not None and not found.retry:
                    # Refused, too.
                    raise UnavailableError(f"{printable(path)}: {verdict.reason}") from error
                if found is None or time.monotonic() > until:
                    raise UnavailableError(
                        f"{printable(path)}: {verdict.reason}; run the same command again when the store is back",
                        may_pass=True,
                    ) from error
            time.sleep(_PAUSE_S)

    def hold(self, failure: Failure, verdict: Verdict) -> Iterator[Failure]:
        """Yield the failure of an object that is to blame; hold it back while no other object could be read.

        Raises:
            UnavailableError: many are held back: each costs a request, and some memory.
        """
        self._held.append((failure, verdict))
        if self._read is None and len(self._held) >= _MOST_HELD:
            self.end()
        yield from self.released()

    def released(self) -> Iterator[Failure]:
        """Yield the failures that were held back, if another object could be read since."""
        if self._read is not None:
            held, self._held = self._held, []
            yield from (failure for failure, _ in held)

    def end(self) -> None:
        """Raise UnavailableError if failures are still held back at the end of the listing: no object could be read."""
        if self._held:
            failure, verdict = self._held[0]
            raise UnavailableError(f"{failure.source}: {verdict.reason}", may_pass=verdict.may_pass)
