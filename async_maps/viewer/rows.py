"""Reads a manifest in short connections, so that a run beside the viewer ends as without it. Everything here blocks.

An idle connection would keep the run from closing its write-ahead log: three files would stay, and whoever copies only
the ``.sqlite`` would lose rows.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import ManifestError, translate_os_error
from async_maps.filesystems.endpoints import Identity
from async_maps.manifest.lock import holder_of
from async_maps.manifest.manifest import Manifest
from async_maps.plans.place import is_plan
from async_maps.plans.rows import PlanRows
from async_maps.viewer.viewed_manifest import WRITTEN, Chunk, ViewedManifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from typing import Self

    from numpy.typing import NDArray

    from async_maps.manifest.metadata import KeptRun
    from async_maps.settings import S3Settings
    from async_maps.viewer.viewed_manifest import Names

_COPIES = 5
_CHUNK = 100_000
"""Rows that are read in one connection: about 0.05 s."""
_PAUSE_S = 0.06
"""The pause between two chunks while a run writes. A run that ends tries to close its log every 0.05 s, 10 times."""
_KEPT_S = 1.0
_CANNOT_OPEN = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_VERSIONS, _LOGGED = slice(18, 20), b"\2\2"
"""Where an SQLite file says that it has a write-ahead log, and how."""


class Counts(NamedTuple):
    """The rows of a manifest: those that are done, and those that have failed."""

    done: int
    failed: int

    @property
    def total(self) -> int:
        """The number of all rows."""
        return self.done + self.failed


class ViewedRows:
    """The rows of a manifest or of a plan, which is copied into a temporary manifest first.

    Attributes:
        address: the file of the manifest or the address of the plan, as it was given.
        path: the manifest that is read: the file, or a temporary copy.
        is_copy: whether it is a copy, which does not change.

    Raises:
        ManifestError: the manifest cannot be read. All methods raise it.
        PlanError: the plan cannot be read.
        StoreError: the store of the plan cannot be used.
    """

    def __init__(self, address: str | PathLike[str], s3: S3Settings | None = None) -> None:
        self.address = os.fspath(address)
        self._file: Path | None = None
        self._counting = Lock()
        self._counted: tuple[float, Counts | None] = (0.0, None)
        with ExitStack() as stack:
            if is_plan(self.address):
                self.path, self.is_copy = _temporary(stack) / "plan.sqlite", True
                with PlanRows(self.address, s3, whole=False) as plan, _PlanCopy(self.path) as copy:
                    copy.fill(plan)
            else:
                # The program may change its current folder.
                self._file = Path(self.address).absolute()
                self.path, self.is_copy = self._file, not _can_open(self._file)
                if self.is_copy:
                    self.path = _temporary(stack) / "manifest.sqlite"
                    _copy(self._file, self.path)
            with self.opened():
                self._opened = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary copy."""
        self._opened.close()

    @contextmanager
    def opened(self) -> Iterator[ViewedManifest]:
        """Open the manifest for a moment."""
        with ViewedManifest(self.path, read_only=True) as manifest:
            yield manifest

    def counts(self, *, fresh: bool = False) -> Counts:
        """Return the number of rows; that of the last second unless ``fresh``: a million take 0.1 s to count."""
        with self._counting:
            counted_at, counts = self._counted
            if fresh or counts is None or time.monotonic() - counted_at > _KEPT_S:
                with self.opened() as manifest:
                    found = manifest.counts()
                counts = Counts(found.get("done", 0), found.get("failed", 0))
                self._counted = time.monotonic(), counts
            return counts

    def destination(self) -> str:
        """Return the destination of the overlays; empty if there was no run."""
        with self.opened() as manifest:
            return Identity.parse(manifest.destination() or "").destination

    def runs(self) -> list[KeptRun]:
        """Return the settings of the runs."""
        with self.opened() as manifest:
            return manifest.runs()

    def is_written(self) -> bool:
        """Return whether a run writes the manifest now, also if this is a copy of it."""
        return self._file is not None and holder_of(self._file) is not None

    def is_live(self) -> bool:
        """Return whether a run writes what is read here."""
        return not self.is_copy and self.is_written()

    def rest(self) -> None:
        """Wait a moment if a run writes the manifest, so that it can close its log in between."""
        if self.is_live():
            time.sleep(_PAUSE_S)

    def names(self) -> Iterator[Names]:
        """Yield the numbers and names of all rows in chunks, by name; those refused at their source come last."""
        after = b""
        while True:
            with self.opened() as manifest:
                found = manifest.names(after, _CHUNK)
            if not len(found.numbers):
                break
            yield found
            after = found.last
            self.rest()
        with self.opened() as manifest:
            yield manifest.refused_names()

    def column(self, expression: str, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values of an SQL expression of ours for these rows, (n,) float64; NaN for null and gone rows.

        Args:
            expression: a column, or an expression of columns, that is a number.
            numbers: the row numbers, sorted, (n,) int64.
        """
        values = np.full(len(numbers), np.nan)
        for start in range(0, len(numbers), _CHUNK):
            known = numbers[start : start + _CHUNK]
            chunk = Chunk(int(known[0]), int(known[-1]), len(known))
            with self.opened() as manifest:
                found = manifest.column(expression, chunk)
                if found is None:
                    others, found_there = manifest.numbered(expression, chunk)
                    at = np.minimum(np.searchsorted(others, known), max(0, len(others) - 1))
                    is_there = others[at] == known if len(others) else np.zeros(len(known), bool)
                    found = np.full(len(known), np.nan)
                    found[is_there] = found_there[at[is_there]]
            values[start : start + len(known)] = found
            self.rest()
        return values


def _temporary(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="async-maps-view-")))


def _can_open(path: Path) -> bool:
    """Whether SQLite can open a manifest where it lies, and leaves no file there; other problems are left to others."""
    if _would_log(path):
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA application_id")
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF not in _CANNOT_OPEN or not path.is_file()
    return True


def _would_log(path: Path) -> bool:
    """Whether SQLite would create a log beside a file, which a run has left: it was copied without its log."""
    # Not beside a run: closing the file would release the locks of one in this process.
    if not path.is_file() or os.path.exists(f"{os.path.realpath(path)}-wal") or holder_of(path) is not None:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(_VERSIONS.stop)[_VERSIONS] == _LOGGED
    except OSError:
        return False


def _copy(path: Path, target: Path) -> None:
    """Copy a manifest and its log, again if either changes meanwhile."""
    log, log_target = Path(f"{os.path.realpath(path)}-wal"), Path(f"{target}-wal")
    try:
        for _ in range(_COPIES):
            before = _states(path, log)
            shutil.copyfile(path, target)
            log_target.unlink(missing_ok=True)
            if log.exists():
                shutil.copyfile(log, log_target)
            if _states(path, log) == before:
                return
    except OSError as error:
        raise ManifestError(f"the manifest {path} cannot be copied: {translate_os_error(error)}") from error
    raise ManifestError(f"the manifest {path} changes while it is copied: try again after its run", may_pass=True)


def _states(*paths: Path) -> list[tuple[int, int] | None]:
    found = [path.stat() if path.exists() else None for path in paths]
    return [status and (status.st_size, status.st_mtime_ns) for status in found]


class _PlanCopy(Manifest):
    """A manifest that is written from the rows of a plan, also of one that is not done."""

    def fill(self, plan: PlanRows) -> None:
        marks = ", ".join("?" * len(WRITTEN))
        insert = f"INSERT OR REPLACE INTO maps ({', '.join(WRITTEN)}) VALUES ({marks})"  # noqa: S608  # our own
        self.keep_destination(plan.destination())
        for run in plan.runs():
            self.keep_run(run)
        with self._writing() as database, closing(plan.parts()) as parts:
            for _, rows in parts:
                database.executemany(insert, rows)
