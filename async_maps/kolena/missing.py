"""Explains why rows of results have no overlay, for the error of :func:`async_maps.kolena.results_frame`. Blocks."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import combinations, islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from async_maps.keys import printable
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from os import PathLike

_LISTED = 5
_COMPARED = 100
"""The maximum number of pairs of names to compare."""
_NAME, _STATUS, _STAGE, _ERROR = (COLUMNS.index(column) for column in ("name", "status", "stage", "error"))
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")


class Layer(Protocol):
    """One layer of maps in a manifest.

    Attributes:
        manifest: the path of the manifest.
        suffix: the end of the layer's names in the manifest; empty for all names.
    """

    @property
    def manifest(self) -> str | PathLike[str]: ...  # noqa: D102  # above

    @property
    def suffix(self) -> str: ...  # noqa: D102  # above

    def datapoint(self, name: str) -> str | None:
        """Return the name in the results for a name in the manifest; None if it belongs to another layer."""


def describe_missing(layer: Layer, wanted: Collection[str], lacking: Collection[str], on: str | None) -> list[str]:
    """Return sentences about names without an overlay: which failed and why, and how the others differ.

    Args:
        layer: the layer.
        wanted: all names of the results.
        lacking: the names without an overlay.
        on: the column of the names; None if a function makes them.
    """
    compared = _Compared(lacking)
    with Manifest(layer.manifest, read_only=True) as opened:
        for row in opened.rows(failed=True):
            known = str(row[_NAME])
            name = layer.datapoint(known)
            if name is None:
                compared.others.add(known)
            elif row[_STATUS] == "failed" and name in lacking:
                compared.failed[name] = f"{row[_STAGE]}: {row[_ERROR]}"
            elif name not in wanted:
                compared.add(name)
    # The advice must not change names that match already.
    matched = list(islice((name for name in wanted if name not in lacking), _COMPARED))
    return list(compared.sentences(layer.suffix, on, matched))


class _First:
    """Counts names, and keeps the first."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _LISTED:
            self.names.append(name)

    def __str__(self) -> str:
        return listed(self.names, self.count)


def listed(names: Iterable[str], count: int) -> str:
    """List the first names, quoted, with dots if there are more."""
    shown = [repr(printable(name)) for name in islice(names, _LISTED)]
    return ", ".join([*shown, *(["..."] if count > len(shown) else [])])


class _Compared:
    """Compares names of the results without an overlay with names of the manifest that no row has."""

    def __init__(self, lacking: Collection[str]) -> None:
        self.failed: dict[str, str] = {}
        self.others = _First()
        self._lacking = lacking
        self._unmatched = _First()
        self._forms = {_form(name, _ALL): name for name in lacking}
        self._pairs: list[tuple[str, str]] = []

    def add(self, known: str) -> None:
        """Add a name of the manifest that no row has."""
        self._unmatched.add(known)
        if len(self._pairs) < _COMPARED and (result := self._forms.get(_form(known, _ALL))) is not None:
            self._pairs.append((result, known))

    def sentences(self, suffix: str, on: str | None, matched: list[str]) -> Iterator[str]:
        """Yield the sentences."""
        if self.failed:
            reasons = [f"{printable(name)!r} ({reason})" for name, reason in islice(self.failed.items(), _LISTED)]
            more = ", ..." if len(self.failed) > _LISTED else ""
            again = "run them again (--retry-failed, select='failed')"
            yield f"{len(self.failed):,} failed: {', '.join(reasons)}{more}; {again}"
        unknown = len(self._lacking) - len(self.failed)
        if not unknown:
            return
        if self._unmatched.count:
            yield f"the manifest has other names: {self._unmatched}"
        elif self.others.count:
            yield f"no name in the manifest ends in {suffix!r}; it has {self.others}"
        if self._pairs:
            yield _difference(self._pairs, on, matched)
        else:
            names = "1 name is" if unknown == 1 else f"{unknown:,} names are"
            yield f"{names} not in the manifest: run async-maps on the maps"


# How two names differ ------------------------------------------------------------------------------------------------


class _Trait(NamedTuple):
    """A part in which two names can differ: its title, a function that removes it, and one that returns it."""

    title: str
    without: Callable[[str], str]
    of: Callable[[str], str] | None = None


_TRAITS = (
    _Trait("the extension", lambda name: _EXTENSION.sub("", name), lambda name: "".join(_EXTENSION.findall(name))),
    _Trait("the folder", lambda name: name.rpartition("/")[2], lambda name: "".join(name.rpartition("/")[:2])),
    _Trait("upper and lower case", str.casefold),
    _Trait("the Unicode form of their accents", lambda name: unicodedata.normalize("NFC", name)),
    _Trait("the slashes", lambda name: name.replace("\\", "/").strip("/")),
)
_ALL = tuple(range(len(_TRAITS)))


def _form(name: str, traits: tuple[int, ...]) -> str:
    """Return a name without some traits; slashes are first, because folders end in them."""
    for trait in reversed(traits):
        name = _TRAITS[trait].without(name)
    return name


def _differing(result: str, known: str) -> tuple[int, ...]:
    """Return the fewest traits without which two names are equal."""
    for count in range(1, len(_TRAITS)):
        for traits in combinations(_ALL, count):
            if _form(result, traits) == _form(known, traits):
                return traits
    return _ALL


def _difference(pairs: list[tuple[str, str]], on: str | None, matched: list[str]) -> str:
    kinds = [_differing(*pair) for pair in pairs]
    ((traits, _),) = Counter(kinds).most_common(1)
    alike = [pair for pair, kind in zip(pairs, kinds, strict=True) if kind == traits]
    result, known = alike[0]
    differences = " and ".join(_describe(_TRAITS[trait], result, known) for trait in traits)
    advice = "pass a function as `on` that makes the manifest's name from a row"
    if on is not None and (expression := _expression([*alike, *zip(matched, matched, strict=True)], on)) is not None:
        advice = f"pass on=lambda row: {expression}"
    # ASCII, because two Unicode forms of an accent look the same.
    return f"{result!a} in the results looks like {known!a} in the manifest, except {differences}: {advice}"


def _describe(trait: _Trait, result: str, known: str) -> str:
    if trait.of is None:
        return trait.title
    ours, theirs = (trait.of(name) for name in (result, known))
    return (
        f"{trait.title} ({repr(ours) if ours else 'none'} in the results, {repr(theirs) if theirs else 'none'} there)"
    )


def _expression(pairs: list[tuple[str, str]], on: str) -> str | None:
    """Return Python code that makes the manifest's names in all pairs; None if there is no simple one."""
    folder = "".join(pairs[0][1].rpartition("/")[:2])
    row = f"row[{on!r}]"
    if any(result.isdigit() for result, _ in pairs):
        row = f"str({row})"
    cut = (lambda name: name.rsplit(".", 1)[0]), ".rsplit('.', 1)[0]"
    last = (lambda name: name.rsplit("/", 1)[-1]), ".rsplit('/', 1)[-1]"
    lower = str.lower, ".lower()"
    steps = (cut, last, lower)
    for count in range(len(steps) + 1):
        for chosen in combinations(steps, count):
            code = row + "".join(text for _, text in chosen)
            for prefix in dict.fromkeys(("", folder)):
                if all(_applied(result, chosen, prefix) == known for result, known in pairs):
                    return f"{prefix!r} + {code}" if prefix else code
    return None


def _applied(name: str, steps: Iterable[tuple[Callable[[str], str], str]], prefix: str) -> str:
    for step, _ in steps:
        name = step(name)
    return prefix + name
