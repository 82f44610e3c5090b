"""The process of a lane, as the event loop of its parent controls it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.concurrency.messages import frame, receive_message
from async_maps.errors import WorkerError
from async_maps.machine.shortage import describe_shortage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from async_maps.lanes.child import main; main()"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""A lane has its share of the cores: its libraries must not start a thread for each core."""
_BUFFER_BYTES = 2**20
STOP_TIMEOUT_S = 10.0
"""The longest time in which a lane ends its workers."""


class LaneDiedError(WorkerError):
    """The process of a lane could not start, or has ended without an order to do so."""


class Interpreter:
    """Another interpreter, which runs :func:`async_maps.lanes.child.main`, and the socket between both.

    The process ends when the socket is closed, so also when this process is killed. It inherits the ``descriptors``.
    """

    def __init__(self, descriptors: Sequence[int] = ()) -> None:
        self._descriptors = descriptors
        self._thread = CapacityLimiter(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: int | None = None
        self._ours: socket.socket
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process; raise LaneDiedError if the system does not allow it."""
        try:
            # Shielded, because a cancellation between fork and return would leave an unknown process; milliseconds.
            with CancelScope(shield=True):
                ours, theirs = socket.socketpair()
                with theirs:
                    self._ours = ours
                    try:
                        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_BUFFER_BYTES)
                    except BaseException:
                        ours.close()
                        raise
                    self._process = await to_thread.run_sync(self._launch, theirs, limiter=self._thread)
                    self._watch(self._process.pid)
        except (OSError, RuntimeError) as error:
            await self.stop(kill=True)
            reason = describe_shortage(error) or getattr(error, "strerror", None) or error
            raise LaneDiedError(f"the process of a lane cannot be started: {reason}; set processes = 1") from error

    async def send(self, messages: Sequence[object]) -> None:
        """Send messages, and wait until the process has taken most of them; a process that has ended takes none."""
        assert self._writer is not None  # noqa: S101  # started
        with suppress(OSError):
            self._writer.write(b"".join(map(frame, messages)))
            await self._writer.drain()

    async def receive(self) -> Any:
        """Return the next message; None after the last one of a process that has ended."""
        try:
            return await receive_message(self._reader)
        except (OSError, EOFError):
            return None

    async def stop(self, *, kill: bool = False) -> str:
        """Close the socket, which ends the process, and wait for its end; kill it after a time-out, or immediately.

        Returns:
            How it ended, as the end of a sentence.
        """
        process, self._process = self._process, None
        writer, self._writer = self._writer, None
        status = None
        with CancelScope(shield=True):
            if process is not None:
                self._shut()
                killing = asyncio.get_running_loop().call_later(0.0 if kill else STOP_TIMEOUT_S, process.kill)
                try:
                    status = await to_thread.run_sync(process.wait, limiter=self._thread)
                except RuntimeError:  # no thread can be started
                    process.kill()
                    status = process.wait()
                finally:
                    killing.cancel()
            self._unwatch()
            if writer is not None:
                writer.transport.abort()
        return _describe(status)

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """Start the interpreter, in a thread, as for a worker process."""
        return subprocess.Popen(  # noqa: S603  # our own module, in this interpreter
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            pass_fds=self._descriptors,
            env={**os.environ, **_ONE_THREAD},
            # Not in the terminal's foreground group: only the parent gets Ctrl-C, and drains.
            start_new_session=True,
        )

    def _watch(self, pid: int) -> None:
        """Notice the end of the process, where the system reports it.

        The socket alone does not show it if a process that the caller forked during the launch holds the other end.
        """
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an old kernel, or a sandbox
                self._end = os.pidfd_open(pid)
                asyncio.get_running_loop().add_reader(self._end, self._ended)

    def _ended(self) -> None:
        self._unwatch()
        # What the process has sent is still read before the end of the stream.
        self._shut()

    def _shut(self) -> None:
        with suppress(OSError):  # it is closed already
            self._ours.shutdown(socket.SHUT_RDWR)

    def _unwatch(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)


def _describe(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by signal {-status}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
    return f"ended with status {status}"
