"""A listing is compared with the rows of overlapping parts, of which only a few are in memory."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from async_maps.filesystems.objects import ObjectInfo
from async_maps.verify.comparison import Comparison, Expected
from async_maps.verify.merge import Merge, Span, most_rows, utf8

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.fast

FOLDER = "s3://b/out"


def row(key: str, etag: str = "e") -> Expected:
    return Expected(f"{FOLDER}/{key}.png", key, 10, etag)


def listed(keys: Iterable[str]) -> list[ObjectInfo]:
    found = [ObjectInfo(f"{FOLDER}/{key}.png", 10, "e", 1.0) for key in keys]
    return sorted(found, key=lambda object_: utf8(object_.locator))


def spans_of(parts: dict[int, list[Expected]]) -> list[Span]:
    keys = {part: sorted(utf8(row.locator) for row in rows) for part, rows in parts.items()}
    return [Span(keys[part][0], keys[part][-1], part, len(rows)) for part, rows in parts.items()]


def merged(
    parts: dict[int, list[Expected]], found: list[ObjectInfo], batch: int = 3
) -> tuple[Merge, set[str], set[str]]:
    """Compare; return the merge, the differences by kind and name, and the foreign keys."""
    with Comparison() as comparison:
        merge = Merge(spans_of(parts), lambda part: parts[part], comparison)
        for start in range(0, len(found), batch):
            merge.take(found[start : start + batch])
        merge.end()
        comparison.compare()
        differences = {f"{difference.kind} {difference.name}" for difference in comparison.differences()}
        return merge, differences, {locator for locator, *_ in comparison.foreign("")}


def test_names_of_overlapping_parts_are_found_in_the_order_of_keys() -> None:
    # The order of the names is a, a/b, a-b, a.b; that of the keys is a-b.png, a.b.png, a.png, a/b.png.
    parts = {1: [row("a"), row("a/b")], 2: [row("a-b")], 3: [row("a.b")], 4: [row("b"), row("é")]}
    merge, differences, foreign = merged(parts, listed(["a", "a-b", "a.b", "a/b", "b", "é", "a.c", "zz"]))
    assert (merge.matched, differences) == (6, set())
    assert foreign == {f"{FOLDER}/a.c.png", f"{FOLDER}/zz.png"}
    assert merge.most_held == 1


def test_only_parts_around_the_key_at_hand_are_held() -> None:
    parts = {part: [row(f"{part:03}-{i}") for i in range(5)] for part in range(100)}
    parts[50].append(row("052-0x"))
    names = [row.name for rows in parts.values() for row in rows]
    merge, differences, foreign = merged(parts, listed(names))
    assert (merge.matched, differences, foreign) == (501, set(), set())
    assert merge.most_held == 2
    assert most_rows(spans_of(parts)) == 6 + 5


def test_parts_in_a_gap_of_the_listing_are_not_held() -> None:
    parts = {part: [row(f"{part:03}-{i}") for i in range(5)] for part in range(20)}
    merge, differences, _ = merged(parts, listed(["000-0", "019-4"]))
    assert (merge.matched, merge.most_held) == (2, 1)
    assert len(differences) == 98


def test_what_differs_is_passed_on() -> None:
    parts = {1: [row("a"), row("b", etag="other"), row("c")]}
    parts[1].append(parts[1][2]._replace(name="broken", locator=f"{FOLDER}/d.png", broken="size"))
    merge, differences, foreign = merged(parts, listed("abd"))
    assert merge.matched == 1
    assert differences == {"etag b", "missing c", "broken broken"}
    assert foreign == set()


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_a_listing_does_not_matter(seed: int) -> None:
    generator = random.Random(seed)  # noqa: S311
    letters = ["a", "b", "-", ".", "/x", "é", "\U0001f600", "\uff5e"]
    names = {"".join(generator.choices(letters, k=generator.randint(1, 5))) for _ in range(150)}
    rows = [row(name, generator.choice(["e", "e", "e", "f"])) for name in sorted(names)]
    generator.shuffle(rows)
    parts: dict[int, list[Expected]] = {}
    for one in rows[30:]:
        parts.setdefault(generator.randrange(8), []).append(one)
    found = listed(one.name for one in rows[: len(rows) - 20])
    known = {one.name for one in rows[30:]}
    missing = {f"missing {one.name}" for one in rows[-20:] if one.name in known}
    other = {f"etag {one.name}" for one in rows[30:-20] if one.etag == "f"}
    foreign = {one.locator for one in rows[:30]}
    for disorder in (0, 3, len(found)):
        listing = found[:]
        for _ in range(disorder):
            i, j = generator.randrange(len(found)), generator.randrange(len(found))
            listing[i], listing[j] = listing[j], listing[i]
        merge, differences, strangers = merged(parts, listing)
        assert (differences, strangers) == (missing | other, foreign)
        if not disorder:
            assert merge.matched == len(rows) - 50 - len(other)
