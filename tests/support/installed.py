"""Libraries that are not in every environment. CI runs the fast tests also without the extras."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

needs_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def kolena_client(module: str) -> Any:
    """Return a module of Kolena's client. Without it, the test is skipped."""
    reason = "Kolena's client is not installed: it has no release for Python 3.13 and allows no Pillow 13"
    return pytest.importorskip(module, reason=reason)
