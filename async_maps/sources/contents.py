"""The maps in an open file: from the arrays that its reader lists."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import SourceError
from async_maps.filesystems.spill import Spill
from async_maps.keys import printable
from async_maps.sources.formats.registry import NO_NAME, SAME_NAME, ListedArray, PassedOver, shown_suffix
from async_maps.sources.formats.stacks import not_a_map, plane_of, position_names, read_names, shape_at, stack_length
from async_maps.sources.layouts import question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

    from numpy.typing import NDArray

    from async_maps.render.channels import Channels
    from async_maps.sources.activation_map import ArrayHeader, Part
    from async_maps.sources.formats.registry import Reader
    from async_maps.sources.layouts import Question
    from async_maps.sources.options import SourceOptions

NO_ROWS = "tables without rows"
_BATCH_NAMES = 256
_SCHEMA = "CREATE TABLE names (name BLOB PRIMARY KEY, count INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID"
_COUNT = "INSERT INTO names (name) VALUES (?) ON CONFLICT (name) DO UPDATE SET count = count + 1"


class ListedMap(NamedTuple):
    """A map in a file, listed but not read.

    Attributes:
        name: appended to the name of the file; None if the file is the map.
        part: the position in the file: that of the array, and the index in a stack; None if the file is the map.
        max_bytes: the maximum number of bytes as an array in its own dtype.
        header: as in :class:`~async_maps.sources.activation_map.ActivationMap`.
        problem: as in :class:`~async_maps.sources.activation_map.ActivationMap`.
        refusal: the reason why it is not a map of its name; else empty.
        picture: as in :class:`~async_maps.sources.formats.registry.ListedArray`.
        question: what the array probably is instead; None if nothing suggests that.
        array: the map, if the listing has read it.
    """

    name: str | None
    part: Part
    max_bytes: int
    header: ArrayHeader | None = None
    problem: str = ""
    refusal: str = ""
    picture: str = ""
    question: Question | None = None
    array: NDArray[Any] | None = None


def maps_in_reader(
    reader: Reader,
    options: SourceOptions,
    pass_over: Callable[[str], object],
    open_names: Callable[[], BinaryIO | None] = lambda: None,
    is_named: Callable[[str], bool] = lambda _: False,
) -> Iterator[ListedMap]:
    """Yield the maps in a file.

    The only array of a file, and the only map of a stack, are not named; other arrays have the name of their place in
    the file, and the maps of a stack their own below it.

    Args:
        reader: the open file.
        options: which parts of it are maps.
        pass_over: called with a text for each array that is no map.
        open_names: opens the list of names beside the file, which names the maps of its only stack.
        is_named: whether ``include`` names a picture in an archive, by its path there.

    Raises:
        SourceError: as a :class:`Reader`; or there are several columns and none is chosen, or a list of names is
            damaged.
        OSError: the file cannot be read.
    """
    arrays = _chosen(_arrays(reader.arrays(), pass_over, is_named), options.column)
    for array, is_only in _with_only(arrays):
        name = None if is_only else array.name
        length = array.rows
        if length is None and array.header is not None and not array.refusal:
            length = stack_length(array.header.shape, options.channels)
        if length == 0:
            pass_over(NO_ROWS)
            continue
        found = _first_map(array, length, options.channels)
        if not is_only:
            found = found._replace(question=found.question and found.question._replace(array=printable(array.name)))
        if length is None:
            yield found._replace(name=name, part=None if array.part is None else [array.part, None])
            continue
        size, header, problem, asked = found.max_bytes, found.header, found.problem, found.question
        names = _names(reader, array, length, open_names if is_only else lambda: None)
        for index, (own, refusal) in islice(enumerate(names), *options.span):
            if own is not None and own != f"{index:06}":
                # What has names of its own is a map, not a channel.
                asked = None
            full_name = f"{name}/{own}" if name and own else own or name
            part = [array.part, index]
            yield ListedMap(full_name, part, size, header, problem, refusal or array.refusal, array.picture, asked)


def _arrays(
    listed: Iterator[ListedArray | PassedOver], pass_over: Callable[[str], object], is_named: Callable[[str], bool]
) -> Iterator[ListedArray]:
    for found in listed:
        if isinstance(found, PassedOver):
            pass_over(found.what)
        elif found.header is not None and found.rows is None and (what := not_a_map(*found.header[:2])):
            pass_over(what)
        elif found.look is not None and is_named(found.picture):
            yield from _arrays(found.look(), pass_over, is_named)
        elif found.look is not None:
            pass_over(shown_suffix(found.picture))
        else:
            yield found


def _with_only(arrays: Iterator[ListedArray]) -> Iterator[tuple[ListedArray, bool]]:
    """Yield each array, and whether it is the only one; the first is not lost if the second cannot be listed."""
    first = next(arrays, None)
    if first is None:
        return
    try:
        second = next(arrays, None)
    except (SourceError, OSError):
        yield first, False
        raise
    yield first, second is None
    if second is not None:
        yield from ((array, False) for array in chain([second], arrays))


def _chosen(arrays: Iterator[ListedArray], column: str | None) -> Iterator[ListedArray]:
    """Yield the arrays of a file, but of the columns of a table only the chosen one."""
    for array in arrays:
        if array.rows is None:
            yield array
            continue
        columns = [array, *(other for other in arrays if other.rows is not None)]
        names = [other.name for other in columns]
        if column is None and len(columns) > 1:
            raise SourceError(f"several columns hold arrays: {', '.join(names)}; choose one with --column {names[0]}")
        if column is not None and column not in names:
            raise SourceError(f"no column {column!r} holds arrays; those that do: {', '.join(names)}")
        yield columns[0 if column is None else names.index(column)]


def _first_map(array: ListedArray, length: int | None, channels: Channels) -> ListedMap:
    """Return the first map of a stack, or the only one of an array, without its name and part."""
    header, size, problem, asked = array.header, array.size, array.problem, None
    if header is not None and array.rows is None:
        asked = question(header.shape, header.dtype, channels, is_last_first=array.is_last_first)
        if length is not None:
            header = header._replace(shape=plane_of(shape_at("the stack", header.shape, 0), channels))
    if length is not None:
        size, problem = size // length, problem or array.stack_problem
    return ListedMap(None, None, size, header, problem, array.refusal, array.picture, asked)


def _names(
    reader: Reader, array: ListedArray, length: int, open_names: Callable[[], BinaryIO | None]
) -> Iterator[tuple[str | None, str]]:
    """Yield the name of each map of a stack, and why it is refused, if it has none or that of another map.

    The only map of a stack without a list of names has the name of the stack.
    """

    def read() -> Iterator[str]:
        file = open_names()
        if file is not None:
            with file:
                yield from read_names(file, length)
        else:
            yield from reader.names(array, length) or ()

    names = read()
    first = next(names, None)
    if first is None:
        yield from ((None if length == 1 else name, "") for name in position_names(length))
        return
    repeated = _repeated(chain([first], names), length)
    for name in read():
        yield name or None, "" if name and _bytes(name) not in repeated else SAME_NAME if name else NO_NAME


def _repeated(names: Iterator[str], length: int) -> set[bytes]:
    """Return the names that are repeated, after all were read: so the list is checked before a name is used."""
    with Spill("the names in a stack", _SCHEMA, SourceError) as spill, spill.transaction() as database:
        count = 0
        while batch := [(_bytes(name),) for name in islice(names, _BATCH_NAMES)]:
            count += len(batch)
            database.executemany(_COUNT, batch)
        if count != length:
            raise SourceError(f"the stack has {length:,} maps, but {count:,} names")
        return {name for (name,) in database.execute("SELECT name FROM names WHERE count > 1")}


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
