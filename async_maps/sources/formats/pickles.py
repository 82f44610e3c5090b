"""The description of a pickle's values. Nothing is imported, called or built: the pickle is read as text would be.

Unpicklers run the calls in a pickle. Here a call becomes a :class:`Described`, with the name of its function as text.
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO

MAX_PICKLE = 64 * 2**20
"""In bytes. The pickle of 100,000 tensors has 9 MB; their values are outside of it."""
_MAX_OPERATIONS = 4_000_000
"""A tensor needs about 30. An operation can be one byte of the pickle, and take about 100 bytes of memory."""


_MAX_NAME = 4096
"""In characters. A pickle can join two long texts to a name any number of times."""
_MAX_LOOKED = 1000
"""The number of items in which a key is looked up: a pickle can refer to a long dict any number of times."""


class Name(NamedTuple):
    """The name of a function or a class, such as ``torch._utils._rebuild_tensor_v2``."""

    text: str


class Text(str):
    """A string, with its position in the pickle: ``start`` is the offset of its first byte."""

    __slots__ = ("start",)
    start: int


class Data(NamedTuple):
    """Bytes in the pickle, from offset ``start``."""

    start: int
    size: int


class Reference(NamedTuple):
    """A value outside of the pickle, by its identifier."""

    identifier: Any


_EMPTY: list[Any] = []
"""Shared by many, so nothing is added to it."""


class Described:
    """A dict, a list, or the result of a call.

    Attributes:
        function: the name of the function or class; ``dict``, ``list`` or ``set``.
        arguments: the arguments of the call.
        elements: what is appended to it.
        items: the keys and values that are set in it, in their order. There is no dict, because hashing a nested tuple
            can take any time.
        state: its attributes, as its class would restore them; else None.
    """

    __slots__ = ("arguments", "elements", "function", "items", "state")

    def __init__(self, function: str, arguments: Any = ()) -> None:
        self.function = function
        self.arguments = arguments
        # Most of these are calls without any; two lists would double their size.
        self.elements: list[Any] = _EMPTY
        self.items: list[tuple[Any, Any]] = _EMPTY
        self.state: Any = None

    def extend(self, elements: Iterable[Any]) -> None:
        """Append elements."""
        self.elements = self.elements or []
        self.elements += elements

    def update(self, keys_and_values: list[Any]) -> None:
        """Set items from a list of key, value, key, value, ..."""
        self.items = self.items or []
        self.items += list(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))

    def get(self, key: str) -> Any:
        """Return the last value that is set for a key; None if there is none among the last 1,000 items."""
        items = reversed(self.items[-_MAX_LOOKED:])
        return next((value for name, value in items if isinstance(name, str) and name == key), None)


def describe(file: IO[bytes], references: list[Reference] | None = None, limit: int = MAX_PICKLE) -> Any:
    """Describe the pickle at the position of a file, and leave the file behind it.

    All references in it are appended to ``references``.

    Returns:
        None, numbers, bool, :class:`Text`, :class:`Data`, tuples, :class:`Name`, :class:`Reference` and
        :class:`Described`, in each other.

    Raises:
        SourceError: the pickle has more than ``limit`` bytes or too many values.
        Exception: any other error means that the pickle is damaged.
    """
    return _Interpreter(references if references is not None else []).run(pickletools.genops(_Limited(file, limit)))  # type: ignore[arg-type]  # its stub wants more


class _Limited:
    """A file that refuses to read more than ``left`` bytes: a pickle can claim a string of any length."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file = file
        self._left = left
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._spend(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._spend(len(line))
        return line

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise SourceError("its pickle is too large: save the arrays as one stack, or in several files")


class _Interpreter:
    """The stack machine of pickles, see the module pickletools."""

    def __init__(self, references: list[Reference]) -> None:
        self._references = references
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for count, (operation, argument, position) in enumerate(operations):
            if count > _MAX_OPERATIONS:
                raise SourceError("its pickle has too many values: save the arrays as one stack, or in several files")
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            elif isinstance(argument, str):
                text = Text(argument)
                text.start = (position or 0) + _LENGTHS[name] if name in _LENGTHS else -1
                self._stack.append(text)
            elif isinstance(argument, bytes | bytearray):
                self._stack.append(Data((position or 0) + _LENGTHS[name], len(argument)))
            elif isinstance(argument, int | float):
                self._stack.append(argument)
            else:
                raise ValueError(f"the operation {name}")
        raise EOFError

    def _ignore(self, _: Any) -> None:
        pass

    def _none(self, _: Any) -> None:
        self._stack.append(None)

    def _true(self, _: Any) -> None:
        self._stack.append(True)

    def _false(self, _: Any) -> None:
        self._stack.append(False)

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self, _: Any = None) -> list[Any]:
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, _: Any) -> None:
        values = tuple(self._pop_mark())
        self._stack.append(values)

    def _short_tuple(self, length: int) -> None:
        values = self._stack[-length:]
        if len(values) < length:
            raise IndexError("a tuple of too few values")
        self._stack[-length:] = [tuple(values)]

    def _list(self, _: Any) -> None:
        made = Described("list")
        made.elements = self._pop_mark()
        self._stack.append(made)

    def _dict(self, _: Any) -> None:
        made = Described("dict")
        made.update(self._pop_mark())
        self._stack.append(made)

    def _frozen_set(self, _: Any) -> None:
        made = Described("set")
        made.elements = self._pop_mark()
        self._stack.append(made)

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._made().extend([value])

    def _extend(self, _: Any) -> None:
        values = self._pop_mark()
        self._made().extend(values)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._made().update([key, value])

    def _set_items(self, _: Any) -> None:
        values = self._pop_mark()
        self._made().update(values)

    def _made(self) -> Described:
        made = self._stack[-1]
        if not isinstance(made, Described):
            raise TypeError("an operation on a value that cannot be changed")
        return made

    def _global(self, argument: str) -> None:
        self._stack.append(Name(argument.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is no text")
        if len(module) + len(name) > _MAX_NAME:
            raise ValueError("a name that is too long")
        self._stack.append(Name(f"{module}.{name}"))

    def _extension(self, code: int) -> None:
        self._stack.append(Name(f"extension {code}"))

    def _reference(self, _: Any) -> None:
        self._refer(self._stack.pop())

    def _refer(self, identifier: Any) -> None:
        self._stack.append(Reference(identifier))
        self._references.append(self._stack[-1])

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(Described(_name(function), arguments))

    def _call_with_keywords(self, _: Any) -> None:
        _keywords, arguments, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Described(_name(function), arguments))

    def _instance(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._stack.append(Described(argument.replace(" ", ".", 1), arguments))

    def _object(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self._stack.append(Described(_name(function), tuple(arguments)))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        self._made().state = state


def _name(function: Any) -> str:
    """Return the name of what is called; that of a result of another call is not known."""
    return function.text if isinstance(function, Name) else "an unknown class"


_LENGTHS = {
    "BINUNICODE": 5, "SHORT_BINUNICODE": 2, "BINUNICODE8": 9, "BINBYTES": 5, "SHORT_BINBYTES": 2, "BINBYTES8": 9,
    "BYTEARRAY8": 9,
}  # fmt: skip
"""The bytes of the code and the length before a string in UTF-8 or bytes."""

_OPERATIONS: dict[str, Callable[[_Interpreter, Any], Any]] = {
    "PROTO": _Interpreter._ignore,
    "FRAME": _Interpreter._ignore,
    "NONE": _Interpreter._none,
    "NEWTRUE": _Interpreter._true,
    "NEWFALSE": _Interpreter._false,
    "MARK": _Interpreter._mark,
    "POP_MARK": _Interpreter._pop_mark,
    "POP": _Interpreter._pop,
    "DUP": _Interpreter._dup,
    "PUT": _Interpreter._put,
    "BINPUT": _Interpreter._put,
    "LONG_BINPUT": _Interpreter._put,
    "MEMOIZE": _Interpreter._memoize,
    "GET": _Interpreter._get,
    "BINGET": _Interpreter._get,
    "LONG_BINGET": _Interpreter._get,
    "TUPLE": _Interpreter._tuple,
    "EMPTY_TUPLE": lambda self, _: self._stack.append(()),
    "TUPLE1": lambda self, _: self._short_tuple(1),
    "TUPLE2": lambda self, _: self._short_tuple(2),
    "TUPLE3": lambda self, _: self._short_tuple(3),
    "LIST": _Interpreter._list,
    "EMPTY_LIST": lambda self, _: self._stack.append(Described("list")),
    "DICT": _Interpreter._dict,
    "EMPTY_DICT": lambda self, _: self._stack.append(Described("dict")),
    "EMPTY_SET": lambda self, _: self._stack.append(Described("set")),
    "FROZENSET": _Interpreter._frozen_set,
    "APPEND": _Interpreter._append,
    "APPENDS": _Interpreter._extend,
    "ADDITEMS": _Interpreter._extend,
    "SETITEM": _Interpreter._set_item,
    "SETITEMS": _Interpreter._set_items,
    "GLOBAL": _Interpreter._global,
    "STACK_GLOBAL": _Interpreter._stack_global,
    "EXT1": _Interpreter._extension,
    "EXT2": _Interpreter._extension,
    "EXT4": _Interpreter._extension,
    "BINPERSID": _Interpreter._reference,
    "PERSID": _Interpreter._refer,
    "REDUCE": _Interpreter._call,
    "NEWOBJ": _Interpreter._call,
    "NEWOBJ_EX": _Interpreter._call_with_keywords,
    "INST": _Interpreter._instance,
    "OBJ": _Interpreter._object,
    "BUILD": _Interpreter._build,
}
"""All operations that do not just push their argument."""
