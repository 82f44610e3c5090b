"""Parts of plans that wait, or kill their process, in every interpreter that starts in an environment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.processes import hook

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

_CODE = """
import contextlib, os, signal, sys, time
def look(event, arguments, folder={folder!r}):
    path = str(arguments[0]) if event == "open" else ""
    if path.endswith(".npy") and any("async_maps.workers" in word for word in sys.orig_argv):
        for control in os.listdir(folder):
            if control.endswith("-map") and open(os.path.join(folder, control)).read() == path:
                os.kill(os.getpid(), signal.SIGKILL)
    if path.endswith(".parquet") and "/parts/" in path:
        plan, _, part = path.split("/")[-3:]
        with open(os.path.join(folder, "starts"), "a") as log:
            log.write(f"{{plan}} {{int(part.partition('.')[0])}} {{os.getpid()}} {{os.getppid()}}\\n")
        control = os.path.join(folder, f"{{plan}}-{{int(part.partition('.')[0])}}")
        with contextlib.suppress(FileNotFoundError):  # until it is released
            while True:
                with open(control) as file:
                    what = file.read()
                if what == "die once":
                    os.unlink(control)
                if what != "wait":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.02)
sys.addaudithook(look)
"""


class HeldParts:
    """Says which parts wait or die when a process starts them, and which process has started which.

    Args:
        folder: a folder that does not exist.
        monkeypatch: its environment is that of the processes.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        hook(folder, monkeypatch, _CODE.format(folder=str(folder)))

    def hold(self, plan: str, *parts: int, what: str = "wait") -> None:
        """Let parts wait until they are released, or kill their process: ``die``, or the first one: ``die once``."""
        for part in parts:
            (self._folder / f"{plan}-{part}").write_text(what)

    def kill_at(self, plan: str, path: Path) -> None:
        """Let each worker process that opens a map kill itself."""
        (self._folder / f"{plan}-map").write_text(str(path))

    def release(self, plan: str) -> None:
        """Let all parts go on."""
        for path in self._folder.glob(f"{plan}-*"):
            path.unlink()

    def starts(self, plan: str) -> list[tuple[int, int, int]]:
        """Return each start of a part: its number, the process, and its parent."""
        log = self._folder / "starts"
        lines = log.read_text().splitlines() if log.exists() else []
        # A process opens the list of its part more than once.
        found = [line.split() for line in dict.fromkeys(lines)]
        return [(int(part), int(pid), int(parent)) for name, part, pid, parent in found if name == plan]

    def wait_for(self, plan: str, starts: int) -> list[tuple[int, int, int]]:
        """Wait for this number of starts."""
        self.wait_until(lambda: len(self.starts(plan)) >= starts)
        return self.starts(plan)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; the time limit of the test ends the wait."""
        while not condition():
            time.sleep(0.02)
