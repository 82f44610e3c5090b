"""Readers whose native decoders run in a child process with a memory limit.

The libraries of HDF5, Zarr, TIFF, Parquet and pictures trust sizes inside a file, so that a small file can take all
memory, or crash them. Here that costs one map: the child is killed or refused the memory, and started again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from threading import Condition, Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from async_maps.concurrency.launch import launch
from async_maps.errors import AsyncMapsError, InputValidationError, ShortageError, SourceError, shortage_of_files
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.verdict import Scope, Verdict
from async_maps.sources.formats.registry import Readers, decodes_natively

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.render.channels import Channels
    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import Part

T = TypeVar("T")

_MODULE = "async_maps.sources.decoder"
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Arrow's own allocator takes a gigabyte at the start."""
_END_TIMEOUT_S = 5.0
_MAX_MESSAGE = 2**20
_MAX_ITEMSIZE = 64

_ERRORS: dict[str, type[AsyncMapsError]] = {
    "input": InputValidationError,
    "shortage": ShortageError,
    "unavailable": UnavailableError,
}
"""The errors of the child that are not of the file; others are a SourceError."""

_logger = logging.getLogger("async_maps")


def _known_credentials() -> list[Any] | None:
    # Not imported for this: it is slow, and most files are on disk.
    module = sys.modules.get("async_maps.filesystems.credentials")
    return None if module is None else module.known_credentials()


class SuspectError(Exception):
    """The child died, or had no memory left, while it read this map or another one."""


class NoProcessError(Exception):
    """The child cannot be started."""


class DecoderProcess:
    """The child process, which is started for the first file that needs it. Thread-safe.

    Args:
        s3: how to reach object services.
        max_pixels: maps in files with more pixels are refused.
        channels: how channels become one.
    """

    def __init__(
        self, s3: S3Settings | None = None, max_pixels: int | None = None, channels: Channels = "none"
    ) -> None:
        self.max_pixels = max_pixels
        self.channels = channels
        self._s3 = s3
        self._starting = Lock()
        self._turns = Condition()
        self._reading, self._is_alone = 0, False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_stopped = False
        self._is_warned = False
        self.generation = 0
        """Changes with each child: the connections to an earlier one are closed."""
        self.is_suspect = False
        """Whether memory was scarce in this child, so that it is to be replaced."""

    @property
    def is_started(self) -> bool:
        """Whether a child was ever started."""
        return self.generation > 0

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def turn(self, *, alone: bool = False) -> Iterator[None]:
        """Wait for a turn to read: together with others, or alone, in a child that has read nothing suspect."""
        with self._turns:
            self._turns.wait_for(lambda: not self._is_alone and not (alone and self._reading))
            self._is_alone = alone
            self._reading += 1
        try:
            if alone and self.is_suspect:
                self.kill()
            yield
        finally:
            with self._turns:
                self._is_alone = False
                self._reading -= 1
                self._turns.notify_all()

    def blame(self, ask: Callable[[], T]) -> T:
        """Call a function that asks the child; if the child dies or memory is scarce, again, alone and in a new child.

        So another file is not blamed, that was read at the same time.

        Raises:
            SuspectError: alone, too.
            NoProcessError: the child cannot be started.
        """
        with suppress(SuspectError), self.turn():
            return ask()
        with self.turn(alone=True):
            try:
                return ask()
            except SuspectError:
                self.is_suspect = True
                raise

    def connect(self) -> tuple[int, Connection]:
        """Return a connection to the child, after its generation; raise NoProcessError if it cannot be started."""
        with self._starting:
            if self._is_stopped:
                raise SuspectError("was stopped")
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._control is not None  # noqa: S101  # started
                ours, theirs = socket.socketpair()
                with theirs:
                    connection = Connection(ours.detach())
                    try:
                        socket.send_fds(self._control, [b"c"], [theirs.fileno()])
                    except BaseException:
                        connection.close()
                        raise
            except ConnectionError as error:
                raise SuspectError("ended when it was started") from error
            except OSError as error:
                if shortage := shortage_of_files(error):
                    raise shortage from error
                raise NoProcessError(error.strerror or str(error)) from error
            return self.generation, connection

    def ended(self, generation: int) -> str:
        """Return how the child of that generation ended, after a connection to it broke."""
        with self._starting:
            if self._process is None or generation != self.generation:
                return "was stopped"
            try:
                status = self._process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.is_suspect = True
                return "does not answer"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def stop(self) -> None:
        """End the child permanently, without waiting: threads that wait for its answers fail. For the event loop."""
        self._is_stopped = True
        # Not with the lock, which a thread may hold for seconds.
        if (process := self._process) is not None:
            process.kill()

    def kill(self) -> None:
        """End the child; the next :meth:`connect` starts another one."""
        with self._starting:
            self._kill()

    close = kill

    def warn(self, done: str, reason: object) -> None:
        """Log once that files are ``done`` ("decoded") in this process."""
        if not self._is_warned:
            self._is_warned = True
            _logger.warning(
                "files are %s in this process, where a malicious one can take all memory: a child process cannot be "
                "started: %s",
                done,
                str(reason),
            )

    def _start(self) -> None:
        self._kill()
        hello = {
            "s3": None if self._s3 is None else self._s3.model_dump(mode="json"),
            "max_pixels": self.max_pixels,
            "channels": self.channels,
            "credentials": _known_credentials(),
        }
        control, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = launch(_MODULE, theirs, is_two_way=False, variables=_ENVIRONMENT)
            except BaseException:
                control.close()
                raise
        self._control = control
        self.is_suspect = False
        if self._is_stopped:  # meanwhile
            self._process.kill()
        with Connection(os.dup(control.fileno()), readable=False) as connection:
            connection.send_bytes(json.dumps(hello).encode())

    def _kill(self) -> None:
        self.generation += 1
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
            process.wait()


class Line:
    """A connection to the child, which is opened when it is needed. Not thread-safe."""

    def __init__(self, process: DecoderProcess) -> None:
        self._process = process
        self._generation = 0
        self._connection: Connection | None = None

    def ask(self, request: object, most: int = _MAX_MESSAGE, more: object = None) -> Any:
        """Send a request, and return the answer of up to ``most`` bytes; raise SuspectError or NoProcessError.

        ``more`` is sent instead, if it is given and the last request went to the same child.
        """
        with self._broken():
            last, connection = self._connection, self._opened()
            connection.send_bytes(json.dumps(more if more and connection is last else request).encode())
            # Not over another connection, if another thread has replaced the child: it would wait for a request.
            return json.loads(connection.recv_bytes(most))

    def receive_into(self, buffer: memoryview) -> None:
        """Receive the bytes that follow an answer; raise SuspectError."""
        assert self._connection is not None  # noqa: S101  # the answer came over it
        with self._broken():
            self._connection.recv_bytes_into(buffer)

    def tell(self, request: object) -> None:
        """Send a request without an answer, if there is a connection."""
        if self._connection is not None:
            try:
                self._connection.send_bytes(json.dumps(request).encode())
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> Connection:
        if self._connection is None or self._generation != self._process.generation:
            self.close()
            self._generation, self._connection = self._process.connect()
        return self._connection

    @contextmanager
    def _broken(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            self.close()
            raise SuspectError(
                f"the file cannot be decoded: the process that decodes it {self._process.ended(self._generation)}"
            ) from error
        except BaseException:
            # The answer that is not read would be that of the next request.
            self.close()
            raise


class IsolatedReaders(Readers):
    """Readers that read formats of native libraries in a child process, and others in this one."""

    def __init__(self, process: DecoderProcess, filesystems: Filesystems | None = None) -> None:
        super().__init__(filesystems, process.max_pixels, process.channels)
        self._process = process
        self._line = Line(process)

    def read(self, path: str, part: Part, max_bytes: int = 0) -> NDArray[Any]:
        """Read one listed map; for the errors see :class:`Readers`."""
        if not decodes_natively(path):
            return super().read(path, part)
        with self._lock:
            try:
                return self._process.blame(lambda: self._ask(path, part, max_bytes))
            except SuspectError as error:
                raise SourceError(str(error)) from None
            except NoProcessError as error:
                self._process.warn("decoded", error)
                return super().read(path, part)

    def rest(self) -> None:
        """Close the file, as :meth:`Readers.rest`, here or in the child."""
        super().rest()
        with self._lock:
            self._line.tell(None)

    def close(self) -> None:
        """Close the file."""
        super().close()
        with self._lock:
            self._line.close()

    def _ask(self, path: str, part: Part, max_bytes: int) -> NDArray[Any]:
        answer = self._line.ask(["read", path, part, max_bytes])
        if len(answer) == 2:
            try:
                return self._receive(*answer)
            except BaseException:
                # The values that are not read would be the next answer.
                self._line.close()
                raise
        kind, reason, is_scarce, may_pass = answer
        if is_scarce:
            self._process.is_suspect = True
            raise SuspectError(reason)
        if isinstance(kind, list):
            scope, *others = kind
            raise InaccessibleError.of(Verdict(Scope(scope), *others))
        raise _ERRORS.get(kind, SourceError)(reason, may_pass=may_pass)

    def _receive(self, shape: list[int], dtype: str) -> NDArray[Any]:
        """Receive an array. The child may be under the control of the file that it has decoded."""
        array = np.dtype(dtype)
        if array.hasobject or not 0 < array.itemsize <= _MAX_ITEMSIZE or min(shape, default=0) < 0:
            raise SourceError(f"expected an array of numbers, found the dtype {array}")
        size = math.prod(shape)
        if self._process.max_pixels is not None and size > self._process.max_pixels:
            raise SourceError(f"too large: its shape is {tuple(shape)}")
        values = np.empty(size * array.itemsize, np.uint8)
        if values.size:
            self._line.receive_into(values.data)
        return values.view(array).reshape(shape)
