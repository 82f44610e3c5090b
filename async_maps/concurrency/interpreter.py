"""Other interpreters that run a part of this package, and the socket between each and an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.concurrency.launch import launch_connected
from async_maps.concurrency.messages import frame, receive_message
from async_maps.machine.shortage import describe_shortage

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from typing import Any

    from async_maps.concurrency.launch import Launched

_BUFFER_BYTES = 2**20


class StartError(Exception):
    """The system does not allow to start a process; the message is the reason."""


class Interpreter:
    """An interpreter that is started any number of times, as an event loop controls it.

    The process ends when the socket is closed, so also when this process is killed.

    Args:
        module: the name of the module.
        descriptors: what each of its processes inherits, see :func:`~async_maps.concurrency.launch.launch`.
        launched: its first process, if that was launched before; :meth:`stop` ends it.
    """

    def __init__(self, module: str, descriptors: Sequence[int] = (), launched: Launched | None = None) -> None:
        self._module = module
        self._descriptors = descriptors
        self._launched = launched
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

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process, in place of one that has died; raise StartError."""
        if self._process is not None:  # its socket is open
            await self.stop()
        try:
            # Shielded, because a cancellation between fork and return would leave an unknown process; milliseconds.
            with CancelScope(shield=True):
                launched, self._launched = self._launched, None
                if launched is None:
                    # In a thread: two uvloops of this process must not start a process concurrently ("Racing with
                    # another loop to spawn a process").
                    launched = await to_thread.run_sync(
                        launch_connected, self._module, self._descriptors, limiter=self._thread
                    )
                self._process, self._ours = launched
                self._reader, self._writer = await asyncio.open_unix_connection(sock=self._ours, limit=_BUFFER_BYTES)
                self._watch(self._process.pid)
        except (OSError, RuntimeError) as error:
            await self.stop()
            raise StartError(describe_shortage(error) or getattr(error, "strerror", None) or str(error)) from error

    def give(self, descriptor: int) -> None:
        """Send an open file to a process that has just started, before all messages; raise OSError if it has ended."""
        socket.send_fds(self._ours, [b"\0"], [descriptor])

    async def send(self, *messages: object) -> None:
        """Send messages, and wait until the process has taken most of them; raise OSError if it has ended."""
        assert self._writer is not None  # noqa: S101  # started
        self._writer.write(b"".join(map(frame, messages)))
        await self._writer.drain()

    async def receive(self) -> Any:
        """Return the next message; raise OSError or EOFError after the last one of a process that has ended."""
        return await receive_message(self._reader)

    async def stop(self, timeout_s: float = 0.0) -> int | None:
        """Close the socket, which ends the process, and wait for its end; kill it after a time-out, or immediately.

        The end of the process counts, not that of its output: a process that the caller has forked meanwhile may keep
        the other end of the socket open.

        Returns:
            Its status, as in :class:`subprocess.Popen`; None if there is none.
        """
        launched, self._launched = self._launched, None
        if launched is not None:
            launched.end()
        process, self._process = self._process, None
        writer, self._writer = self._writer, None
        with CancelScope(shield=True):
            if process is not None:
                self._shut()
                await self._end_of(process, timeout_s)
            self._unwatch()
            if writer is not None:
                writer.transport.abort()
            elif process is not None:
                self._ours.close()
        return None if process is None else process.returncode

    async def _end_of(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        if timeout_s <= 0:
            process.kill()
        killing = asyncio.get_running_loop().call_later(timeout_s, process.kill)
        try:
            await to_thread.run_sync(process.wait, limiter=self._thread)
        except RuntimeError:  # no thread can be started: it is killed, so it ends in milliseconds
            process.kill()
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            killing.cancel()

    def _watch(self, pid: int) -> None:
        """Close the socket when the process ends, where the system reports that.

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


def describe_end(status: int | None) -> str:
    """Return how a process ended, as the end of a sentence."""
    if status is not None and status < 0:
        return f"was killed by signal {-status}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
    return f"ended with status {status}"
