"""Finds the source image of a map: in a folder, in a bucket, by a template or in a listing. Everything here blocks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from string import Formatter
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.filesystem import Filesystems, is_remote
from async_maps.filesystems.locators import place_at
from async_maps.keys import printable
from async_maps.tables import is_table, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.settings import S3Settings

_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG", ".JPEG", ".gif")
_FIELDS = {"name", "parent", "stem"}
_COLUMNS = ("name", "image")
MAX_BYTES = 256 * 2**20
"""Larger objects are not read."""


class ImageMissingError(SourceError):
    """A map has no image; the message names where it was looked for."""


class _Places(Protocol):
    """Knows where the image of a map may be."""

    def of(self, name: str) -> Iterator[str]:
        """Yield paths and locators, the most likely one first."""

    def hit(self, name: str, path: str) -> None:
        """Note where an image was."""


class Images:
    """The source images of maps. Thread-safe.

    Args:
        place: a folder or ``s3://bucket/prefix``, in which an image has the name of its map and a suffix, or that of
            the map's parent for several layers of one image; a template with the fields of ``--key``,
            ``s3://bucket/{parent}/{stem}.jpg``; or a listing, ``.csv``, ``.jsonl`` or ``.parquet``, with the columns
            ``name`` and ``image``.
        s3: the time limits and attempts of requests.

    Raises:
        SettingsError: the place is none of these.
        SourceError: the listing cannot be read.
    """

    def __init__(self, place: str, s3: S3Settings | None = None) -> None:
        self._filesystems = Filesystems(s3)
        try:
            self._places = self._open(place_at(place, SettingsError))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._filesystems.close()

    def read(self, name: str) -> bytes:
        """Return the bytes of the image of a map.

        Raises:
            ImageMissingError: there is none; the message names the places.
            SourceError: it cannot be read.
        """
        from async_maps.filesystems.s3 import RefusedError

        looked_for: list[str] = []
        refused: RefusedError | None = None
        for path in () if ".." in name.split("/") else self._places.of(name):
            looked_for.append(path)
            try:
                data = self._read(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except RefusedError as error:
                # Without permission to list, S3 refuses what does not exist.
                refused = error
                continue
            except OSError as error:
                raise SourceError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
            self._places.hit(name, path)
            return data
        if refused is not None:
            raise SourceError(f"{printable(looked_for[-1])}: {refused}") from refused
        shown = ", ".join(printable(path) for path in looked_for[:3]) + ("" if len(looked_for) <= 3 else ", ...")
        raise ImageMissingError(f"looked for {shown}" if looked_for else "there is no place for this name")

    def _read(self, path: str) -> bytes:
        with self._filesystems.of(path).open(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SourceError(f"{printable(path)}: is larger than {MAX_BYTES:,} bytes")
        return data

    def _open(self, place: str) -> _Places:
        if "{" in place:
            return _Template(place)
        if is_table(place):
            return _Listing(place, self._filesystems)
        if is_remote(place):
            return _Folder(place.rstrip("/"))
        if not os.path.isdir(place):
            raise SettingsError(
                f"images: {printable(place)!r} is not a folder; expected a folder, s3://bucket/prefix, a template such "
                "as 's3://bucket/{name}.jpg', or a table with the columns name and image"
            )
        return _Folder(os.path.realpath(place), is_local=True)


class _Folder:
    """Images below a folder or a prefix: name and suffix; where the last one was, the next one is looked for first."""

    def __init__(self, root: str, *, is_local: bool = False) -> None:
        self._root = root
        self._is_local = is_local
        self._changing = Lock()
        self._ways = [(False, ""), *((is_parent, suffix) for is_parent in (False, True) for suffix in _SUFFIXES)]

    def of(self, name: str) -> Iterator[str]:
        for is_parent, suffix in tuple(self._ways):
            base = name.rpartition("/")[0] if is_parent else name
            if base and (suffix or base.endswith(_SUFFIXES)):
                path = f"{self._root}/{base}{suffix}"
                if not self._is_local or self._is_below(path):
                    yield path

    def hit(self, name: str, path: str) -> None:
        for way in self._ways:
            base = name.rpartition("/")[0] if way[0] else name
            if path == f"{self._root}/{base}{way[1]}":
                with self._changing:
                    self._ways = [way, *(other for other in self._ways if other != way)]
                return

    def _is_below(self, path: str) -> bool:
        return "\0" not in path and os.path.realpath(path).startswith(f"{self._root.rstrip('/')}/")


class _Template:
    """One place for each map."""

    def __init__(self, template: str) -> None:
        try:
            fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        except ValueError as error:
            raise SettingsError(f"images {template!r}: {error}") from error
        if not fields or fields - _FIELDS:
            raise SettingsError(f"images {template!r}: expected the fields {{name}}, {{parent}} and {{stem}}")
        self._template = template
        self._start = template.partition("{")[0].rpartition("/")[0]

    def of(self, name: str) -> Iterator[str]:
        parent, _, stem = name.rpartition("/")
        path = self._template.format(name=name, parent=parent, stem=stem)
        if is_remote(path) or ("\0" not in path and self._is_below(path)):
            yield path

    def hit(self, name: str, path: str) -> None:
        pass

    def _is_below(self, path: str) -> bool:
        root = os.path.realpath(self._start or ("/" if self._template.startswith("/") else "."))
        return os.path.realpath(path).startswith(f"{root.rstrip('/')}/")


class _Listing:
    """The images that a table names. They are kept on disk: a million paths would take 200 MB of memory."""

    def __init__(self, path: str, filesystems: Filesystems) -> None:
        self._folder = "" if is_remote(path) else os.path.dirname(os.path.abspath(path))
        self._asking = Lock()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("CREATE TABLE images (name TEXT PRIMARY KEY, image TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")
        with closing(read_table(path, filesystems.of(path).open, _COLUMNS)) as rows:
            for row in rows:
                if row.problem:
                    raise SourceError(f"{printable(path)}: {row.place}: {row.problem}")
                values = [row.values.get(column) for column in _COLUMNS]
                if all(isinstance(value, str) and value for value in values):
                    self._database.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", values)
        self._database.execute("COMMIT")

    def of(self, name: str) -> Iterator[str]:
        with self._asking:
            found = self._database.execute("SELECT image FROM images WHERE name = ?", (name,)).fetchone()
        if found is not None:
            place = place_at(found[0])
            yield place if is_remote(place) else os.path.join(self._folder, place)

    def hit(self, name: str, path: str) -> None:
        pass
