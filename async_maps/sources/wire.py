"""What the decoder process sends about a file that it lists, as JSON values.

The process may be under the control of the file, so every value is checked when it is received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps import errors
from async_maps.errors import AsyncMapsError, MissingExtraError, SourceError, shortage_of_files
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError, verdict_of
from async_maps.filesystems.verdict import Scope, Verdict
from async_maps.keys import printable
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.contents import ListedMap
from async_maps.sources.formats.registry import PassedOver
from async_maps.sources.layouts import Question
from async_maps.sources.members import AppleDoubleError

if TYPE_CHECKING:
    from typing import Any

    from async_maps.tables import Row


_VERDICT = "Verdict"
_PLACES: dict[str, Any] = {kind.__name__: kind for kind in (InaccessibleError, UnavailableError)}
"""The errors that are not in :mod:`async_maps.errors`."""


class _Value(NamedTuple):
    """A value that is not JSON; its text is that of the value."""

    text: str

    def __repr__(self) -> str:
        return self.text


def pack_found(found: ListedMap | PassedOver) -> list[Any]:
    """Return a map, or what was passed over, as a JSON value."""
    if isinstance(found, PassedOver):
        return [found.what]
    header: list[Any] | None = None
    if found.header is not None:
        dtype = found.header.dtype
        # A type of ml_dtypes has no name for NumPy, and is read as float32.
        text = "<f4" if dtype.kind == "V" and dtype.names is None else dtype.str
        header = [found.header.shape, text, found.header.chunks]
    return [found.name, found.part, found.max_bytes, header, found.problem, found.refusal, found.question]


def unpack_found(values: Any) -> ListedMap | PassedOver:
    """Return what :func:`pack_found` was called with; raise SourceError for other values."""
    try:
        if len(values) == 1:
            return PassedOver(_text(values[0]))
        name, part, max_bytes, header, problem, refusal, question = values
        return ListedMap(
            None if name is None else _text(name),
            part,
            _whole(max_bytes),
            None if header is None else _header(*header),
            _text(problem),
            _text(refusal),
            question=None if question is None else Question(*map(_text, question)),
        )
    except (TypeError, ValueError) as error:
        raise _unexpected(values) from error


def pack_row(row: Row) -> list[Any]:
    """Return the row of a table as a JSON value."""
    values = {
        column: value if value is None or isinstance(value, str | int | float) else [f"{value!r:.80}"]
        for column, value in row.values.items()
    }
    return [row.place, values, row.problem]


def unpack_row(values: Any) -> Row:
    """Return what :func:`pack_row` was called with; a value that is not JSON is replaced by one with the same text."""
    from async_maps.tables import Row

    try:
        place, cells, problem = values
        found = {
            _text(column): _Value(_text(cell[0])) if isinstance(cell, list) else cell for column, cell in cells.items()
        }
        return Row(_text(place), found, _text(problem))
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise _unexpected(values) from error


def pack_error(error: Exception) -> list[Any]:
    """Return an error of a listing as a JSON value."""
    if shortage := shortage_of_files(error):
        error = shortage
    if verdict := verdict_of(error):
        return [_VERDICT, verdict, False]
    if isinstance(error, OSError) and error.errno is not None:
        return ["OSError", error.errno, error.strerror or ""]
    if isinstance(error, AsyncMapsError | AppleDoubleError):
        # What was read without enough memory says nothing about the content of the file.
        kind = "InaccessibleError" if isinstance(error.__cause__, MemoryError) else type(error).__name__
        return [kind, str(error), isinstance(error, AsyncMapsError) and error.may_pass]
    kind = "InaccessibleError" if isinstance(error, MemoryError) else "SourceError"
    return [kind, f"could not be listed: {printable(repr(error))[:200]}", False]


def unpack_error(values: Any) -> Exception:
    """Return an error of the same class and text as the one that :func:`pack_error` was called with."""
    try:
        name, text, more = values
        if name == _VERDICT:
            scope, *others = text
            return InaccessibleError.of(Verdict(Scope(scope), *others))
        if name == "OSError":
            return OSError(_whole(text), _text(more))
        if name == AppleDoubleError.__name__:
            return AppleDoubleError()
        kind = _PLACES.get(_text(name)) or getattr(errors, name, SourceError)
        if kind is MissingExtraError:
            # Its arguments are not its text.
            missing = MissingExtraError.__new__(MissingExtraError)
            AsyncMapsError.__init__(missing, _text(text))
            return missing
        if not (isinstance(kind, type) and issubclass(kind, AsyncMapsError)):
            kind = SourceError
        return kind(_text(text), may_pass=bool(more))
    except (TypeError, ValueError):
        return _unexpected(values)


def _header(shape: Any, dtype: Any, chunks: Any) -> ArrayHeader:
    found: np.dtype[Any] = np.dtype(_text(dtype))
    if found.hasobject:
        raise ValueError
    return ArrayHeader(tuple(map(_whole, shape)), found, tuple(map(_whole, chunks)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError
    return int(value)


def _unexpected(values: object) -> SourceError:
    return SourceError(
        f"the file cannot be listed: the process that decodes it answered {printable(f'{values!r:.80}')}"
    )
