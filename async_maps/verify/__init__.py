"""Is every locator really there, whole, and what was sent? And if not: make it so.

``check.py`` lists what lies at the locators of a manifest, or of one of the ``tables.py``, and ``comparison.py`` holds
that against what should be there; ``reading.py`` reads it, and ``examine.py`` says what one object is; ``repair.py``
mends, and ``verification.py`` is what either ends with.
"""

from __future__ import annotations

from async_maps.verify.check import averify_locators, verify_locators
from async_maps.verify.comparison import Difference
from async_maps.verify.repair import arepair_overlays, repair_overlays
from async_maps.verify.verification import Verification

__all__ = [
    "Difference",
    "Verification",
    "arepair_overlays",
    "averify_locators",
    "repair_overlays",
    "verify_locators",
]
