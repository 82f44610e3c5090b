"""Objects of a service as a source: one object, all below a prefix, or a glob. Runs in a thread."""

from __future__ import annotations

import re
from glob import has_magic
from traceback import clear_frames
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.filesystems.remote import Digest
from async_maps.filesystems.services import locator_of
from async_maps.keys import printable
from async_maps.sources.coverage import every
from async_maps.sources.files import is_list_of_names, matches
from async_maps.sources.formats.registry import (
    DATASET_MARKS,
    FORMATS,
    HIDDEN,
    is_hidden,
    shown_suffix,
    suffix_of,
    without_suffix,
)
from async_maps.sources.named import NamedFile, maps_in_named
from async_maps.sources.pictures import OVERLAYS, Pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.answers import Object
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.filesystems.remote import RemoteFilesystem
    from async_maps.outcomes import Failure
    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.options import PassOver, Scan


class RemoteObjects:
    """The maps in the objects at ``s3://bucket/prefix/``, ``s3://bucket/key.npy`` or ``s3://bucket/maps/*.npy``.

    Iterating it sends the requests. Names are relative to the prefix, in the order of the keys.
    """

    def __init__(self, path: str, settings: S3Settings | None, scan: Scan) -> None:
        self._path = path
        self._at = parse_address(path)
        self._bucket, self._key = self._at.bucket, self._at.key
        self._settings = settings
        self._scan = scan
        self._overlays: str | None = None
        """The start of the keys of overlays; None if they are in another bucket."""
        destination = scan.options.destination
        if is_remote(destination) and _bucket_of(overlays := parse_address(destination)) == _bucket_of(self._at):
            self._overlays = f"{overlays.key.rstrip('/')}/" if overlays.key else ""

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        try:
            with self._scan.opened(self._settings) as filesystems:
                yield from maps_in_named(self.files(filesystems), filesystems, self._scan)
        except (SourceError, UnavailableError) as error:
            # The frames of the error refer to the client, and its connections stay open until no reference is left.
            kept: BaseException | None = error
            while kept is not None:
                clear_frames(kept.__traceback__)
                kept = kept.__cause__
            raise

    def files(self, filesystems: Filesystems) -> Iterator[NamedFile | Failure]:
        """Yield the files, as a :class:`~async_maps.sources.FileSource`."""
        filesystem = filesystems.at(self._at)
        try:
            if has_magic(self._key) and next(filesystem.objects(self._bucket, self._key), None) is None:
                yield from self._glob(filesystem)
                return
            if suffix_of(self._key) and (found := filesystem.find(self._path)) is not None:
                self._cover(_folder_of(found.key), printable(self._path_of(found.key)).__eq__)
                yield self._file(found.key, _folder_of(found.key), found.fingerprint, found.size)
                return
            folder = f"{self._key.rstrip('/')}/" if self._key else ""
            # If the path itself is a Zarr hierarchy, it is one source, not a folder of files.
            root = _folder_of(folder[:-1]) if folder and _zarr_root(folder) == folder[:-1] else folder
            place = printable(self._path_of(folder[:-1]))
            self._cover(root, every if root == folder else lambda file: file == place or file.startswith(f"{place}/"))
            yield from self._below(filesystem, folder, root)
        except (SourceError, UnavailableError) as error:
            raise SourceError(f"{self._path}: {error}") from error

    def _glob(self, filesystem: RemoteFilesystem) -> Iterator[NamedFile]:
        fixed = re.split(r"[*?[]", self._key, maxsplit=1)[0]
        root = _folder_of(fixed)
        pattern = tuple(self._key[len(root) :].split("/"))
        if pattern[-1] == "**":
            pattern = (*pattern, "*")
        # The path may be a URL, whose key is percent-encoded.
        self._cover(root, lambda file: matches(pattern, parse_address(file).key[len(root) :]))
        yield from self._below(filesystem, fixed, root, lambda key: matches(pattern, key[len(root) :]))

    def _cover(self, root: str, covers: Callable[[str], bool]) -> None:
        self._scan.begin(self._path_of(root.rstrip("/")), covers)

    def _below(
        self, filesystem: RemoteFilesystem, prefix: str, root: str, selects: Callable[[str], bool] | None = None
    ) -> Iterator[NamedFile]:
        """Yield the files whose keys start with a prefix; all objects of a Zarr hierarchy or a dataset are one file.

        ``selects`` decides which; by default all but hidden ones.
        """

        def wanted(key: str, pass_over: PassOver = self._scan.pass_over) -> bool:
            if selects is not None:
                return selects(key)
            if is_hidden(key[len(root) :]):
                pass_over(HIDDEN)
                return False
            return True

        def names(pass_over: PassOver) -> Generator[str, None, None]:
            for found in self._objects(filesystem, prefix, root, pass_over):
                key = _zarr_root(found.key, len(root)) or found.key
                if wanted(key, pass_over):
                    if suffix_of(key):
                        yield key[len(root) :]
                    else:
                        pass_over(shown_suffix(key))

        def is_named(file: str) -> bool:
            return selects is not None and not selects(f"{root}{without_suffix(file)}")

        pictures = Pictures(self._scan, names, is_named, self._overlays == root)
        hierarchy, digest = "", Digest()
        # The last folder that could be a dataset, and the last one that is.
        checked = dataset = ""
        for found in self._objects(filesystem, prefix, root, self._scan.pass_over):
            top = _zarr_root(found.key, len(root))
            folder = _folder_of(found.key)
            if not top and folder != checked and _DATASET_FILE.search(found.key):
                checked = folder
                dataset = folder[:-1] if self._is_dataset(filesystem, folder) else ""
            if not top and folder == f"{dataset}/":
                top = dataset
            if top != hierarchy:
                if hierarchy and wanted(hierarchy):
                    yield self._file(hierarchy, root, digest.fingerprint())
                hierarchy, digest = top, Digest()
            if hierarchy:
                digest.add(found)
            elif found.key.endswith("/") or is_list_of_names(found.key) or not wanted(found.key):
                continue
            elif not suffix_of(found.key):
                self._scan.pass_over(shown_suffix(found.key))
            elif pictures.takes(found.key[len(root) :]):
                yield self._file(found.key, root, found.fingerprint, found.size)
        if hierarchy and wanted(hierarchy):
            yield self._file(hierarchy, root, digest.fingerprint())

    def _objects(self, filesystem: RemoteFilesystem, prefix: str, root: str, pass_over: PassOver) -> Iterator[Object]:
        """Yield the objects whose keys start with a prefix, but not those in a destination below the root."""
        overlays = self._overlays if self._overlays != root else None
        is_first = True
        for found in filesystem.objects(self._bucket, prefix):
            if overlays is None or not overlays.startswith(root) or not found.key.startswith(overlays):
                yield found
            elif is_first:
                pass_over(OVERLAYS)
                is_first = False

    def _is_dataset(self, filesystem: RemoteFilesystem, folder: str) -> bool:
        places = (self._path_of(folder + mark) for mark in DATASET_MARKS)
        return all(filesystem.find(place) is not None for place in places)

    def _path_of(self, key: str) -> str:
        return str(self._at._replace(key=key))

    def _file(self, key: str, root: str, fingerprint: str | None, size: int = 0) -> NamedFile:
        path = self._path_of(key)
        if len(key) < len(root):  # the source is a dataset
            root = _folder_of(key)
        return NamedFile(without_suffix(key[len(root) :]), path, "", fingerprint, size)


_DATASET_FILE = re.compile(r"/data-\d+-of-\d+\.arrow$")


def _bucket_of(address: Address) -> str:
    # The same container may be named with and without the account.
    return locator_of(address._replace(key=""))


def _folder_of(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _zarr_root(key: str, start: int = 0) -> str:
    """Return the key of the outermost Zarr hierarchy that contains an object; empty if there is none."""
    end = key.lower().find(".zarr/", start)
    return key[: end + len(".zarr")] if end >= 0 and ".zarr" in FORMATS else ""
