"""The lines of a report for people."""

from __future__ import annotations

import pytest

from async_maps.report import Report

pytestmark = pytest.mark.fast


def test_maps_that_a_retry_does_not_select_are_not_called_unchanged() -> None:
    assert "\nskipped because they did not fail before: 2" in Report(skipped=2, unselected=2).summary()
    assert "did not fail" not in Report(skipped=2).summary()


def test_a_run_that_ended_before_its_destination_names_none() -> None:
    assert Report().summary().endswith(" MB")
    assert Report(destination="s3://b/p").summary().endswith(" MB to s3://b/p")
