"""Keys by template. Two maps with one key are found before one overlay overwrites the other."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.keys import KeyTemplate
from async_maps.manifest.claims import Claims
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

LOCAL: dict[str, Any] = {"workers": 0}


def some_map(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((6, 7))


def keys(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.fixture
def nested(maps: Path) -> Path:
    """A source with two folders that contain equal names."""
    for seed, name in enumerate(["a/1.npy", "a/2.npy", "b/2.npy", "b/3.npy", "top.npy"]):
        (maps / name).parent.mkdir(exist_ok=True)
        np.save(maps / name, some_map(seed))
    return maps


@pytest.mark.runs
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{name}.png", ["a/1.png", "a/2.png", "b/2.png", "b/3.png", "top.png"]),
        ("{parent}/{stem}.png", ["a/1.png", "a/2.png", "b/2.png", "b/3.png", "top.png"]),
        ("{stem}/of-{parent}.png", ["1/of-a.png", "2/of-a.png", "2/of-b.png", "3/of-b.png", "top/of-.png"]),
        ("{index}.png", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        ("{index:03}-{stem}.png", ["000-1.png", "001-2.png", "002-2.png", "003-3.png", "004-top.png"]),
        ("{name}", ["a/1", "a/2", "b/2", "b/3", "top"]),
    ],
)  # fmt: skip
def test_keys_follow_the_template(nested: Path, tmp_path: Path, template: str, expected: list[str]) -> None:
    out = tmp_path / "out"
    report = am.run(nested, out, settings=am.Settings(key=template, **LOCAL), manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.failed) == (5, 0)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == expected


@pytest.mark.runs
@pytest.mark.parametrize("template", ["{digest}.png", "{name}.{digest:.16}.png"])
def test_a_digest_key_changes_with_the_png(nested: Path, tmp_path: Path, template: str) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.sqlite"
    settings = am.Settings(key=template, **LOCAL)
    am.run(nested, out, settings=settings, manifest=manifest)
    before = keys(out)
    np.save(nested / "a" / "1.npy", some_map(99))
    assert am.run(nested, out, settings=settings, manifest=manifest).uploaded == 1
    after = keys(out)
    assert len(after) == len(before) + 1
    for key in after:
        digest = hashlib.sha256((out / key).read_bytes()).hexdigest()
        assert key.removesuffix(".png").split(".")[-1] in {digest, digest[:16]}


def test_equal_maps_share_the_object_of_their_digest(maps: Path, tmp_path: Path) -> None:
    for name in "abc":
        np.save(maps / f"{name}.npy", some_map(0))
    report = am.run(maps, tmp_path / "out", settings=am.Settings(key="{digest}.png", **LOCAL))
    assert (report.uploaded, report.failed) == (3, 0)
    assert len(keys(tmp_path / "out")) == 1


@pytest.mark.runs
@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_second_map_with_the_same_key_fails(nested: Path, tmp_path: Path, with_manifest: bool) -> None:
    out = tmp_path / "out"
    manifest = tmp_path / "m.sqlite" if with_manifest else None
    report = am.run(nested, out, settings=am.Settings(key="{stem}.png", **LOCAL), manifest=manifest)
    assert (report.uploaded, report.failed) == (4, 1)
    (failure,) = report.failures
    assert (failure.name, failure.stage) == ("b/2", "source")
    assert failure.reason == (
        f"'file://{out}/2.png' is the overlay of another map, 'a/2': add {{name}} or {{digest}} to the key; "
        "if that map no longer exists, run again with --overwrite"
    )
    alone = tmp_path / "alone"
    am.run([("2", np.load(nested / "a" / "2.npy"))], alone, settings=am.Settings(**LOCAL))
    assert (out / "2.png").read_bytes() == (alone / "2.png").read_bytes()


@pytest.mark.runs
def test_an_earlier_runs_overlay_is_not_overwritten_by_another_map(maps: Path, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.sqlite"
    settings = am.Settings(key="{stem}.png", **LOCAL)
    for folder in ("a", "b"):
        (maps / folder).mkdir()
        np.save(maps / folder / "1.npy", some_map(ord(folder)))
    assert am.run(maps / "a" / "..", out, settings=settings, manifest=manifest).failed == 1
    before = (out / "1.png").read_bytes()
    (maps / "a" / "1.npy").unlink()
    # The row of a/1 still names this overlay.
    assert am.run(maps, out, settings=settings, manifest=manifest).failed == 1
    assert (out / "1.png").read_bytes() == before
    # select="all" deletes that row, because its overlay is replaced.
    assert am.run(maps, out, settings=settings, manifest=manifest, select="all").uploaded == 1
    assert (out / "1.png").read_bytes() != before
    with Manifest(manifest, read_only=True) as opened:
        assert [row[0] for row in opened.rows()] == ["b/1"]


@pytest.mark.runs
async def test_indexes_may_change_with_select_all(maps: Path, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", tmp_path / "m.sqlite"
    settings = am.Settings(key="{index:03}.png", **LOCAL)
    for name in "bcd":
        np.save(maps / f"{name}.npy", some_map(ord(name)))
    async with am.Pipeline(out, settings=settings) as pipeline:
        await pipeline.run(maps, manifest=manifest)
    np.save(maps / "a.npy", some_map(0))
    report = await am.adry_run(maps, out, settings=settings, manifest=manifest, select="all")
    assert (report.planned, report.failed) == (4, 0)
    async with am.Pipeline(out, settings=settings) as pipeline:
        report = await pipeline.run(maps, manifest=manifest, select="all")
    assert (report.uploaded, report.failed) == (4, 0)
    with Manifest(manifest, read_only=True) as opened:
        locators = {str(row[0]): str(row[1]) for row in opened.rows()}
    assert locators == {name: f"file://{out}/{n:03}.png" for n, name in enumerate("abcd")}


@pytest.mark.parametrize(
    "template", ["{parent}../{stem}.png", "{index:6}.png", "{index:{name}}{index}", "{name}/../x.png"]
)
def test_an_invalid_key_template_is_refused(template: str) -> None:
    with pytest.raises(am.SettingsError):
        am.Settings(key=template)


async def test_put_accepts_a_name_again_but_not_another_with_its_key(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=am.Settings(key="{stem}.png", **LOCAL)) as pipeline:
        await pipeline.put("a/1", some_map(0))
        await pipeline.put("a/1", some_map(1))
        with pytest.raises(am.MapFailedError, match="is the overlay of another map, 'a/1'"):
            await pipeline.put("b/1", some_map(2))
        outcomes = [outcome async for outcome in pipeline.stream([("c/1", some_map(3)), ("c/2", some_map(4))])]
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Failure", "Receipt"]


async def test_a_dry_run_finds_equal_keys(nested: Path, tmp_path: Path) -> None:
    report = await am.adry_run(nested, tmp_path / "out", settings=am.Settings(key="{stem}.png", **LOCAL))
    assert (report.planned, report.failed) == (4, 1)


def test_claims_are_remembered_on_disk() -> None:
    template = KeyTemplate("{stem}.png")
    with Claims(lambda map_: template.key("", map_.name)) as claims:
        claims.load((f"{n}.png", f"a/{n}") for n in range(50_000))
        claims.load([("7.png", "late")])
        entries = [ActivationMap(f"{folder}/{n}", "s", None, 1) for folder in "ab" for n in (7, 49_999, 50_000)]
        checked = claims.check([*entries, Failure("x", "x", None, "source", "of its own")])
    assert [type(entry) for entry in checked] == [*[ActivationMap] * 3, *[Failure] * 4]
