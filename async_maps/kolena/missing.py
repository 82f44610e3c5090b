"""Explains why rows of results have no overlay, for the error of :func:`async_maps.kolena.results_frame`. Blocks."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from async_maps.keys import printable
from async_maps.manifest.schema import COLUMNS
from async_maps.plans.rows import open_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from os import PathLike

_LISTED = 5
_SAMPLED = 100
"""The maximum number of names whose differences are compared; the advice is checked with all names."""
_ALIKE = 10
"""The maximum number of sampled names that are equal without all traits, such as ``a/1`` and ``b/1``."""
_COMPARISONS = 10_000
"""The maximum number of comparisons of sampled names, for manifests in which most names are alike."""
_NAME, _STATUS, _STAGE, _ERROR = (COLUMNS.index(column) for column in ("name", "status", "stage", "error"))
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_FUNCTION = "pass a function as `on` that makes the manifest's name from a row"


class Column(NamedTuple):
    """The column of results with the names of the maps.

    Attributes:
        title: the title of the column.
        values: the value of each row.
        names: the name in each row, None if the row has no name.
    """

    title: str
    values: Sequence[Any]
    names: Sequence[str | None]


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


def describe_missing(
    layer: Layer, wanted: Collection[str], lacking: Collection[str], column: Column | None
) -> list[str]:
    """Return sentences about names without an overlay: which failed and why, and how the others differ.

    Args:
        layer: the layer.
        wanted: all names of the results.
        lacking: the names without an overlay.
        column: the column of the names; None if no code is to be recommended, as when a function makes the names.
    """
    missing = _Missing(wanted, lacking)
    with open_rows(layer.manifest) as opened:
        for row in opened.rows(failed=True):
            known = str(row[_NAME])
            name = layer.datapoint(known)
            if name is None:
                missing.others.add(known)
            else:
                missing.add(name, f"{row[_STAGE]}: {row[_ERROR]}" if row[_STATUS] == "failed" else None)
        traits = missing.traits()
        matches = _Matches((name for name in lacking if name not in missing.failed), traits)
        if traits:
            for row in opened.rows(failed=True):
                name = layer.datapoint(str(row[_NAME]))
                if name is not None:
                    matches.add(name)
    return [*missing.sentences(layer.suffix), *matches.sentences(wanted, column)]


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


class _Missing:
    """Compares names without an overlay with the names of the manifest."""

    def __init__(self, wanted: Collection[str], lacking: Collection[str]) -> None:
        self.failed: dict[str, str] = {}
        self.others = _First()
        self._wanted = wanted
        self._lacking = lacking
        self._unmatched = _First()
        self._differences: dict[str, tuple[int, ...]] = {}
        self._comparisons = 0
        self._alike: dict[str, list[str]] = {}
        for name in lacking:
            alike = self._alike.setdefault(_form(name, _ALL), [])
            if len(alike) < _ALIKE:
                alike.append(name)

    def add(self, known: str, failure: str | None) -> None:
        """Add a name of the manifest; ``failure`` is the reason if the map failed."""
        if known not in self._wanted:
            self._unmatched.add(known)
            self._compare(known)
        elif failure is not None and known in self._lacking:
            self.failed[known] = failure

    def _compare(self, known: str) -> None:
        for result in self._alike.get(_form(known, _ALL), ()):
            before = self._differences.get(result)
            if self._comparisons < _COMPARISONS and (before or len(self._differences) < _SAMPLED):
                self._comparisons += 1
                traits = _differing(result, known)
                if before is None or len(traits) < len(before):
                    self._differences[result] = traits

    def traits(self) -> tuple[int, ...]:
        """Return the traits in which most of the sampled names differ; empty if no names look alike."""
        kinds = Counter(traits for name, traits in self._differences.items() if name not in self.failed)
        return kinds.most_common(1)[0][0] if kinds else ()

    def sentences(self, suffix: str) -> Iterator[str]:
        """Yield the sentences."""
        if self.failed:
            reasons = [f"{printable(name)!r} ({reason})" for name, reason in islice(self.failed.items(), _LISTED)]
            more = ", ..." if len(self.failed) > _LISTED else ""
            maps, them = ("map", "it") if len(self.failed) == 1 else ("maps", "them")
            again = f"run {them} again with select='failed' (in the command: --retry-failed)"
            yield f"{len(self.failed):,} {maps} failed: {', '.join(reasons)}{more}; {again}"
        if len(self.failed) == len(self._lacking):
            return
        if self._unmatched.count:
            yield f"the manifest has other names: {self._unmatched}"
        elif self.others.count:
            yield f"no name in the manifest ends in {suffix!r}; it has {self.others}"


class _Matches:
    """Matches names of the results with all names of the manifest that are equal without some traits.

    The memory is that of the results' names; two names of the manifest are kept for each.
    """

    def __init__(self, lacking: Iterable[str], traits: tuple[int, ...]) -> None:
        self._traits = traits
        self._forms = {name: _form(name, traits) for name in lacking}
        self._known: dict[str, list[str]] = {form: [] for form in self._forms.values()}

    def add(self, known: str) -> None:
        """Add a name of the manifest."""
        kept = self._known.get(_form(known, self._traits))
        # A manifest can have a name twice: the second map with it was refused.
        if kept is not None and len(kept) < 2 and known not in kept:
            kept.append(known)

    def sentences(self, wanted: Collection[str], column: Column | None) -> Iterator[str]:
        """Yield how the names differ, and code that makes the manifest's names if each name has exactly one match."""
        single: dict[str, str] = {}
        absent, ambiguous = _First(), _First()
        # A name of the results that is in the manifest has that map for itself.
        owners: dict[str, str] = {}
        shared: tuple[str, str, str] | None = None
        for name, form in self._forms.items():
            known = self._known[form]
            if len(known) == 1:
                single[name] = known[0]
                owner = known[0] if known[0] in wanted else owners.setdefault(known[0], name)
                if owner != name:
                    shared = shared or (owner, name, known[0])
            else:
                (ambiguous if known else absent).add(name)

        if single:
            clear = not (absent.count or ambiguous.count or shared)
            yield self._difference(*next(iter(single.items())), _expression(single, column) if clear else None)
        if ambiguous.count:
            name = ambiguous.names[0]
            one, other = self._known[self._forms[name]]
            names = "1 name is" if ambiguous.count == 1 else f"{ambiguous.count:,} names are"
            yield f"{names} ambiguous: {name!a} looks like both {one!a} and {other!a} in the manifest; {_FUNCTION}"
        if shared:
            one, other, known_name = shared
            yield f"{one!a} and {other!a} in the results both look like {known_name!a} in the manifest: {_FUNCTION}"
        if absent.count:
            names = "1 name is" if absent.count == 1 else f"{absent.count:,} names are"
            examples = f" ({absent})" if single or ambiguous.count else ""
            yield f"{names} not in the manifest{examples}: run async-maps on the maps"

    def _difference(self, result: str, known: str, expression: str | None) -> str:
        # Of the traits, the first pair can differ in fewer than most do.
        differences = " and ".join(_describe(_TRAITS[trait], result, known) for trait in _differing(result, known))
        advice = f"pass on=lambda row: {expression}" if expression else _FUNCTION
        # ASCII, because two Unicode forms of an accent look the same.
        return f"{result!a} in the results looks like {known!a} in the manifest, except {differences}: {advice}"


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


def _describe(trait: _Trait, result: str, known: str) -> str:
    if trait.of is None:
        return trait.title
    ours, theirs = (trait.of(name) for name in (result, known))
    return (
        f"{trait.title} ({repr(ours) if ours else 'none'} in the results, {repr(theirs) if theirs else 'none'} there)"
    )


# Code that makes the names -------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """A part of the recommended code: its text, with ``{}`` for the text before it, and its function."""

    text: str
    apply: Callable[[Any], Any]


_BASES = (
    _Step("{}", lambda value: value),
    _Step("str({})", str),
    _Step("str(int({}))", lambda value: str(int(value))),
)
_STEPS = (
    _Step("{}.rsplit('.', 1)[0]", lambda name: name.rsplit(".", 1)[0]),
    _Step("{}.rsplit('/', 1)[-1]", lambda name: name.rsplit("/", 1)[-1]),
    _Step("{}.lower()", lambda name: name.lower()),
)
_GUARDS = (
    _Step("", lambda _: True),
    _Step("isinstance({}, str)", lambda value: isinstance(value, str)),
    _Step("str({}).isdigit()", lambda value: str(value).isdigit()),
    _Step("isinstance({}, float)", lambda value: isinstance(value, float)),
    _Step("{} >= 0", lambda value: value >= 0),  # NaN is not
    _Step("{} is not None", lambda value: value is not None),
)
_CHAINS = [steps for count in range(len(_STEPS) + 1) for steps in combinations(_STEPS, count)]


def _expression(renamed: dict[str, str], column: Column | None) -> str | None:
    """Return Python code that makes the right name from the value of each row; None if there is no simple code.

    Args:
        renamed: the manifest's names for the names that differ; the code must keep all other names.
        column: the column of the names.
    """
    if column is None:
        return None
    cells = [(value, name and renamed.get(name, name)) for value, name in zip(column.values, column.names, strict=True)]
    example, known = next((value, renamed[name]) for value, name in zip(*column[1:], strict=True) if name in renamed)
    cell = f"row[{column.title!r}]"
    for guard, chain, base in product(_GUARDS, _CHAINS, _BASES):
        steps = (base, *chain)
        made = _made(example, steps)
        if not made or not known.endswith(made):
            continue
        prefix = known.removesuffix(made)
        if all(_makes(name, value, guard, prefix, steps) for value, name in cells):
            code = cell
            for step in steps:
                code = step.text.format(code)
            code = f"{prefix!r} + {code}" if prefix else code
            return f"{code} if {guard.text.format(cell)} else None" if guard.text else code
    return None


def _made(value: Any, steps: Iterable[_Step]) -> str:
    """Return the name that the steps make of a value; empty if they fail or do not make text."""
    try:
        for step in steps:
            value = step.apply(value)
    except (AttributeError, TypeError, ValueError, ArithmeticError):
        return ""
    return value if isinstance(value, str) else ""


def _makes(name: str | None, value: Any, guard: _Step, prefix: str, steps: Iterable[_Step]) -> bool:
    """Return whether the code makes the name of a value; a value that the guard rejects has no name."""
    try:
        accepted = bool(guard.apply(value))
    except (TypeError, ValueError):
        return False
    made = _made(value, steps) if accepted else ""
    return prefix + made == name if made else name is None and not accepted
