"""A network of its own for a command: a cable to this machine that can be cut, and names that can be forgotten.

It needs root, Linux, and the programs ``ip``, ``unshare`` and ``nsenter``; other machines skip the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, _THERE = "10.213.77.1", "10.213.77.2"
NAME = "store.test"
_PROGRAMS = ("ip", "unshare", "nsenter", "mount")
# The command starts when the cable is there: a line on standard input tells it.
_BEGIN = """
ip link set lo up
mount --bind "$0/hosts" /etc/hosts
mount --bind "$0/resolv.conf" /etc/resolv.conf
echo ready
read -r _
exec "$@"
"""


class Network:
    """The network of a process.

    Args:
        folder: its ``hosts`` and ``resolv.conf``.
        process: the process.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self._folder = folder
        self.process = process
        self._cable = f"am{process.pid}"

    def plug(self) -> None:
        """Connect the process to this machine, and let it begin."""
        there, pid = f"{self._cable}b", str(self.process.pid)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", there, "netns", pid)
        _ip("address", "add", f"{HERE}/30", "dev", self._cable)
        self.mend()
        for words in (("address", "add", f"{_THERE}/30", "dev", there), ("link", "set", there, "up")):
            subprocess.run(["nsenter", "-t", pid, "-n", "ip", *words], check=True)
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def cut(self) -> None:
        """Let no packet pass: no end of a connection hears of it."""
        _ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Let packets pass again."""
        _ip("link", "set", self._cable, "up")

    def name(self, *, known: bool = True) -> None:
        """Let the process find the address of :data:`NAME`, or not."""
        # In place, because the process has mounted this file.
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost\n{f'{HERE} {NAME}' if known else ''}\n")


@contextmanager
def in_own_network(folder: Path, *command: object) -> Iterator[Network]:
    """Start a command in a network of its own."""
    if os.name != "posix" or os.geteuid() or not all(map(shutil.which, _PROGRAMS)):
        pytest.skip(f"a network of its own needs root and {', '.join(_PROGRAMS)}")
    folder.mkdir()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    (folder / "hosts").touch()
    words = ["unshare", "--net", "--mount", "sh", "-ec", _BEGIN, str(folder), *map(str, command)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.skip(f"a network of its own is not allowed here: {process.communicate()[1].strip()}")
            network = Network(folder, process)
            network.name()
            try:
                network.plug()
            except subprocess.CalledProcessError as error:
                pytest.skip(f"a network of its own is not allowed here: {error}")
            yield network
        finally:
            process.kill()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
