"""The overlays that a run may have sent without a row: it was killed, or their map has failed since. Blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import InputValidationError
from async_maps.filesystems.addresses import locator_in
from async_maps.filesystems.locators import file_path
from async_maps.keys import KeyTemplate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.manifest.manifest import Manifest
    from async_maps.plans.rows import PlanRows

_INDEX, _DIGEST = 987_654_321_012_345, "5eaf00d5" * 8
"""What the position and the digest are in a key, until a pattern replaces them: the manifest does not know them."""
_UNKNOWN = re.compile(rf"0*{_INDEX}|(?:5eaf00d5){{2,8}}[0-9a-f]{{0,7}}")


def sent_patterns(manifest: Manifest | PlanRows, folder: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield a pattern for the locator of each map whose overlay may be in the folder, though no row says so.

    Each comes with whether it is a GLOB of SQLite, else it is the locator, and with whether the map has failed.
    """
    templates = {run.settings: KeyTemplate(run.shaping["key"]) for run in manifest.runs()}
    for name, settings, stored_at, is_failed in manifest.sent():
        if stored_at is not None:
            yield stored_at, False, is_failed
            continue
        if (template := templates.get(settings)) is None:
            continue
        try:
            key = template.key("", name, _INDEX, _DIGEST)
        except InputValidationError:
            continue
        locator = _locator(folder, key)
        if template.needs_index or template.needs_digest:
            yield "*".join(map(_as_glob, _UNKNOWN.split(locator))), True, is_failed
        else:
            yield locator, False, is_failed


def _locator(folder: str, key: str) -> str:
    path = file_path(folder)
    return locator_in(folder, key) if path is None else (Path(path) / key).as_uri()


def _as_glob(text: str) -> str:
    return re.sub(r"[*?\[]", r"[\g<0>]", text)
