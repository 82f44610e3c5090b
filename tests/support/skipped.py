"""A list of the tests that were skipped, so that CI runs them again in an environment with more libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class SkippedTests:
    """A plugin of pytest that writes the ids of skipped tests and files to a file, one a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that is skipped as a whole."""
        if report.skipped:
            self._ids.add(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skipped test."""
        if report.skipped:
            self._ids.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._path.write_text("".join(f"{nodeid}\n" for nodeid in sorted(self._ids)), encoding="utf-8")


def choose(config: pytest.Config, items: list[pytest.Item], path: Path) -> None:
    """Deselect all tests but those that a file lists, singly or with their file."""
    listed = set(path.read_text(encoding="utf-8").splitlines())
    chosen = [item for item in items if listed & {item.nodeid, item.nodeid.partition("::")[0]}]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
