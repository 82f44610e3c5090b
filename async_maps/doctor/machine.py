"""Checks of this machine: the sizes that a run gets here, and its limits of files and threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.doctor.finding import Finding
from async_maps.machine.limits import (
    FILES_OF_A_WORKER,
    FIRST_READS,
    FIRST_UPLOADS,
    MIB,
    OWN_FILES,
    OWN_THREADS,
    cores,
    memory,
)
from async_maps.machine.shortage import open_files_limit, thread_limit
from async_maps.render.kernel_stores import VARIABLE, Places

if TYPE_CHECKING:
    from async_maps.settings import Settings


def check_machine(settings: Settings) -> list[Finding]:
    """Compare the sizes of a run with these settings with what the machine allows."""
    available, most = cores(), memory()
    size = "" if most is None else f", {most.value / MIB:,.0f} MiB of memory"
    lanes = settings.lane_count if settings.lane_count > 1 else 0
    sizes = (
        f"workers: {settings.worker_count}, encode_threads: {settings.encode_thread_count}, "
        f"queue_bytes: {settings.queue_size / MIB:.1f} MiB"
    )
    if lanes:
        sizes = f"processes: {lanes}, {sizes}"
    reasons = f" ({'; '.join(settings.reductions)})" if settings.reductions else ""
    findings = [Finding("machine", "ok", f"{available.value:.4g} cores{size}; {sizes}{reasons}")]
    findings.append(_kernels())
    workers = settings.worker_count
    uploads = FIRST_UPLOADS if settings.concurrency == "auto" else settings.concurrency
    reads = FIRST_READS if settings.prefetch == "auto" else settings.prefetch
    files = OWN_FILES + FILES_OF_A_WORKER * workers + uploads + reads
    threads = OWN_THREADS * (1 + lanes) + settings.encode_thread_count + reads + 2 * workers
    for what, needed, limit in (("files", files, open_files_limit()), ("threads", threads, thread_limit())):
        if limit is not None and limit.value < needed:
            text = f"a run may need {needed}, and {limit.origin} is {limit.value:.0f}"
            findings.append(Finding(what, "warning", text, f"raise it to {needed} or more: {limit.remedy}"))
    return findings


def _kernels() -> Finding:
    places = Places.find()
    if places.writable is not None and not places.refused:
        return Finding("kernels", "ok", f"compiled kernels are kept in {places.writable.folder}")
    if places.writable is not None:
        text = f"compiled kernels are kept in {places.writable.folder}, but another cache folder is not used"
        return Finding("kernels", "warning", f"{text}: {places.refused}", "correct that folder, or unset its variable")
    if places.readable and not places.refused:
        folders = ", ".join(str(place.folder) for place in places.readable)
        return Finding("kernels", "ok", f"compiled kernels are read from {folders}, and cannot be added")
    return Finding(
        "kernels",
        "warning",
        f"compiled kernels cannot be kept, so each start may compile them: {places.refused or places.unwritable}",
        f"set {VARIABLE} to a folder that only this user can write, or run async-maps warm when the image is built",
    )
