"""Checks of a folder, in a thread: writing, space, atomic renames, new files, names and fsync."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.doctor.finding import Finding
from async_maps.doctor.pngs import overlay_sized_png, tiny_png
from async_maps.errors import SettingsError, StoreError
from async_maps.filesystems.locators import EXPECTED, file_path
from async_maps.filesystems.spelling import Spelling
from async_maps.filesystems.temporary import temporary_name
from async_maps.stores import open_store
from async_maps.stores.files import FileStore, cannot_write, rename_to_new

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.doctor.finding import Level, OnFinding
    from async_maps.settings import Settings

    _Answer = tuple[Level, str, str]

_FEW_OVERLAYS = 10_000
_SLOW_FSYNC_S = 0.05


async def examine(place: str, settings: Settings, on_finding: OnFinding) -> None:
    """Check a folder, or the existing folder in which it would be created.

    Raises:
        SettingsError: the place is not a folder.
    """
    async with open_store(place, settings) as store:
        if not isinstance(store, FileStore):
            raise SettingsError(f"{place!r} cannot be checked; expected {EXPECTED}")
        try:
            await store.check()
        except StoreError as error:
            findings = [
                Finding("write", "failure", str(error), "choose another folder, or change its owner or permissions")
            ]
        else:
            findings = await to_thread.run_sync(_try_out, Path(str(file_path(store.destination))), settings)
    findings.append(Finding("kolena", "warning", "Kolena cannot read file:// locators",
                            "for Kolena, write to a bucket, or copy the overlays there and change the "
                            "locators"))  # fmt: skip
    # Reported together, on the event loop, because the callback need not be thread-safe.
    for finding in findings:
        on_finding(finding)


def _try_out(folder: Path, settings: Settings) -> list[Finding]:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    path = existing / f"{temporary_name()}.png"
    other = path.with_suffix(".tmp")
    overlay = overlay_sized_png()
    checks: dict[str, Callable[[], _Answer]] = {
        "write": lambda: _write(path, tiny_png(settings), folder),
        "space": lambda: _space(existing, len(overlay)),
        "rename": lambda: _rename(path, other),
        "create only": lambda: _create_only(path, other),
        "names": lambda: _names(existing),
        "fsync": lambda: _fsync(path, overlay, wanted=settings.files.fsync),
    }
    findings = []
    try:
        for check, answer in checks.items():
            findings.append(Finding(check, *answer()))
    except OSError as error:
        findings.append(Finding(check, "failure", cannot_write(folder, error), "choose another folder or disk"))
    finally:
        for file in (path, other):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                findings.append(Finding("delete", "warning", f"{file} was not deleted: {error.strerror}", "delete it"))
    return findings


def _write(path: Path, data: bytes, folder: Path) -> _Answer:
    path.write_bytes(data)
    if path.read_bytes() != data:
        return "failure", f"a file in {path.parent} has other bytes than were written", "check that disk"
    made = "" if path.parent == folder else f"; {folder} will be created with the first file"
    return "ok", f"{path.parent} is writable{made}", ""


def _space(folder: Path, overlay_bytes: int) -> _Answer:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    # Some file systems create inodes on demand, and report 0.
    inodes = disk.f_favail if disk.f_files else None
    fit = min(free // overlay_bytes, free if inodes is None else inodes)
    files = "" if inodes is None else f" and {inodes:,} files"
    text = f"{free / 1e9:,.1f} GB{files} free: about {fit:,} overlays of {overlay_bytes / 1e3:.0f} KB"
    return ("warning", text, "free some space, or choose another disk") if fit < _FEW_OVERLAYS else ("ok", text, "")


def _rename(path: Path, other: Path) -> _Answer:
    """Check that an open reader keeps the old file, and the next one gets the new file (POSIX, "rename")."""
    before = path.read_bytes()
    with open(path, "rb") as reader:
        other.write_bytes(b"another")
        os.replace(other, path)
        whole = reader.read() == before and path.read_bytes() == b"another"
    if whole:
        return "ok", "files are replaced atomically: readers see the old or the new one", ""
    return "warning", "files are not replaced atomically", "do not read overlays during a run"


def _create_only(path: Path, other: Path) -> _Answer:
    links = "" if _has_links(path, other) else "; without hard links, a file is empty for a moment"
    other.write_bytes(b"another")
    try:
        rename_to_new(str(other), str(path))
    except FileExistsError:
        return "ok", f"--if-exists skip and error work{links}", ""
    return "warning", "a new file replaced an existing one", "use --if-exists overwrite"


def _has_links(path: Path, other: Path) -> bool:
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        return False
    other.unlink()
    return True


def _names(folder: Path) -> _Answer:
    spelling = Spelling.of(str(folder))
    if spelling is None:
        return "ok", "names that differ in case or Unicode form are different files", ""
    what = " and ".join(["case"] * spelling.ignores_case + ["the Unicode form of names"] * spelling.ignores_form)
    return "warning", f"this disk ignores {what}", "of two maps whose names differ only in that, the second fails"


def _fsync(path: Path, overlay: bytes, *, wanted: bool) -> _Answer:
    times = []
    for _ in range(5):
        with open(path, "wb") as file:
            file.write(overlay)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    text = f"{median(times) * 1e3:.1f} ms to flush an overlay to the disk (median of {len(times)})"
    if wanted and median(times) > _SLOW_FSYNC_S:
        return "warning", text, "a run without files.fsync is faster, but a power failure may lose files"
    return "ok", text, ""
