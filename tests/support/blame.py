"""Jobs whose requests are refused, to find out who is blamed.

12 maps are to be uploaded, in ``bad`` or ``sub/`` if the fault concerns some of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.report.ending import exit_code
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.s3_proxy import Refusal

NAMES = [f"{number}" for number in range(7)] + [f"sub/{number}" for number in range(4)] + ["bad"]
SETTINGS = am.Settings(
    workers=0, concurrency=4, s3=am.S3Settings(max_attempts=3, give_up_s=1.5, read_timeout_s=5.0)
)  # fmt: skip

PATIENT = SETTINGS.model_copy(update={"s3": SETTINGS.s3.model_copy(update={"give_up_s": 60.0})})
"""For a store that is not down, also on a busy machine."""
PERSISTENT = am.Settings(workers=0, concurrency=4, s3=am.S3Settings(give_up_s=60.0))
"""With as many attempts as by default."""

BAD, SUB, ALL = "/bad.png", "/sub/", "/p/"
FOR_EVER = 10**9


def refusing(
    refusal: Refusal, what: str, *, after: int = 0, times: int = FOR_EVER, method: str = "PUT"
) -> Callable[[str, str, str], Refusal | None]:
    """Refuse the requests with that text in their path, ``times`` times, after a number of PUTs that passed."""
    passed = refused = 0

    def refuse(asked: str, path: str, _query: str) -> Refusal | None:
        nonlocal passed, refused
        if passed >= after and asked == method and what in path and refused < times:
            refused += 1
            return refusal
        passed += asked == "PUT"
        return None

    return refuse


class Ended(NamedTuple):
    """How a run ended, and the rows of its manifest."""

    exit_code: int | None
    done: int
    failed: int
    words: str


class Job:
    """A folder of maps, a manifest and a destination."""

    def __init__(self, folder: Path, place: str) -> None:
        self.folder = folder
        self.place = place
        self.manifest = folder.parent / "m.sqlite"
        self.settings = SETTINGS

    def add(self, names: list[str]) -> None:
        for number, name in enumerate(names):
            path = self.folder / f"{name}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, random_map(number, (8, 8)))

    def run(self) -> Ended:
        try:
            report = am.run(self.folder, self.place, settings=self.settings, manifest=self.manifest)
        except am.AsyncMapsError as error:
            report, words = error.report, str(error)
            assert report is not None
        else:
            words = " | ".join(str(failure) for failure in report.failures)
        with Manifest(self.manifest, read_only=True) as opened:
            counts = opened.counts()
        assert not report.uploaded or counts.get("done", 0) >= report.uploaded
        return Ended(report.exit_code, counts.get("done", 0), counts.get("failed", 0), words)


def exit_code_of(work: Callable[[], Any]) -> tuple[int | None, str]:
    """Return the exit code and the words of what a command does."""
    try:
        report = work()
    except am.AsyncMapsError as error:
        return (error.report.exit_code if error.report is not None else exit_code(error)), str(error)
    return report.exit_code, report.summary()
