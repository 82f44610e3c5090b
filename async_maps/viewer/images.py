"""Finds the source image of a map: in a folder, in a bucket, by a template or in a listing. Everything here blocks."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack, closing
from string import Formatter
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.addresses import is_remote, locator_in, parse_address
from async_maps.filesystems.filesystem import Filesystems
from async_maps.filesystems.locators import place_at
from async_maps.keys import printable
from async_maps.tables import is_table, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.addresses import Address
    from async_maps.settings import S3Settings

_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG", ".JPEG", ".gif")
_FIELDS = {"name", "parent", "stem"}
_COLUMNS = ("name", "image")
MAX_BYTES = 256 * 2**20
"""Larger objects are not read."""
_MISSING_S, _MOST_MISSING = 30.0, 10_000
"""How long it is known that a bucket does not have an image: to ask for all its names takes 16 requests."""


class ImageMissingError(SourceError):
    """A map has no image; the message names where it was looked for."""


class _Places(Protocol):
    """Knows where the image of a map may be."""

    def of(self, name: str) -> Iterator[str]:
        """Yield paths and locators, the most likely one first."""

    def hit(self, name: str, path: str) -> None:
        """Note where an image was."""

    def close(self) -> None:
        """Delete temporary files."""


class Images:
    """The source images of maps. Thread-safe.

    Args:
        place: a folder or a prefix in a bucket, in which an image has the name of its map and a suffix, or that of the
            map's parent for several layers of one image; a template with the fields ``{name}``, ``{parent}`` and
            ``{stem}``, ``s3://bucket/{parent}/{stem}.jpg``; or a listing, ``.csv``, ``.jsonl`` or ``.parquet``, with
            the columns ``name`` and ``image``.
        s3: the time limits and attempts of requests.

    Raises:
        SettingsError: the place is none of these.
        SourceError: the listing cannot be read.
    """

    def __init__(self, place: str, s3: S3Settings | None = None) -> None:
        with ExitStack() as stack:
            self._filesystems = stack.enter_context(Filesystems(s3))
            self._places = self._open(place_at(place, SettingsError))
            stack.callback(self._places.close)
            self._opened = stack.pop_all()
        self._missing: dict[str, tuple[float, str]] = {}

    def close(self) -> None:
        """Close the connections and delete temporary files."""
        self._opened.close()

    def read(self, name: str) -> bytes:
        """Return the bytes of the image of a map.

        Raises:
            ImageMissingError: there is none; the message names the places.
            SourceError: it cannot be read.
        """
        from async_maps.filesystems.remote import RefusedError

        missing_at, reason = self._missing.get(name, (0.0, ""))
        if reason and time.monotonic() - missing_at < _MISSING_S:
            raise ImageMissingError(reason)
        looked_for: list[str] = []
        refused: RefusedError | None = None
        for path in () if ".." in name.split("/") else self._places.of(name):
            looked_for.append(path)
            try:
                data = self._read(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except RefusedError as error:
                # Without permission to list, a store may refuse an object that does not exist.
                refused = error
                continue
            except OSError as error:
                raise SourceError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
            self._places.hit(name, path)
            return data
        if refused is not None:
            raise SourceError(f"{printable(looked_for[-1])}: {refused}") from refused
        shown = ", ".join(printable(path) for path in looked_for[:3]) + ("" if len(looked_for) <= 3 else ", ...")
        reason = f"looked for {shown}" if looked_for else "there is no place for this name"
        if looked_for and is_remote(looked_for[-1]):
            if len(self._missing) >= _MOST_MISSING:
                self._missing.clear()
            self._missing[name] = time.monotonic(), reason
        raise ImageMissingError(reason)

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
                f"images: {printable(place)!r} is not a folder; expected a folder, s3://bucket/prefix, gs:// or az://, "
                "a template such as 's3://bucket/{name}.jpg', or a table with the columns name and image"
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
                path = locator_in(self._root, f"{base}{suffix}")
                if not self._is_local or self._is_below(path):
                    yield path

    def hit(self, name: str, path: str) -> None:
        for way in self._ways:
            base = name.rpartition("/")[0] if way[0] else name
            if path == locator_in(self._root, f"{base}{way[1]}"):
                with self._changing:
                    self._ways = [way, *(other for other in self._ways if other != way)]
                return

    def close(self) -> None:
        pass

    def _is_below(self, path: str) -> bool:
        return _is_below(path, self._root)


class _Template:
    """One place for each map. The text says whether it is in a bucket and in which, never the name of a map."""

    def __init__(self, template: str) -> None:
        try:
            parts = [part for part in Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise SettingsError(f"images {template!r}: {error}") from error
        if not parts or any(field not in _FIELDS or spec or conversion for _, field, spec, conversion in parts):
            raise SettingsError(f"images {template!r}: expected the fields {{name}}, {{parent}} and {{stem}}")
        self._address = _address_of(template) if is_remote(template) else None
        here = os.getcwd().replace("{", "{{").replace("}", "}}")
        self._template = os.path.join(here, template) if self._address is None else self._address.key
        start = ""
        for text, field, _, _ in Formatter().parse(self._template):
            start += text
            if field is not None:
                break
        self._root = os.path.realpath(start.rpartition("/")[0] or "/")

    def of(self, name: str) -> Iterator[str]:
        parent, _, stem = name.rpartition("/")
        # A map in no folder has no parent.
        template = self._template if parent else self._template.replace("{parent}/", "")
        path = template.format(name=name, parent=parent, stem=stem)
        if self._address is not None:
            yield str(self._address._replace(key=path))
        elif _is_below(path, self._root):
            yield path

    def hit(self, name: str, path: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Listing:
    """The images that a table names. They are kept on disk: a million paths would take 200 MB of memory."""

    def __init__(self, path: str, filesystems: Filesystems) -> None:
        self._folder = (path if is_remote(path) else os.path.abspath(path)).rpartition("/")[0]
        self._asking = Lock()
        with ExitStack() as stack:
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            stack.callback(self._database.close)
            self._database.execute("CREATE TABLE images (name TEXT PRIMARY KEY, image TEXT) WITHOUT ROWID")
            self._database.execute("BEGIN")
            for row in stack.enter_context(closing(read_table(path, filesystems.of(path).open, _COLUMNS))):
                values = [row.values.get(column) for column in _COLUMNS]
                problem = row.problem
                try:
                    if not problem and all(isinstance(value, str) and value for value in values):
                        self._database.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", values)
                except UnicodeEncodeError:
                    problem = "the text is not UTF-8: save the table as UTF-8"
                if problem:
                    raise SourceError(f"{printable(path)}: {row.place}: {problem}")
            self._database.execute("COMMIT")
            stack.pop_all()

    def of(self, name: str) -> Iterator[str]:
        with self._asking:
            found = self._database.execute("SELECT image FROM images WHERE name = ?", (name,)).fetchone()
        if found is not None:
            place = place_at(found[0])
            if is_remote(place):
                yield place
            elif is_remote(self._folder):
                yield locator_in(self._folder, place)
            else:
                yield os.path.join(self._folder, place)

    def hit(self, name: str, path: str) -> None:
        pass

    def close(self) -> None:
        with self._asking:
            self._database.close()


def _address_of(template: str) -> Address:
    try:
        return parse_address(template, SettingsError)
    except SettingsError as error:
        raise SettingsError(f"images {template!r}: {error}, with fields in the prefix only") from error


def _is_below(path: str, root: str) -> bool:
    return "\0" not in path and os.path.realpath(path).startswith(f"{root.rstrip('/')}/")
