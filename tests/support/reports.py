"""Reports, checked against the schema in the package."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import async_maps

jsonschema: Any = pytest.importorskip("jsonschema")

SCHEMA_FILE = Path(async_maps.__file__).parent / "report/report.schema.json"


@cache
def schema() -> dict[str, Any]:
    """The schema, checked."""
    found: dict[str, Any] = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """Check a report of a run or verification that has ended, and return it."""
    jsonschema.Draft202012Validator(schema()).validate(report)
    started, ended = (datetime.fromisoformat(report[name]) for name in ("started_at", "ended_at"))
    assert started.utcoffset() == ended.utcoffset()
    assert started.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert abs((ended - started).total_seconds() - report["elapsed_s"]) < 1
    if report["command"] == "run":
        counted = sum(group["count"] for group in report["failure_groups"]) + report["ungrouped"]
        assert counted == report["failed"]
        tried = report["done"] + report["planned"] + report["failed"]
        assert tried == report["selected"] if report["complete"] else tried <= report["selected"]
    return report


def read_report(path: str | Path = "r.json") -> dict[str, Any]:
    """Read and check the file of a report."""
    return check_report(json.loads(Path(path).read_text(encoding="utf-8")))
