"""The supported file formats: the suffix of a file selects its module."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import Filesystems, file_fingerprint
from async_maps.keys import printable
from async_maps.sources.formats.others import advice_for
from async_maps.sources.formats.stacks import plane_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.render.channels import Channels
    from async_maps.render.quantize import Stored
    from async_maps.sources.activation_map import ActivationMap, ArrayHeader, Part

FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
    ".npy.gz": "npygz",
    ".tar": "tar",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "netcdf",
    ".nc4": "netcdf",
    ".mat": "matlab",
    ".zarr": "zarr",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".pth.tar": "torch",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""The module of each suffix. It has a :class:`Reader`, such as ``NpyReader(path, filesystem)`` in ``npy``."""

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Not supported, but listed, so that they fail with a reason instead of being skipped."""

_LONG_SUFFIXES = (".npy.gz", ".pth.tar", *COMPRESSED_TARS)
_LONGEST_SUFFIX = 12
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")
DATASET_MARKS = ("state.json", "dataset_info.json")
"""The files that a Hugging Face dataset has in its folder, beside its Arrow files."""
_SEQUENTIAL = {"parquet", "arrow"}
"""Formats in which finding a row takes the time of all rows before it."""
_NATIVE = {"hdf5", "netcdf", "matlab", "zarr", "tiff", "picture", "parquet", "arrow"}
"""Formats that libraries decode in native code."""
_CHUNKED = {"zarr", "hdf5", "netcdf", "matlab", "npz", "npygz", "parquet"}
_BLOCK_BYTES = 512 * 2**10
"""Smaller maps are read together with their neighbors, in one request."""


HIDDEN = "hidden files"
NO_NAME = "the row has no name"
SAME_NAME = "another map of the same file has the same name; rename one of them"


class ListedArray(NamedTuple):
    """An array in a file, listed but not read: one map, or a stack of maps.

    Attributes:
        name: its path in the file; empty if the file is the array.
        part: its position in the file.
        size: the maximum number of bytes of the whole array in its own dtype.
        header: its shape and dtype; None if the listing cannot know them, then it is one map.
        problem: the reason why it cannot be read, if the listing found one; else empty.
        rows: the number of maps in a column of a table, where ``header`` is that of one map; else None.
        refusal: the reason why it is not a map of its name, for instance because another has the same; else empty.
        picture: the path of a picture in an archive, with its suffix; else empty.
        look: opens a picture that is beside members of other formats, and lists it; only ``include`` makes it a map.
            None if the array is a map in any case.
        stack_problem: the reason why it cannot be read map by map, if it is a stack; else empty.
        is_last_first: whether the last axis of the array as it was saved is the first of ``header``, as in MATLAB.
    """

    name: str
    part: Part
    size: int
    header: ArrayHeader | None = None
    problem: str = ""
    rows: int | None = None
    refusal: str = ""
    picture: str = ""
    look: Callable[[], Iterator[ListedArray | PassedOver]] | None = None
    stack_problem: str = ""
    is_last_first: bool = False


class PassedOver(NamedTuple):
    """Something in a file that is no map; ``what`` is the text by which the report counts it."""

    what: str


class Reader(Protocol):
    """An open file of one format. The constructor and all methods raise the same errors.

    Raises:
        SourceError: the file has another format, is damaged, contains nothing, or a map is too large.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None: ...

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        """Yield the arrays in a stable order, without having a long list in memory."""

    def names(self, array: ListedArray, length: int) -> Iterable[str] | None:
        """Return the names of the maps of a stack, if the file has them; None if they are numbered."""

    def read(self, part: Part, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        """Read an array, or one map of a stack, without unpickling.

        Returns any array, because the colorize stage checks shape and dtype. A map of more than ``max_pixels`` is
        refused before memory is allocated. A reader that can read values in pieces also has ``find``, with the same
        arguments; it returns a :class:`~async_maps.render.quantize.Stored` that can be reshaped.
        """

    def close(self) -> None:
        """Close the file."""


def suffix_of(path: str) -> str | None:
    """Return the suffix of :data:`FORMATS` or :data:`COMPRESSED_TARS`; None if the path has none of them."""
    suffix = path[path.rfind(".") :].lower()
    if suffix in FORMATS and suffix != ".tar":
        return suffix
    lower = path.lower()
    return next((long for long in _LONG_SUFFIXES if lower.endswith(long)), suffix if suffix in FORMATS else None)


def is_hidden(path: str) -> bool:
    """Whether a relative path is hidden, or was added by macOS: ``.git/x``, ``._x.npy``, ``__MACOSX/x``."""
    parts = without_suffix(path).split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in {".", ".."}) for part in parts)


def shown_suffix(path: str) -> str:
    """Return the suffix of a file that is no map, for a count by suffix; empty if it has none."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if len(suffix) <= _LONGEST_SUFFIX and suffix[1:].isalnum() else ""


def without_suffix(path: str) -> str:
    """Return the path without the suffix of :func:`suffix_of`."""
    return path[: len(path) - len(suffix_of(path) or "")]


def is_one_source(folder: str) -> bool:
    """Whether a local folder is a Zarr hierarchy or a Hugging Face dataset, so one source in many files."""
    return _module_of_folder(folder) is not None


def _module_of_folder(folder: str) -> str | None:
    module = FORMATS.get(suffix_of(folder) or "", "")
    if module == "zarr" or (not module and any(os.path.lexists(os.path.join(folder, mark)) for mark in _ZARR_MARKS)):
        return "zarr"
    is_dataset = module in {"", "arrow"} and all(os.path.lexists(os.path.join(folder, mark)) for mark in DATASET_MARKS)
    return "arrow" if is_dataset else None


def decodes_natively(path: str) -> bool:
    """Whether a library decodes a file in native code, which may crash, or take memory that the file does not claim."""
    suffix = suffix_of(path)
    # A folder without a suffix is a Zarr hierarchy or a dataset.
    return suffix is None or FORMATS.get(suffix) in _NATIVE


def is_columnar(path: str) -> bool:
    """Whether a file is a table that can have a column of arrays, by its suffix."""
    return FORMATS.get(suffix_of(path) or "") in _SEQUENTIAL


def not_read(path: str) -> str:
    """Return why a file is not read, and what to do with it."""
    advice = advice_for(path) or f"expected a name that ends in {', '.join(FORMATS)}"
    return f"{printable(path)} is not a file of activation maps: {advice}"


def open_reader(path: str, filesystem: Filesystem) -> Reader:
    """Return a reader for a file; raise the errors of :class:`Reader`, or MissingExtraError."""
    suffix = suffix_of(path)
    if suffix in COMPRESSED_TARS:
        raise SourceError("a compressed tar has no random access: decompress it first")
    # In buckets, folders without a suffix are opened only if they are datasets.
    module = "arrow" if suffix is None and is_remote(path) else _module_of_folder(path) or FORMATS.get(suffix or "")
    if module is None:
        raise SourceError(not_read(path))
    reader: type[Reader] = getattr(
        import_module(f"async_maps.sources.formats.{module}"), f"{module.capitalize()}Reader"
    )
    return reader(path, filesystem)


@contextmanager
def close_on_error(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Close the file if the ``with`` block fails, and only then."""
    try:
        yield file
    except BaseException:
        file.close()
        raise


class translate_format_errors:  # noqa: N801  # a context manager, in lower case as contextlib's
    """Turn any error of a format's library into a SourceError of one line.

    An OSError with an error number comes from the system and is not changed. This is a class because every read of a
    member enters one, and ``contextlib.contextmanager`` takes three times as long.

    Args:
        what: the start of the message; the library's reason follows.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, SourceError):
            return
        if isinstance(error, OSError) and error.errno is not None:
            return
        if isinstance(error, MemoryError):
            raise SourceError(f"{self._what}: there is not enough memory to decode it") from error
        # The text of a KeyError is the repr of its key.
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        reason = text.partition("\n")[0][:200] or type(error).__name__
        raise SourceError(f"{self._what}: {printable(reason)}") from error


class Readers:
    """Reads maps from files, and keeps the last file open for the next map. Thread-safe, one read at a time.

    Without ``filesystems`` it reads only local files.
    """

    def __init__(
        self, filesystems: Filesystems | None = None, max_pixels: int | None = None, channels: Channels = "none"
    ) -> None:
        self._filesystems = filesystems or Filesystems()
        self._max_pixels = max_pixels
        self.channels = channels
        self._lock = RLock()
        self._path = ""
        self._reader: Reader | None = None
        # Of a file that was kept by rest(), until its next read.
        self._state: str | None = None

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: str, part: Part, max_bytes: int = 0) -> NDArray[Any]:
        """Read one listed map; for the errors see :class:`Reader`. Channels are not reduced yet.

        A subclass may limit its memory by the map's ``max_bytes``.
        """
        array: NDArray[Any] = self._use("read", path, part)
        return array

    def find(self, path: str, part: Part, max_bytes: int = 0) -> NDArray[Any] | Stored:
        """Return one listed map like :meth:`read`, or without its values, which can be read until the next call."""
        if self.channels != "none" or decodes_natively(path):
            return self.read(path, part, max_bytes)
        found: NDArray[Any] | Stored = self._use("find", path, part)
        return found

    def _use(self, method: str, path: str, part: Part) -> Any:
        with self._lock:
            state, self._state = self._state, None
            if self._reader is None or path != self._path or (state is not None and state != _state(path)):
                self.close()
                self._path, self._reader = path, open_reader(path, self._filesystems.of(path))
            try:
                place, index = part or (None, None)
                array = getattr(self._reader, method, self._reader.read)(place, index, self._max_pixels)
                return array if index is None else array.reshape(plane_of(array.shape, self.channels))
            except BaseException:
                # After an error the reader may be in a bad state for the next map.
                self.close()
                raise

    def rest(self) -> None:
        """Close the file, unless to find a place in it again takes long. A file that has changed is not read on."""
        with self._lock:
            if self._reader is None or FORMATS.get(suffix_of(self._path) or "", "arrow") not in _SEQUENTIAL:
                self.close()
            elif self._state is None:
                self._state = _state(self._path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()


def _state(path: str) -> str:
    """Return a text that changes when a local file, or the dataset in a folder, is replaced."""
    try:
        return file_fingerprint(os.stat(os.path.join(path, DATASET_MARKS[0]) if os.path.isdir(path) else path))
    except OSError:
        return ""


def shares_reads(map_: ActivationMap) -> bool:
    """Whether reading a map also reads other maps of its file, so that one shared ``Readers`` should read them all.

    Maps can share a chunk of a Zarr array, or a block of a tar. Sixteen ``Readers`` would read the same bytes sixteen
    times.
    """
    if map_.path is None or map_.part is None:
        return False
    return map_.max_bytes < _BLOCK_BYTES or FORMATS.get(suffix_of(map_.path) or "", "zarr") in _CHUNKED
