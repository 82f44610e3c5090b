"""Starts other interpreters that run a part of this package.

They are new interpreters, not forks, which copy locks that other threads hold.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BOOT = "import gc, json, sys; gc.disable(); sys.path[:] = json.loads(sys.argv[1]); from {} import main; main()"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""The processes share the cores: their libraries must not start a thread for each core."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launched(NamedTuple):
    """A process of :func:`launch`, and our end of the socket that is its standard input and output."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def end(self) -> None:
        """Kill the process, and wait for its end, which takes milliseconds."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def launch_connected(module: str, descriptors: Sequence[int] = ()) -> Launched:
    """Start an interpreter as :func:`launch` does, with a new pair of sockets."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            return Launched(launch(module, theirs, descriptors), ours)
        except BaseException:
            ours.close()
            raise


def resume_collection() -> None:
    """Collect garbage again, but not what the imports have left, if a process of ours has paused that to import.

    Otherwise the collector takes a seventh of the time of the imports.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def launch(
    module: str,
    theirs: socket.socket,
    descriptors: Sequence[int] = (),
    *,
    is_two_way: bool = True,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start an interpreter that runs ``main`` of a module; blocks for milliseconds.

    Signals that end a command wait until it calls :func:`ignore_signals`, and the collector of garbage until it calls
    :func:`resume_collection`.

    Args:
        module: the name of the module.
        theirs: its end of a pair of sockets, which becomes its standard input.
        descriptors: what it inherits besides; their numbers are its arguments after the first.
        is_two_way: whether the socket becomes its standard output, too; else that is discarded.
        variables: further environment variables.
    """
    # That of this thread, which the process inherits.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        return subprocess.Popen(  # noqa: S603  # our own module, in this interpreter
            # -P: do not import modules from the current folder.
            [sys.executable, "-P", "-c", _BOOT.format(module), json.dumps(sys.path), *map(str, descriptors)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno() if is_two_way else subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, **_ONE_THREAD, **(variables or {})},
            # Not in the terminal's foreground group: only this process gets Ctrl-C, and drains.
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def anonymous_file() -> int:
    """Open a file in memory, for processes to share; the caller closes the descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("async-maps")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def ignore_signals() -> None:
    """Ignore the signals that end a command, in a process of :func:`launch`: only its parent decides when to stop.

    Service managers send SIGTERM to all processes of a service.
    """
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
