"""Standard input as a source: one path per line.

The event loop waits for the input, not a thread: a thread that waits in a read cannot be interrupted, and Python's exit
would wait for it.
"""

from __future__ import annotations

import os
import re
import sys
from codecs import BOM_UTF8
from contextlib import suppress
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread, wait_readable

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.locators import place_at
from async_maps.keys import printable
from async_maps.outcomes import Failure
from async_maps.sources.coverage import none
from async_maps.sources.formats.registry import without_suffix
from async_maps.sources.named import NamedFile, maps_in_named
from async_maps.sources.options import Scan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.hearing import Hearing

_READ_BYTES = 2**16
_MAX_LINE = 2**16


async def stdin_lines() -> AsyncGenerator[list[bytes], None]:
    """Yield the lines of standard input without their ends, in lists of all that are available."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        raise SourceError("standard input is closed; expected one path per line") from None
    thread = CapacityLimiter(1)
    rest = b""
    try:
        while data := await _read(descriptor, thread):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise SourceError(
                    f"standard input has a line of more than {_MAX_LINE:,} bytes; expected one path per line"
                )
            if lines:
                yield lines
    except OSError as error:
        raise SourceError(f"standard input cannot be read: {error.strerror}") from error
    if rest:
        yield [rest]


async def _read(descriptor: int, thread: CapacityLimiter) -> bytes:
    # epoll refuses regular files with a PermissionError; they are always ready.
    with suppress(PermissionError):
        await wait_readable(descriptor)
    return await to_thread.run_sync(os.read, descriptor, _READ_BYTES, limiter=thread)


def maps_in_lines(
    lines: Sequence[bytes], filesystems: Filesystems, scan: Scan, hearing: Hearing
) -> Iterator[ActivationMap | Failure]:
    """Yield the maps in the files of the lines, whose paths are relative to the current folder."""
    scan.begin("-", none)
    return maps_in_named(_files(lines), filesystems, scan, hearing)


def _files(lines: Sequence[bytes]) -> Iterator[NamedFile | Failure]:
    for line in lines:
        # Editors of Windows begin a file with a byte order mark, and `cat` joins such files.
        path = os.fsdecode(line.removesuffix(b"\r").removeprefix(BOM_UTF8))
        if not path:
            continue
        try:
            path = place_at(path)
            name = parse_address(path).key if is_remote(path) else re.sub(r"^(?:\.?/+)+", "", path)
        except SourceError as error:
            yield Failure(printable(path), printable(path), None, "source", str(error))
            continue
        yield NamedFile(without_suffix(name), path if is_remote(path) else os.path.abspath(path))
