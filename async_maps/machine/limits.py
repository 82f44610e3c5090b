"""The cores and the memory that this process may use, and the default sizes that follow from them."""

from __future__ import annotations

import os
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from async_maps.machine import cgroups

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIB = 2**20
OWN_FILES, FILES_OF_A_WORKER = 32, 4
OWN_THREADS = 12
"""The open files and the threads of a pipeline besides those of its requests and encoders."""

_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
_MAIN_BYTES, _WORKER_BYTES = 160 * MIB, 80 * MIB
"""What the main process and a worker take without maps; see the formula in configs/README.md."""
_MAPS_BYTES = 20 * MIB
"""What the maps of a worker may take."""
_LARGEST_QUEUE, _SMALLEST_QUEUE = 64 * MIB, MIB
_QUEUES = 3
_CORES_OF_A_LANE = 3
"""The cores that one event loop, with its workers and encoders, keeps busy with small maps."""
FIRST_UPLOADS, _MOST_UPLOADS = 32, 256
FIRST_READS, _MOST_READS, _MOST_AHEAD = 16, 64, 256
_READ_BYTES = 8 * MIB


class Limit(NamedTuple):
    """A number that the machine allows, and where it comes from; ``origin`` is empty if it is the whole machine."""

    value: float
    origin: str = ""


class Sizes(NamedTuple):
    """The sizes of a pipeline on this machine, and a sentence for each that is smaller than on the whole machine."""

    workers: int
    encode_threads: int
    queue_bytes: int
    reasons: tuple[str, ...] = ()


class Requests(NamedTuple):
    """The number of concurrent requests to object services at the start, and the most to which it may grow.

    ``most_ahead`` is that of reads while a source is listed, which need no threads.
    """

    first_uploads: int
    most_uploads: int
    first_reads: int
    most_reads: int
    most_ahead: int


def cores(root: Path = cgroups.ROOT, environment: Mapping[str, str] = os.environ) -> Limit:
    """Find the number of cores that this process may use.

    Args:
        root: the folder that contains ``proc`` and the mounted control groups.
        environment: the environment variables.

    Returns:
        The smallest of the CPU set (or ``PYTHON_CPU_COUNT`` in Python 3.13 or newer), the CPU quota of the control
        group, and the CPUs that Slurm gave to the task or to the job on this node.
    """
    limits = [Limit(_process_cores())]
    quota = cgroups.cpu_quota(root)
    if quota is not None:
        limits.append(Limit(quota, f"a CPU quota of {quota:.4g}"))
    for name in _SLURM:
        value = environment.get(name, "").strip()
        if value.isdecimal() and int(value):
            limits.append(Limit(int(value), f"{name}={value}"))
    return min(limits, key=lambda limit: limit.value)


def memory(root: Path = cgroups.ROOT) -> Limit | None:
    """Find the number of bytes of memory that this process and its workers may use together.

    Args:
        root: the folder that contains ``proc`` and the mounted control groups.

    Returns:
        The limit of the control group if it is smaller than the memory of the machine, else the memory of the machine;
        None if neither is known.
    """
    limit, installed = cgroups.memory_limit(root), _installed_memory(root)
    if limit is not None and (installed is None or limit < installed):
        return Limit(limit, f"a memory limit of {limit / MIB:,.0f} MiB")
    return None if installed is None else Limit(installed)


def default_sizes(
    available: Limit,
    most: Limit | None,
    *,
    workers: int | None = None,
    encode_threads: int | None = None,
    lanes: int = 1,
) -> Sizes:
    """Choose the sizes of a pipeline.

    Args:
        available: the cores.
        most: the memory; None if it is not known.
        workers: the number of worker processes, if it was set.
        encode_threads: the number of threads that encode, if it was set.
        lanes: the number of processes that run all stages.

    Returns:
        Two workers for every three cores, at least one, one encoder thread for every core, and queues of 64 MiB; less
        if the memory is too small for them.
    """
    whole = ceil(available.value)
    reasons = []
    origin = available.origin
    # They take about two thirds of the CPU time of a map (bench profile).
    count = max(1, 2 * whole // 3)
    free = inf if most is None else most.value - _main_bytes(lanes)
    fitting = max(1, int(min(free - _QUEUES * 16 * MIB, 2**40) // (_WORKER_BYTES + _MAPS_BYTES)))
    if most is not None and fitting < count:
        count, origin = fitting, most.origin or f"{most.value / MIB:,.0f} MiB of memory"
    if workers is None:
        workers = count
        if origin:
            reasons.append(f"workers: {workers}, from {origin}")
    if encode_threads is None:
        encode_threads = max(2, whole)
        if available.origin:
            reasons.append(f"encode_threads: {encode_threads}, from {available.origin}")
    # Half of what remains is for the maps themselves.
    share = (free - max(1, workers) * _WORKER_BYTES) / (2 * _QUEUES)
    queue = int(max(_SMALLEST_QUEUE, min(share, _LARGEST_QUEUE)))
    if most is not None and queue < _LARGEST_QUEUE:
        origin = most.origin or f"{most.value / MIB:,.0f} MiB of memory"
        reasons.append(f"queue_bytes: {queue / MIB:.1f} MiB, from {origin}")
    return Sizes(workers, encode_threads, queue, tuple(reasons))


def default_lanes(available: Limit, most: Limit | None, whole: int | None = None) -> Limit:
    """Choose the number of processes that run all stages.

    Args:
        available: the cores.
        most: the memory; None if it is not known.
        whole: the cores of the machine; None to find them.

    Returns:
        1 up to 4 cores, else one for every 3 cores; fewer if the memory is too small for them. Without an origin if the
        whole machine would not have more.
    """
    lanes = _lanes_for(available.value)
    origin = available.origin if lanes < _lanes_for(whole or os.cpu_count() or 1) else ""
    if most is not None:
        free = most.value - _MAIN_BYTES - _QUEUES * _LARGEST_QUEUE
        fitting = max(1, int(free // (_MAIN_BYTES + _WORKER_BYTES + _MAPS_BYTES)))
        if fitting < lanes:
            lanes, origin = fitting, most.origin or f"{most.value / MIB:,.0f} MiB of memory"
    return Limit(lanes, origin)


def _main_bytes(lanes: int) -> int:
    """Return what the processes take that run an event loop: the main process, and the lanes if there are any."""
    return _MAIN_BYTES * (1 + lanes if lanes > 1 else 1)


def _lanes_for(available: float) -> int:
    whole = ceil(available)
    return 1 if whole <= _CORES_OF_A_LANE + 1 else whole // _CORES_OF_A_LANE


def default_requests(
    most: Limit | None, files: float | None, threads: float | None, sizes: Sizes, lanes: int = 1
) -> Requests:
    """Choose the number of concurrent requests.

    Args:
        most: the memory; None if it is not known.
        files: the number of files that the main process may open; None if there is no limit.
        threads: the number of threads and processes that may run; None if there is no limit.
        sizes: the other sizes of the pipeline.
        lanes: the number of processes that run all stages.

    Returns:
        32 uploads, up to 256, and 16 reads, up to 64, or 256 ahead of a listing. Less if there are too few files for
        their connections, or threads for the reads. The buffers of more than 16 reads in threads take at most a quarter
        of the free memory.
    """
    spare_files = inf if files is None else files - OWN_FILES - FILES_OF_A_WORKER * sizes.workers
    spare_threads = inf if threads is None else threads - OWN_THREADS - sizes.encode_threads - 2 * sizes.workers
    uploads = max(1, int(min(_MOST_UPLOADS, spare_files // 2)))
    ahead = max(1, int(min(_MOST_AHEAD, spare_files // 4)))
    reads = int(max(1, min(_MOST_READS, ahead, spare_threads)))
    if most is not None:
        free = most.value - _main_bytes(lanes) - max(1, sizes.workers) * _WORKER_BYTES - _QUEUES * sizes.queue_bytes
        reads = min(reads, max(FIRST_READS, int(free / 4 // _READ_BYTES)))
    return Requests(min(FIRST_UPLOADS, uploads), uploads, min(FIRST_READS, reads), reads, ahead)


def _process_cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13: counts PYTHON_CPU_COUNT
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _installed_memory(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
