"""The doctor's command as a fixture."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from async_maps.doctor import Finding


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process. Returns its exit code, and its findings by name in their order."""
    from async_maps.doctor import Finding, probe, speed, target
    from async_maps.doctor import s3 as s3_doctor
    from tests.support.commands import invoke

    # A retry waits up to a second, and the measured values do not matter here.
    monkeypatch.setattr(s3_doctor, "_ATTEMPTS", 1)
    monkeypatch.setattr(speed, "_LATENCY_PUTS", 2)
    monkeypatch.setattr(speed, "_LEVEL_S", 0.2)
    # A server on a busy machine may answer late, and what is late here would be a finding.
    monkeypatch.setattr(target, "_READ_TIMEOUT_S", 30.0)
    monkeypatch.setattr(probe, "_CLEAN_UP_S", 60.0)

    def command(*arguments: object) -> tuple[int, dict[str, Finding]]:
        code = invoke("doctor", *arguments, "--json")
        out, err = capsys.readouterr()
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        assert secret is None or secret not in out + err
        findings = [Finding(**json.loads(line)) for line in out.splitlines()]
        found = {finding.check: finding for finding in findings}
        assert len(found) == len(findings)
        return code, found

    return command
