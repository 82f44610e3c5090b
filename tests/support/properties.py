"""How often Hypothesis tries a property."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis import settings

share = 1.0
"""Of the examples; conftest.py lowers it for ``pytest -m fast``."""


def examples(count: int) -> settings:
    """Settings for at most ``count`` examples. A busy machine may take any time for one of them."""
    from hypothesis import HealthCheck, settings

    return settings(
        max_examples=max(5, round(count * share)),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
