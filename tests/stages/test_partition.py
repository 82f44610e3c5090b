from __future__ import annotations

import pytest

from tests.support.partition import simulate

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("processes", "uploads"), [(16, 32), (64, 256), (128, 64), (256, 256)])
def test_many_processes_share_one_partition(processes: int, uploads: int) -> None:
    found = simulate(processes, uploads, 8.0)
    assert found.used(3, 8) > 0.75
    assert found.failed == 0
    assert found.refused < sum(found.stored.values()) / 2


def test_the_whole_rate_is_used_soon_after_an_outage() -> None:
    found = simulate(64, 32, 84.0, outage=(2.0, 62.0))
    assert found.used(3, 62) == 0
    assert found.used(82, 84) > 0.95
    assert found.failed == 0


def test_one_process_is_as_fast_as_before_soon_after_an_outage() -> None:
    found = simulate(1, 256, 101.0, outage=(5.0, 65.0))
    before = found.used(2, 5)
    assert found.used(95, 101) > 0.95 * before > 0.1
