from __future__ import annotations

from dataclasses import replace

import pytest

from async_maps.stages.meters import StageStatistics
from tests.support.progress import make_statistics

pytestmark = pytest.mark.fast


def test_the_slowest_stage_is_the_busiest_by_worker() -> None:
    statistics = replace(
        make_statistics(), colorize=StageStatistics(8, 12.0, 100, 0.0), encode=StageStatistics(2, 6.0, 100, 0.0)
    )
    assert statistics.slowest_stage(4.0) == ("encode", 0.75)
