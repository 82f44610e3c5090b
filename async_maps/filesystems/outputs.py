"""The files that a command writes for its user: reports, tables and metrics. They replace only their own kind."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.filesystems.locators import file_path
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike
    from typing import IO

    Place = str | PathLike[str]

_MAX_REPORT_BYTES = 256 * 2**20
_BESIDE_MANIFEST = ("", "-lock", "-wal", "-shm", "-journal")
_KINDS = {
    b"SQLite format 3\0": "an SQLite database",
    b"\x89PNG": "a PNG picture",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"PK\3\4": "a zip archive",
    b"PAR1": "a Parquet file",
}


def files_of_run(
    *, manifest: Place | None = None, config: Place | None = None, source: str = "", destination: str = ""
) -> dict[str, str]:
    """Return the local files of a run that no output may replace, each with what it is."""
    files = {"" if manifest is None else f"{os.fspath(manifest)}{end}": "the manifest" for end in _BESIDE_MANIFEST}
    files |= {"" if config is None else os.fspath(config): "the settings file"}
    for place, what in ((source, "the source"), (destination, "the destination")):
        if not is_remote(place):
            files[os.path.expanduser(file_path(place) or place)] = what
    files.pop("", None)
    return files


def check_output(
    path: Place, what: str, is_ours: Callable[[IO[bytes]], bool], files: Mapping[str, str] | None = None
) -> None:
    """Check that writing an output replaces nothing but an earlier output of the same kind, or an empty file.

    Args:
        path: the file to write; links to other files are recognized. A pipe or a terminal replaces nothing.
        what: the output, for messages: ``"the report"``.
        is_ours: whether an existing file, open at its start, is an output of this kind.
        files: the files of this run, from :func:`files_of_run`.

    Raises:
        SettingsError: another file would be replaced.
    """
    shown = printable(os.fspath(path))
    for other, kind in (files or {}).items():
        if _is_same(path, other):
            raise SettingsError(f"{what} would replace {kind}: {shown}; choose another file")
        if kind == "the destination" and _is_overlay(path, other):
            raise SettingsError(f"{what} would be an overlay in the destination: {shown}; choose another file")
    try:
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            raise SettingsError(f"{what} would overwrite a disk: {shown}; choose another file")
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return
        with LocalFilesystem().open(os.fspath(path)) as file:
            if is_ours(file):
                return
            file.seek(0)
            start = file.read(16)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, SourceError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{what} would replace {shown}, which cannot be read: {reason}") from error
    found = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), "a file of another kind")
    raise SettingsError(
        f"{what} would replace {shown}, {found} that async-maps did not write: choose another file, or delete it"
    )


def is_report(file: IO[bytes]) -> bool:
    """Whether a file is a report of ``run`` or ``verify``."""
    # A read of at most that many bytes would take the memory for all of them.
    if file.seek(0, os.SEEK_END) > _MAX_REPORT_BYTES:
        return False
    file.seek(0)
    try:
        found = json.loads(file.read())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= {"schema", "command", "exit_code"}


def is_metrics(file: IO[bytes]) -> bool:
    """Whether a file has metrics of this package in the text format of Prometheus."""
    return file.read(18).startswith((b"# HELP async_maps_", b"# TYPE async_maps_"))


def _is_same(path: Place, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _is_overlay(path: Place, folder: str) -> bool:
    real = os.path.realpath(path)
    return real.lower().endswith(".png") and real.startswith(f"{os.path.realpath(folder).rstrip('/')}/")
