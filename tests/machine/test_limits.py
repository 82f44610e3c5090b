"""The default sizes follow from cores and memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from async_maps.doctor.machine import check_machine
from async_maps.machine.limits import MIB, Limit, Sizes, cores, default_lanes, default_requests, default_sizes, memory
from async_maps.settings import Settings
from tests.support.containers import V2, lay_out

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 cores."""
    monkeypatch.delattr("os.process_cpu_count", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.usefixtures(sixteen_cores.__name__)
@pytest.mark.parametrize(
    ("quota", "environment", "value", "origin"),
    [
        ("max 100000", {}, 16, ""),
        ("50000 100000", {}, 0.5, "a CPU quota of 0.5"),
        ("50000 100000", {"SLURM_CPUS_PER_TASK": "4"}, 0.5, "a CPU quota of 0.5"),
        ("max 100000", {"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4, "SLURM_CPUS_PER_TASK=4"),
        ("max 100000", {"SLURM_CPUS_ON_NODE": "8"}, 8, "SLURM_CPUS_ON_NODE=8"),
        ("max 100000", {"SLURM_CPUS_PER_TASK": "64"}, 16, ""),
        ("max 100000", {"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "2(x3)"}, 16, ""),
        ("max 100000", {"SLURM_CPUS_PER_TASK": "0"}, 16, ""),
    ],
)
def test_the_smallest_limit_of_cores_counts(
    quota: str, environment: dict[str, str], value: float, origin: str, tmp_path: Path
) -> None:
    root = lay_out(tmp_path, "0::/\n", V2.format(root="/"), {"cpu.max": quota})
    assert cores(root, environment) == (value, origin)


def test_python_3_13_counts_its_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert cores(tmp_path, {}) == (3, "")


@pytest.mark.parametrize(
    ("limit", "found"),
    [("max", (512 * MIB, "")), (str(256 * MIB), (256 * MIB, "a memory limit of 256 MiB")), (str(2**40), (2**29, ""))],
)
def test_memory_is_that_of_the_group_or_of_the_machine(limit: str, found: object, tmp_path: Path) -> None:
    root = lay_out(tmp_path, "0::/\n", V2.format(root="/"), {"memory.max": limit})
    (root / "proc/meminfo").write_text("MemFree: 1 kB\nMemTotal:         524288 kB\n")
    assert memory(root) == found


def test_memory_that_is_not_known_is_no_limit(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    assert default_sizes(Limit(16), None) == (10, 16, 64 * MIB, ())


@pytest.mark.parametrize(
    ("available", "mib", "workers", "threads", "queue_mib"),
    [
        (0.5, 256, 1, 2, 2.7),
        (2, 24_000, 1, 2, 64),
        (2.5, 24_000, 2, 3, 64),
        (16, 24_000, 10, 16, 64),
        (16, 1024, 8, 16, 37.3),
        (16, 512, 3, 16, 18.7),
        (16, 256, 1, 16, 2.7),
        (16, 64, 1, 16, 1),
    ],
)
def test_default_sizes_fit_into_cores_and_memory(
    available: float, mib: int, workers: int, threads: int, queue_mib: float
) -> None:
    found = default_sizes(Limit(available), Limit(mib * MIB))
    assert (found.workers, found.encode_threads, round(found.queue_bytes / MIB, 1)) == (workers, threads, queue_mib)
    # The formula of configs/README.md, without maps.
    if mib >= 256:
        assert 160 + 80 * found.workers + 3 * found.queue_bytes / MIB <= mib


def test_the_reasons_name_what_was_reduced() -> None:
    quota, limit = Limit(0.5, "a CPU quota of 0.5"), Limit(256 * MIB, "a memory limit of 256 MiB")
    assert default_sizes(quota, limit).reasons == (
        "workers: 1, from a CPU quota of 0.5",
        "encode_threads: 2, from a CPU quota of 0.5",
        "queue_bytes: 2.7 MiB, from a memory limit of 256 MiB",
    )
    assert default_sizes(Limit(16), Limit(512 * MIB)).reasons == (
        "workers: 3, from 512 MiB of memory",
        "queue_bytes: 18.7 MiB, from 512 MiB of memory",
    )
    assert default_sizes(Limit(16), Limit(2**40)).reasons == ()


@pytest.mark.parametrize(
    ("mib", "files", "threads", "workers", "found"),
    [
        (None, None, None, 4, (32, 256, 16, 64, 256)),
        (24_000, 1024, 4096, 1, (32, 256, 16, 64, 247)),
        (24_000, 256, None, 4, (32, 104, 16, 52, 52)),
        (24_000, 64, None, 1, (14, 14, 7, 7, 7)),
        (24_000, 12, None, 1, (1, 1, 1, 1, 1)),
        (24_000, 1024, 40, 1, (32, 256, 16, 24, 247)),
        (24_000, 1024, 8, 1, (32, 256, 1, 1, 247)),
        (2_000, 1024, None, 4, (32, 256, 16, 41, 244)),
        (512, 1024, None, 1, (32, 256, 16, 16, 247)),
    ],
)
def test_concurrent_requests_fit_into_memory_files_and_threads(
    mib: int | None, files: int | None, threads: int | None, workers: int, found: tuple[int, ...]
) -> None:
    memory = None if mib is None else Limit(mib * MIB)
    assert default_requests(memory, files, threads, Sizes(workers, 2, 64 * MIB)) == found


def test_settings_that_are_given_are_not_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.settings.cores", lambda: Limit(0.5, "a CPU quota of 0.5"))
    monkeypatch.setattr("async_maps.settings.memory", lambda: Limit(256 * MIB, "a memory limit of 256 MiB"))
    automatic = Settings()
    assert (automatic.worker_count, automatic.encode_thread_count) == (1, 2)
    assert (automatic.queue_size, automatic.chunk_size) == (2_796_202, 699_050)
    assert len(automatic.reductions) == 3
    given = Settings(workers=3, encode_threads=5, queue_bytes="64MiB", chunk_bytes="8MiB")
    assert (given.worker_count, given.encode_thread_count) == (3, 5)
    assert (given.queue_size, given.chunk_size) == (64 * MIB, 8 * MIB)
    assert given.reductions == ()


@pytest.mark.parametrize(
    ("available", "mib", "lanes"),
    [
        (0.5, 2**20, 1), (4, 2**20, 1), (5, 2**20, 1), (6, 2**20, 2), (32, 2**20, 10), (64, 2**20, 21),
        (64, 256, 1), (64, 1024, 2), (64, 4096, 14), (64, None, 21),
    ],
)  # fmt: skip
def test_default_lanes_fit_into_cores_and_memory(available: float, mib: int | None, lanes: int) -> None:
    assert default_lanes(Limit(available), None if mib is None else Limit(mib * MIB)).value == lanes


@pytest.mark.parametrize("mib", [512, 768, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize("cores", [4, 8, 16, 64])
def test_the_processes_of_lanes_fit_into_the_memory(cores: int, mib: int) -> None:
    available, most = Limit(cores), Limit(mib * MIB)
    lanes = int(default_lanes(available, most).value)
    sizes = default_sizes(available, most, lanes=lanes)
    processes = 160 * (1 + lanes if lanes > 1 else 1) + 80 * sizes.workers
    # The formula of configs/README.md, without the maps.
    assert processes + 3 * sizes.queue_bytes / MIB <= mib


QUOTA, MEMORY = "a CPU quota of 8", "a memory limit of 1,024 MiB"


@pytest.mark.parametrize(
    ("available", "most", "whole", "found"),
    [
        (Limit(64), Limit(2**40), 64, (21, "")),
        (Limit(8, QUOTA), Limit(2**40), 64, (2, QUOTA)),
        (Limit(8, QUOTA), Limit(2**40), 8, (2, "")),
        (Limit(4, QUOTA), Limit(2**40), 4, (1, "")),
        (Limit(64), Limit(2**30, MEMORY), 64, (2, MEMORY)),
        (Limit(64), Limit(2**30), 64, (2, "1,024 MiB of memory")),
        (Limit(4, QUOTA), Limit(2**28, MEMORY), 4, (1, "")),
    ],
)
def test_fewer_lanes_name_what_reduces_them(available: Limit, most: Limit, whole: int, found: tuple[int, str]) -> None:
    assert default_lanes(available, most, whole) == found


def test_reductions_and_doctor_name_fewer_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.settings.cores", lambda: Limit(64))
    monkeypatch.setattr("async_maps.settings.memory", lambda: Limit(2**30, MEMORY))
    assert Settings().lane_count == 2
    assert Settings().reductions[0] == f"processes: 2, from {MEMORY}"
    assert "processes" not in " ".join(Settings(processes=3).reductions)
    assert "; processes: 2, workers: 4, encode_threads: 64, queue_bytes: 37.3 MiB" in check_machine(Settings())[0].text
    assert f" (processes: 2, from {MEMORY}; " in check_machine(Settings())[0].text
