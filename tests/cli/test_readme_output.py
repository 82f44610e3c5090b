"""The output that the README shows is what its commands print, but for the numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def without_numbers(text: str) -> list[str]:
    # Which stage is the slowest differs from run to run.
    return re.sub(r"\d[\d,.]*", "0", re.sub(r"(?<=slowest stage: )\w+", "any", text)).splitlines()


def test_the_first_commands_print_what_the_readme_shows(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    Path("maps/val").mkdir(parents=True)
    for i in range(100):
        np.save(f"maps/val/{i:04}.npy", random_map(i))
    shown = r"^```bash\n([^`]+)```\n\n[^\n]*these print:\n\n```text\n([^`]+)```"
    ((commands, output),) = re.findall(shown, README, re.MULTILINE)
    for command in commands.splitlines():
        assert invoke(*shlex.split(command.replace("my-bucket", bucket))[1:]) == 0
    printed = capsys.readouterr().out.replace(bucket, "my-bucket")
    assert without_numbers(printed) == without_numbers(output)
    assert re.findall(r"\d+ (?:uploaded|rows|of)", printed) == re.findall(r"\d+ (?:uploaded|rows|of)", output)
