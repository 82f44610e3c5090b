"""Whether a disk ignores case or the Unicode form is found out wherever files can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_system_without_unicode_names_is_no_error(tmp_path: Path) -> None:
    code = "from async_maps.filesystems.spelling import Spelling; print(Spelling.of('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **_ASCII},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("None\n", "")
    assert not list(tmp_path.iterdir())
