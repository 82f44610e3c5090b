"""A folder: can files be written there, how many, and in one step? Runs in a thread."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from uuid import uuid4

from anyio import to_thread

from async_maps.doctor.finding import Finding
from async_maps.doctor.pngs import overlay_sized_png, tiny_png
from async_maps.errors import StoreError
from async_maps.filesystems.locators import file_path

if TYPE_CHECKING:
    from async_maps.doctor.finding import OnFinding
    from async_maps.settings import Settings
    from async_maps.stores.files import FileStore

_FEW_OVERLAYS = 10_000
_SLOW_FSYNC_S = 0.05


async def examine(store: FileStore, settings: Settings, on_finding: OnFinding) -> None:
    """Look at the folder of a store, or where it would be made, which is not done here."""
    try:
        await store.check()
    except StoreError as error:
        on_finding(Finding("write", "failure", str(error), "choose another folder, or change its owner or permissions"))
    else:
        # Told together, from the loop: whoever listens need not be safe in threads.
        for finding in await to_thread.run_sync(_try_out, str(file_path(store.destination)), settings):
            on_finding(finding)
    on_finding(
        Finding(
            "kolena", "warning", "Kolena cannot read file:// locators",
            "for Kolena, write to s3://bucket/prefix, or copy the overlays there and name that in the locators",
        )
    )  # fmt: skip


def _try_out(folder: str, settings: Settings) -> list[Finding]:
    existing = Path(folder)
    while not existing.exists():
        existing = existing.parent
    path = existing / f".async-maps-doctor-{uuid4().hex}.png"
    other = path.with_suffix(".tmp")
    tiny, overlay = tiny_png(settings), overlay_sized_png()
    findings = []
    check = "write"
    try:
        path.write_bytes(tiny)
        same = path.read_bytes() == tiny
        made = "" if existing == Path(folder) else f", and {folder} is made when the first comes"
        text = f"{existing} takes files{made}" if same else f"other bytes come back than were written to {existing}"
        findings.append(Finding(check, "ok" if same else "failure", text, "" if same else "check that disk"))
        check = "space"
        findings.append(_space(existing, len(overlay)))
        check = "rename"
        findings.append(_rename(path, other))
        check = "create only"
        findings.append(_create_only(path, other, required=settings.if_exists != "overwrite"))
        check = "fsync"
        findings.append(_fsync(path, overlay, wanted=settings.files.fsync))
    except OSError as error:
        findings.append(Finding(check, "failure", f"{existing}: {error.strerror}", "choose another folder or disk"))
    finally:
        findings += [left for file in (path, other) if (left := _remove(file)) is not None]
    return findings


def _space(folder: Path, overlay_bytes: int) -> Finding:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    # Some file systems make inodes as they are needed, and count none.
    inodes = disk.f_favail if disk.f_files else None
    fit = min(free // overlay_bytes, free if inodes is None else inodes)
    files = "" if inodes is None else f" and {inodes:,} files"
    text = f"{free / 1e9:,.1f} GB{files} free: some {fit:,} overlays of {overlay_bytes / 1e3:.0f} KB"
    if fit < _FEW_OVERLAYS:
        return Finding("space", "warning", text, "make room, or choose another disk")
    return Finding("space", "ok", text)


def _rename(path: Path, other: Path) -> Finding:
    """A reader of the old file goes on with it, and the next one finds the new file whole (POSIX, "rename")."""
    before = path.read_bytes()
    with open(path, "rb") as reader:
        other.write_bytes(b"another")
        os.replace(other, path)
        whole = reader.read() == before and path.read_bytes() == b"another"
    if whole:
        return Finding("rename", "ok", "a file is replaced in one step: readers see the old one or the new one")
    return Finding(
        "rename", "warning", "replacing a file is not one step there", "let nobody read overlays during a run"
    )


def _create_only(path: Path, other: Path, *, required: bool) -> Finding:
    other.write_bytes(b"another")
    try:
        os.link(other, path)
    except FileExistsError:
        return Finding("create only", "ok", "a file that is there can be left, for --if-exists skip and error")
    except OSError as error:
        text = f"no hard links there ({error.strerror}), so --if-exists skip and error cannot work"
        return Finding("create only", "failure" if required else "warning", text, "use --if-exists overwrite")
    return Finding("create only", "warning", "a hard link has replaced a file there", "use --if-exists overwrite")


def _fsync(path: Path, overlay: bytes, *, wanted: bool) -> Finding:
    times = []
    for _ in range(5):
        with open(path, "wb") as file:
            file.write(overlay)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    text = f"{median(times) * 1e3:.1f} ms to force an overlay to the disk (median of {len(times)})"
    if wanted and median(times) > _SLOW_FSYNC_S:
        return Finding("fsync", "warning", text, "without files.fsync a run is faster, and a power cut may cost files")
    return Finding("fsync", "ok", text)


def _remove(path: Path) -> Finding | None:
    """What is to be said if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return Finding("delete", "warning", f"{path} is left: {error.strerror}", "remove it")
    return None
