"""Descriptions of pickles."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from typing import Any

import pytest

from async_maps.errors import SourceError
from async_maps.sources.formats.pickles import Data, Described, Name, Reference, Text, describe

pytestmark = pytest.mark.fast

VALUE: dict[Any, Any] = {
    "numbers": [0, -1, 300, 70_000, 2**70, 2.5, None, True, False],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    5: {"é" * 300: "a\nb", "empty": [{}, [], ""]},
}


def rebuilt(value: Any) -> Any:
    """Return the dicts, lists and tuples of a description."""
    match value:
        case Described(function="dict"):
            return {rebuilt(key): rebuilt(item) for key, item in value.items}
        case Described(function="list"):
            return [rebuilt(item) for item in value.elements]
        case tuple():
            return tuple(rebuilt(item) for item in value)
    return str(value) if isinstance(value, Text) else value


def described(content: bytes) -> Any:
    return describe(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_description_has_all_values_of_a_pickle(protocol: int) -> None:
    assert rebuilt(described(pickle.dumps(VALUE, protocol))) == VALUE


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_dict_of_another_class_has_its_items(protocol: int) -> None:
    ordered, default = described(pickle.dumps([OrderedDict(a=1), defaultdict(list, b=[2])], protocol)).elements
    assert (ordered.function, default.function) == ("collections.OrderedDict", "collections.defaultdict")
    if protocol > 1:  # before, the items are arguments
        assert rebuilt(ordered.get("a")) == 1
    assert rebuilt(default.get("b")) == [2]


class Thing:
    """An object with a state."""

    def __init__(self) -> None:
        self.size = 3


class Keywords(Thing):
    """An object that is made with keywords."""

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, int]]:
        return (1,), {"more": 2}

    def __new__(cls, first: int = 0, more: int = 0) -> Keywords:
        return super().__new__(cls)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [Thing, Keywords])
def test_an_object_is_described_and_not_built(
    protocol: int, kind: type[Thing], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(kind(), protocol)
    monkeypatch.delattr(f"{__name__}.{kind.__name__}")
    found = described(content)
    assert isinstance(found, Described)
    assert rebuilt(found.state) == {"size": 3}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("size", [3, 70_000])
def test_bytes_are_described_by_their_place(protocol: int, size: int) -> None:
    content = pickle.dumps({"a": b"x" * size, "b": "x" * size}, protocol)
    found = described(content)
    data, text = found.get("a"), found.get("b")
    assert isinstance(data, Data)
    assert content[data.start : data.start + data.size] == b"x" * size
    assert isinstance(text, Text)
    assert content[text.start : text.start + len(text)] == b"x" * size


def test_rare_operations_are_described() -> None:
    assert rebuilt(described(b"(K\x01K\x02l.")) == [1, 2]
    assert rebuilt(described(b"(K\x01K\x02d.")) == {1: 2}
    assert described(b"(ios\nsystem\n.").function == "os.system"
    assert described(b"(cos\nsystem\nK\x01o.").function == "os.system"
    assert described(b"\x82\x01.") == Name("extension 1")
    assert described(b"(K\x01K\x02\x91.").elements == [1, 2]
    assert described(b"K\x01(K\x021.") == 1
    assert described(b"cos\nsystem\n)R)R.").function == "an unknown class"


def test_references_are_collected() -> None:
    references: list[Reference] = []
    assert describe(io.BytesIO(b"PX\n0K\x07Q."), references) == Reference(7)
    assert references == [Reference("X"), Reference(7)]


def test_the_file_is_left_behind_the_pickle() -> None:
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]))
    assert describe(file) == 1
    assert rebuilt(describe(file)) == [2]


def test_a_pickle_above_the_limit_is_refused() -> None:
    with pytest.raises(SourceError, match="too large"):
        describe(io.BytesIO(pickle.dumps("a" * 1000)), limit=100)


def test_a_pickle_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.sources.formats.pickles._MAX_OPERATIONS", 1000)
    with pytest.raises(SourceError, match="too many values"):
        describe(io.BytesIO(b"(" + b"}" * 1000 + b"t."))
