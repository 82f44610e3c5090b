"""``async-maps export`` as a process: its standard output is closed, full, in another encoding, or read in part."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import COMMAND
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for, write_run

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

NAMES = ["a", "b, c", 'd "e"', "é 🧠"]


@pytest.fixture
def manifest() -> Path:
    write_run(Path("m.sqlite"), [receipt_for(make_map(name)) for name in NAMES])
    return Path("m.sqlite")


def test_names_in_any_script_are_utf_8_on_standard_output(manifest: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "export", str(manifest), "-", "--columns", "name"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        check=True,
    )
    assert [row[0] for row in csv.reader(done.stdout.decode("utf-8").splitlines())] == ["name", *NAMES]


def test_a_reader_that_has_enough_ends_it_quietly() -> None:
    write_run(Path("large.sqlite"), [receipt_for(make_map(f"{n:06}")) for n in range(20_000)])
    export = subprocess.Popen([*COMMAND, "export", "large.sqlite", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert export.stdout is not None
    assert export.stderr is not None
    assert export.stdout.readline().startswith(b"name,locator")
    export.stdout.close()
    assert export.stderr.read() == b""
    export.stderr.close()
    assert export.wait() == 128 + 13


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("count", [1, 20_000])
def test_a_full_disk_is_one_sentence(count: int) -> None:
    write_run(Path("m.sqlite"), [receipt_for(make_map(f"{n:06}")) for n in range(count)])
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "export", "m.sqlite", "-"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"async-maps: error: cannot write to standard output: No space left on device\n"


def test_closed_standard_output_is_one_sentence(manifest: Path) -> None:
    program = (
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'async_maps', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "export", str(manifest.absolute()), "-"], stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"async-maps: error: cannot write to standard output: it is closed\n"
