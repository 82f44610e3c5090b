"""Answers in XML as elements."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Element:
    """An element: its name, attributes, text, and the elements in it."""

    __slots__ = ("attributes", "elements", "name", "text")

    def __init__(self, name: str, attributes: Mapping[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.text = ""
        self.elements: list[Element] = []

    def children(self, name: str) -> Iterator[Element]:
        """Iterate over the elements in it with this name."""
        return (element for element in self.elements if element.name == name)

    def child(self, name: str) -> Element:
        """Return the first element in it with this name; raise LookupError if there is none."""
        found = next(self.children(name), None)
        if found is None:
            raise LookupError(f"the answer has no {name} in {self.name}")
        return found

    def text_of(self, name: str) -> str:
        """Return the text of the first element with this name; empty if there is none."""
        found = next(self.children(name), None)
        return "" if found is None else found.text


def parse_xml(body: bytes) -> Element:
    """Return the outermost element; raise ValueError if this is no XML, or has a document type."""
    root = Element("", {})
    open_: list[Element] = [root]
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        element = Element(name, attributes)
        open_[-1].elements.append(element)
        open_.append(element)

    def text(found: str) -> None:
        open_[-1].text += found

    def refuse(*_: object) -> None:
        # It may define names that grow without bounds.
        raise ValueError("the answer has a document type")

    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: open_.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(body.removeprefix(b"\xef\xbb\xbf"), True)
    except expat.ExpatError as error:
        raise ValueError(f"the answer is no XML: {error}") from error
    return root.elements[0]
