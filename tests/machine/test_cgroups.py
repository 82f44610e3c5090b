"""Limits are read from the trees that container engines, Slurm and systemd lay out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_maps.machine.cgroups import cpu_quota, memory_limit, pids_limit
from tests.support.containers import V2, lay_out

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast

V1 = (
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 {root} /sys/fs/cgroup/memory rw,relatime master:4 - cgroup cgroup rw,memory\n"
    "35 31 0:32 {root} /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids"
)
V1_GROUPS = "12:pids:{path}\n11:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/\n"
NO_LIMIT = "9223372036854771712"


@pytest.mark.parametrize(
    ("text", "quota"),
    [("50000 100000", 0.5), ("max 100000", None), ("250000 100000\n", 2.5), ("150000", 1.5), ("", None), ("x y", None)],
)
def test_the_quota_of_version_2_is_that_of_the_container(text: str, quota: float | None, tmp_path: Path) -> None:
    root = lay_out(tmp_path, "0::/\n", V2.format(root="/"), {"cpu.max": text})
    assert cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("own", "parent", "top", "quota"),
    [("400000 100000", "max 100000", "150000 100000", 1.5), ("max 100000", "200000 100000", "max 100000", 2.0)],
)
def test_the_smallest_quota_of_nested_groups_counts(
    own: str, parent: str, top: str, quota: float, tmp_path: Path
) -> None:
    files = {"a/b.slice/c.scope/cpu.max": own, "a/b.slice/cpu.max": parent, "a/cpu.max": top}
    root = lay_out(tmp_path, "0::/a/b.slice/c.scope\n", V2.format(root="/"), files)
    assert cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("quota_us", "period_us", "quota"), [("50000", "100000", 0.5), ("-1", "100000", None), ("30000", "10000", 3.0)]
)
def test_the_quota_of_version_1_is_read(quota_us: str, period_us: str, quota: float | None, tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": quota_us, "cpu,cpuacct/cpu.cfs_period_us": period_us}
    path = "/docker/0123abc"
    # The host's path, of which the container sees only its own folder.
    root = lay_out(tmp_path, V1_GROUPS.format(path=path), V1.format(root=path), files)
    assert cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("own", "parent", "limit"),
    [(NO_LIMIT, NO_LIMIT, None), (str(2**28), NO_LIMIT, 2**28), (NO_LIMIT, str(2**29), 2**29), ("-1", "0", None)],
)
def test_the_huge_default_of_version_1_is_no_limit_of_memory(
    own: str, parent: str, limit: int | None, tmp_path: Path
) -> None:
    files = {"memory/slurm/job_7/memory.limit_in_bytes": own, "memory/slurm/memory.limit_in_bytes": parent}
    root = lay_out(tmp_path, V1_GROUPS.format(path="/slurm/job_7"), V1.format(root="/"), files)
    assert memory_limit(root) == limit


@pytest.mark.parametrize(
    ("most", "high", "limit"), [("max", "max", None), ("268435456", "max", 2**28), ("max", "9", 9)]
)
def test_the_memory_of_version_2_has_two_limits(most: str, high: str, limit: int | None, tmp_path: Path) -> None:
    root = lay_out(tmp_path, "0::/\n", V2.format(root="/"), {"memory.max": most, "memory.high": high})
    assert memory_limit(root) == limit


def test_a_hybrid_machine_has_its_controllers_in_version_1(tmp_path: Path) -> None:
    unified = "36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "70000", "cpu,cpuacct/cpu.cfs_period_us": "100000", "unified/cpu.max": "1"}
    root = lay_out(tmp_path, V1_GROUPS.format(path="/"), f"{V1.format(root='/')}\n{unified}", files)
    assert cpu_quota(root) == 0.7


@pytest.mark.parametrize("path", ["/../../host.slice", "/kubepods/pod1/c2"])
@pytest.mark.parametrize("mounted", ["/", "/kubepods/pod1/c2", "/../.."])
def test_a_path_outside_of_the_mount_means_the_mounted_group(path: str, mounted: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path, f"0::{path}\n", V2.format(root=mounted), {"cpu.max": "50000 100000"})
    assert cpu_quota(root) == 0.5


def test_a_mount_point_may_have_a_space(tmp_path: Path) -> None:
    mount = r"30 24 0:26 / /sys/fs/cgroup/my\040groups rw - cgroup2 cgroup rw"
    root = lay_out(tmp_path, "0::/a\n", mount, {"my groups/a/pids.max": "8", "my groups/a/pids.current": "3"})
    assert pids_limit(root) == (8, 3)


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert (cpu_quota(tmp_path), memory_limit(tmp_path), pids_limit(tmp_path)) == (None, None, None)
    root = lay_out(tmp_path, "nonsense\n0::\n", "short line\n1 2 3 4 5 - cgroup2", {"cpu.max": "50000 100000"})
    assert (cpu_quota(root), memory_limit(root), pids_limit(root)) == (None, None, None)
