"""The number of examples that Hypothesis tries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis import settings

share = 1.0
"""The factor for every number of examples; conftest.py sets 0.1 for ``-m fast``, and 20 for ``-m long``."""


def examples(count: int) -> settings:
    """Return settings for at most ``count`` examples, without a deadline for busy machines."""
    from hypothesis import HealthCheck, settings

    return settings(
        max_examples=max(3, round(count * share)),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
