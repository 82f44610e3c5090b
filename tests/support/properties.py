"""The number of examples that Hypothesis tries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis import settings

share = 1.0
"""The share of examples to try; conftest.py lowers it for ``pytest -m fast``."""


def examples(count: int) -> settings:
    """Return settings for at most ``count`` examples, without a deadline for busy machines."""
    from hypothesis import HealthCheck, settings

    return settings(
        max_examples=max(5, round(count * share)),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
