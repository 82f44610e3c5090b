"""Verifies that every locator has the bytes that were uploaded, and repairs broken overlays.

``check.py`` lists the objects at the locators of a manifest (``rows.py``) or of a table (``tables.py``), ``plans.py``
those of a plan, whose parts ``merge.py`` compares with a sorted listing.
``comparison.py`` compares them with the expected ones. ``meanwhile.py`` leaves out what a run writes meanwhile.
``reading.py`` reads objects, and ``examine.py`` checks the bytes of one. ``repair.py`` repairs, and
``verification.py`` is the result of both.
"""

from __future__ import annotations

from async_maps.verify.comparison import Difference
from async_maps.verify.locators import averify_locators, verify_locators
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
