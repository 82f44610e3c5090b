"""The child process in which native libraries decode untrusted files. It ends when its control socket is closed.

The first message is its settings. Then each message on the control socket brings the socket of one reader or listing,
which a thread serves. All messages are JSON; the values of an array follow the message with its shape.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from async_maps.concurrency.launch import ignore_signals, resume_collection
from async_maps.errors import AsyncMapsError, InputValidationError, shortage_of_files, translate_os_error
from async_maps.filesystems.filesystem import Filesystems, UnavailableError, verdict_of
from async_maps.settings import S3Settings
from async_maps.sources.decoder_listing import Listing
from async_maps.sources.formats.registry import Readers
from async_maps.sources.memory_limit import MemoryLimit

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


class _Server:
    def __init__(self, hello: dict[str, Any]) -> None:
        if known := hello.pop("credentials"):
            from async_maps.filesystems.credentials import adopt_credentials

            self._credentials = adopt_credentials(known)
        self._hello = hello
        self._filesystems = Filesystems(None if hello["s3"] is None else S3Settings(**hello["s3"]))
        self._limit = MemoryLimit()

    def serve(self, connection: Connection) -> None:
        """Answer the requests of one reader until it closes its socket."""
        with (
            connection,
            suppress(EOFError, OSError),
            Readers(self._filesystems, self._hello["max_pixels"], self._hello["channels"]) as readers,
        ):
            listing = Listing(self._filesystems, self._limit)
            while True:
                request = json.loads(connection.recv_bytes())
                if request is None:
                    readers.rest()
                    continue
                kind, *arguments = request
                if kind != "read":
                    connection.send_bytes(listing.answer(kind, arguments))
                    continue
                header, array = self._answer(readers, *arguments)
                connection.send_bytes(json.dumps(header).encode())
                if array is not None and array.size:
                    connection.send_bytes(array.reshape(-1).view(np.uint8).data)
                del array

    def _answer(self, readers: Readers, path: str, part: Any, max_bytes: int) -> tuple[object, NDArray[Any] | None]:
        try:
            with self._limit.reading(max_bytes):
                array = np.ascontiguousarray(readers.read(path, part))
                if array.dtype.kind == "V" and array.dtype.names is None:
                    # A type of ml_dtypes, which has no name for NumPy.
                    array = array.astype(np.float32)
            return [list(array.shape), array.dtype.str], array
        except Exception as error:  # noqa: BLE001  # one map's failure is data; a malicious file can cause any error
            if shortage := shortage_of_files(error):
                return ["shortage", str(shortage), False, False], None
            kind: object = "input" if isinstance(error, InputValidationError) else verdict_of(error) or "source"
            kind = "unavailable" if isinstance(error, UnavailableError) else kind
            may_pass = isinstance(error, UnavailableError) and error.may_pass
            memory = self._limit.explain(error)
            return [kind, f"{_reason(error)}{memory}", bool(memory), may_pass], None


def _reason(error: Exception) -> str:
    known = isinstance(error, AsyncMapsError | OSError)
    return translate_os_error(error) if known else f"could not be read: {error!r}"


def main() -> None:
    """Serve readers until the control socket is closed."""
    ignore_signals()
    resume_collection()
    # The parent has clients of its own, and has logged what this process would repeat.
    logging.getLogger("async_maps").addHandler(logging.NullHandler())
    try:
        os.fstat(2)
    except OSError:  # closed, as in daemons
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    control = socket.socket(fileno=os.dup(0))
    try:
        server = _Server(json.loads(Connection(os.dup(0), writable=False).recv_bytes()))
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                break
            for descriptor in descriptors:
                Thread(target=server.serve, args=(Connection(descriptor),), daemon=True).start()
    except (EOFError, ConnectionError):
        pass
    # The threads may be in a library that does not return.
    os._exit(0)
