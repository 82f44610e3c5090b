"""The state of each file of a plan, and how many maps a large stack has. Blocks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError, SourceError, translate_os_error
from async_maps.filesystems.filesystem import is_remote
from async_maps.outcomes import Failure
from async_maps.plans.parts import PartFile
from async_maps.sources.formats.registry import open_reader, suffix_of
from async_maps.sources.formats.stacks import stack_length
from async_maps.sources.members import open_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import SourceOptions

_LARGE = 32 * 2**20
"""Stacks of fewer bytes are not opened to count their maps."""
_SPLIT = {".npy"}
"""The formats in which a map is found without reading those before it."""
_THREADS = 16
_BATCH = 256


def planned(
    files: Iterable[NamedFile | Failure], filesystems: Filesystems, options: SourceOptions
) -> Generator[tuple[PartFile, int], None, None]:
    """Yield each file with its state, and the number of its maps: 1 if it was not opened."""
    look = partial(_planned, filesystems=filesystems, options=options)
    wanted = (
        file for file in files if isinstance(file, Failure) or not options.leaves_out(file.name, file.with_suffix)
    )
    with ThreadPoolExecutor(_THREADS, "async-maps-plan") as threads:
        while batch := list(islice(wanted, _BATCH)):
            yield from threads.map(look, batch)


def _planned(file: NamedFile | Failure, filesystems: Filesystems, options: SourceOptions) -> tuple[PartFile, int]:
    if isinstance(file, Failure):
        return PartFile(file.name, file.source, reason=file.reason), 1
    found = PartFile(file.name, file.path, file.size, file.fingerprint, file.row)
    try:
        if file.fingerprint is None:
            found = _with_state(found, filesystems)
        return found, _maps(found, filesystems, options)
    except (OSError, SourceError) as error:
        return found._replace(reason=translate_os_error(error)), 1


def _with_state(file: PartFile, filesystems: Filesystems) -> PartFile:
    if is_remote(file.path) and suffix_of(file.path) not in {None, ".zarr"}:
        found = filesystems.s3().find(file.path)
        if found is None:
            raise SourceError("the object does not exist")
        return file._replace(size=found.size, fingerprint=found.fingerprint)
    fingerprint = open_file(file.path, None, filesystems).fingerprint
    size = 0 if is_remote(file.path) else os.stat(file.path).st_size
    return file._replace(size=size, fingerprint=fingerprint)


def _maps(file: PartFile, filesystems: Filesystems, options: SourceOptions) -> int:
    if file.size < _LARGE or suffix_of(file.path) not in _SPLIT:
        return 1
    # What cannot be read fails in the run, by name.
    with suppress(OSError, AsyncMapsError), closing(open_reader(file.path, filesystems.of(file.path))) as reader:
        (array,) = islice(reader.arrays(), 1)
        header = getattr(array, "header", None)
        return (header and stack_length(header.shape, options.channels)) or 1
    return 1
