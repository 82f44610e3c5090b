"""The state of each file of a plan, and how many maps a large stack has. Blocks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError, SourceError, translate_os_error
from async_maps.filesystems.addresses import is_remote
from async_maps.outcomes import Failure
from async_maps.plans.parts import PartFile
from async_maps.sources.formats.registry import PassedOver, open_reader, suffix_of
from async_maps.sources.formats.stacks import stack_length
from async_maps.sources.isolated_listing import IsolatedListing
from async_maps.sources.isolation import NoProcessError
from async_maps.sources.members import open_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.isolation import DecoderProcess
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import SourceOptions

_LARGE = 32 * 2**20
"""Stacks of fewer bytes are not opened to count their maps."""
_THREADS = 16
_BATCH = 256


def planned(
    files: Iterable[NamedFile | Failure], filesystems: Filesystems, options: SourceOptions, decoder: DecoderProcess
) -> Generator[tuple[PartFile, int], None, None]:
    """Yield each file with its state, and the number of its maps: 1 if it cannot be shared out.

    Large stacks of the formats in which a map is found without reading those before it, NumPy's and Zarr, are opened.
    """
    listing = IsolatedListing(decoder)
    look = partial(_planned, filesystems=filesystems, options=options, listing=listing)
    wanted = (
        file for file in files if isinstance(file, Failure) or not options.leaves_out(file.name, file.with_suffix)
    )
    with closing(listing), ThreadPoolExecutor(_THREADS, "async-maps-plan") as threads:
        while batch := list(islice(wanted, _BATCH)):
            yield from threads.map(look, batch)


def _planned(
    file: NamedFile | Failure, filesystems: Filesystems, options: SourceOptions, listing: IsolatedListing
) -> tuple[PartFile, int]:
    if isinstance(file, Failure):
        return PartFile(file.name, file.source, reason=file.reason), 1
    found = PartFile(file.name, file.path, file.size, file.fingerprint, file.row)
    try:
        if file.fingerprint is None:
            found = _with_state(found, filesystems)
        if suffix_of(found.path) == ".zarr":
            return found, _maps_in_zarr(found, options, listing)
        return found, _maps(found, filesystems, options)
    except (OSError, SourceError) as error:
        return found._replace(reason=translate_os_error(error)), 1


def _with_state(file: PartFile, filesystems: Filesystems) -> PartFile:
    if is_remote(file.path) and suffix_of(file.path) not in {None, ".zarr"}:
        found = filesystems.remote(file.path).find(file.path)
        if found is None:
            raise SourceError("the object does not exist")
        return file._replace(size=found.size, fingerprint=found.fingerprint)
    fingerprint = open_file(file.path, None, filesystems).fingerprint
    size = 0 if is_remote(file.path) else os.stat(file.path).st_size
    return file._replace(size=size, fingerprint=fingerprint)


def _maps(file: PartFile, filesystems: Filesystems, options: SourceOptions) -> int:
    if file.size < _LARGE or suffix_of(file.path) != ".npy":
        return 1
    # What cannot be read fails in the run, by name.
    with suppress(OSError, AsyncMapsError), closing(open_reader(file.path, filesystems.of(file.path))) as reader:
        (array,) = islice(reader.arrays(), 1)
        header = getattr(array, "header", None)
        return (header and stack_length(header.shape, options.channels)) or 1
    return 1


def _maps_in_zarr(file: PartFile, options: SourceOptions, listing: IsolatedListing) -> int:
    """Return the number of maps if the hierarchy is one array, else 1. Its size is not known before."""
    with suppress(OSError, AsyncMapsError, NoProcessError):
        _, found = listing.maps(file.path, file.fingerprint, options)
        count = 0
        for map_ in found:
            if isinstance(map_, PassedOver) or map_.part is None or map_.part[0] != "":
                return 1
            count += 1
        return max(1, count)
    return 1
