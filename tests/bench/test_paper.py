"""The table of ``python -m bench paper`` is what a calculation by hand finds."""

from __future__ import annotations

import pytest

from bench import paper
from bench.paper import KINDS, Machine, job

pytestmark = pytest.mark.fast


def test_a_job_of_1e8_maps_on_16_machines_is_limited_by_their_network() -> None:
    # 12.5 Gbit/s are 1.5625e9 bytes a second, and a file has 1,048,704: 1,489.9 maps a second for each machine.
    found = job(10**8, 16, KINDS[512], Machine(reads=1_000, uploads=1_000))
    assert found.limit == "network"
    assert found.maps_s == pytest.approx(16 * 1_489.9, rel=1e-4)
    assert found.hours == pytest.approx(10**8 / (16 * 1_489.9) / 3_600, rel=1e-4)
    assert found.partitions == 7  # 23,839 / 3,500
    assert found.one_partition_hours == pytest.approx(10**8 / 3_500 / 3_600)
    # 10,000 parts, with 3 more PUTs and 4 more GETs each.
    assert (found.put_usd, found.get_usd, found.list_usd) == pytest.approx((500.15, 40.016, 0.5))


def test_the_reads_limit_a_machine_with_the_defaults() -> None:
    found = job(10**5, 1, KINDS[512], Machine())
    assert found.limit == "reads"
    assert found.maps_s == pytest.approx(64 / 0.15)


@pytest.mark.parametrize(
    ("machine", "limit"),
    [
        (Machine(cores=1, reads=1_000, uploads=1_000), "CPU"),
        (Machine(uploads=10), "uploads"),
        (Machine(cores=10_000, bytes_s=1e12, reads=10_000, uploads=10_000), "parent"),
    ],
)
def test_each_limit_can_be_the_tightest(machine: Machine, limit: str) -> None:
    assert job(10**6, 1, KINDS[512], machine).limit == limit


def test_the_command_prints_every_job_and_the_measured_small_end(capsys: pytest.CaptureFixture[str]) -> None:
    paper.main(["--prefetch", "1000", "--concurrency", "1000"])
    output = capsys.readouterr().out
    (row,) = (line.split() for line in output.splitlines() if line.split()[:2] == ["100,000,000", "16"])
    assert row[2:] == ["23,839", "network", "1.17", "7", "7.94", "500.15", "40.02", "0.50"]
    assert len([line for line in output.splitlines() if line.startswith("  1")]) == 5 * 4 + 1
    (measured,) = (line.split() for line in output.splitlines() if line.split()[:1] == ["scale,"])
    assert measured[-3:] == ["30", "39", "1.30"]
