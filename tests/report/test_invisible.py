"""Overlays that cannot be seen: each is counted, and a run of them ends with one warning."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.stores.memory import MemoryStore
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import read_rows
from tests.support.maps import decode
from tests.support.pipelines import THREADS, FailingStore, use_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def spread(low: float, high: float) -> NDArray[np.float64]:
    return np.linspace(low, high, 42).reshape(6, 7)


LABELS = np.arange(21, dtype=np.uint8).reshape(3, 7)
NAN = np.full((2, 3), np.nan)
HOLES = np.array([[np.nan, 0.01], [0.0, np.inf]])


class Custom(am.Colormap):
    """White, with an alpha of the test's choice."""

    def __init__(self, opacity: Callable[[int], int]) -> None:
        super().__init__()
        self.opacity = opacity

    def red(self, intensity: np.uint8) -> int:
        return 255

    green = blue = red

    def alpha(self, intensity: np.uint8) -> int:
        return self.opacity(int(intensity))


def run(*maps: NDArray[Any], **settings: Any) -> am.Report:
    named = [(f"{index}", array) for index, array in enumerate(maps)]
    return am.run(named, "memory://", settings=am.Settings(workers=0, **settings))


# Each map ----------------------------------------------------------------------------------------------------------


def cases() -> Iterator[Any]:
    def case(name: str, array: NDArray[Any], expected: str, **settings: Any) -> Any:
        return pytest.param(array, expected, settings, id=name)

    yield case("high values", spread(0, 1), "")
    yield case("low values", spread(0, 0.04), "transparent")
    yield case("low values in compact", spread(0, 0.04), "transparent", png="compact")
    yield case("low values in rgba", spread(0, 0.04), "transparent", png="rgba")
    yield case("hardly visible", spread(0, 0.35), "faint")
    yield case("gray below 2%", spread(0, 0.0199), "faint", png="gray")
    yield case("gray at 2%", spread(0, 0.02), "", png="gray")
    yield case("opaque below 2%", spread(0, 0.0199), "faint", alpha="opaque")
    yield case("opaque at 2%", spread(0, 0.02), "", alpha="opaque")
    yield case("half opaque below 2%", spread(0, 0.0199), "faint", alpha=0.5)
    yield case("uint8 below 2%", LABELS[:1, :6], "faint", alpha="opaque")
    yield case("uint8 at 2%", LABELS[:1], "", alpha="opaque")
    yield case("uint8 labels", LABELS, "transparent")
    yield case("below 2% of LO,HI", spread(-5, -4.81), "faint", range="-5,5", png="gray")
    yield case("2% of LO,HI", spread(-5, -4.79), "", range="-5,5", png="gray")
    yield case("below LO,HI", spread(-5, -1), "transparent", range="0,1")
    yield case("above LO,HI", spread(5, 9), "", range="0,1")
    yield case("a wide range", np.array([[-1.7e308, 1.7e308]]), "", range="per-map")
    yield case("constant per map", np.full((2, 3), 7), "transparent", range="per-map")
    yield case("constant per map in gray", np.full((2, 3), 0.1), "faint", range="per-map", png="gray")
    yield case("zeros", np.zeros((2, 3)), "transparent")
    yield case("zeros in the middle", np.zeros((2, 3)), "", range="symmetric")
    yield case("negative only", np.full((2, 3), -2.0), "transparent", range="symmetric")
    yield case("mostly the largest", np.array([[0.0, 1, 1, 1, 1]]), "transparent", range="percentile:50,99")
    yield case("NaN only", NAN, "transparent", invalid="transparent")
    yield case("NaN only, opaque", NAN, "transparent", invalid="transparent", alpha="opaque")
    yield case("NaN as zero, opaque", NAN, "faint", invalid="zero", alpha="opaque")
    yield case("holes", HOLES, "transparent", invalid="transparent", png="rgba")
    yield case("holes, opaque", HOLES, "faint", invalid="transparent", alpha="opaque")
    yield case("no opacity", spread(0, 1), "transparent", alpha=0.0)
    yield case("little opacity", spread(0, 1), "faint", alpha=0.01)
    yield case("linear alpha", spread(0, 0.01), "faint", colormap="#ff000000,#ff0000ff")
    yield case("transparent high values", spread(0.9, 1), "transparent", colormap=Custom(lambda i: 255 * (i < 200)))
    yield case("visible low values", spread(0, 0.01), "", colormap=Custom(lambda i: 255 * (i < 200)))
    yield case(
        "transparent middle", spread(-0.01, 0.01), "faint", range="-1,1", colormap="#0000ffff,#00000000,#ff0000ff"
    )
    yield case("transparent zero", LABELS[:1, :4], "faint", colormap=Custom(lambda i: 255 * (i > 0)))


@pytest.mark.parametrize(("array", "expected", "settings"), list(cases()))
def test_an_overlay_that_cannot_be_seen_is_counted(
    array: NDArray[Any], expected: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    manifest, store = tmp_path / "m.sqlite", MemoryStore()
    report = am.run([("a", array)], store, settings=am.Settings(workers=0, **settings), manifest=manifest)
    found = {"transparent": report.transparent, "faint": report.faint}
    assert found == {"transparent": expected == "transparent", "faint": expected == "faint"}
    (row,) = read_rows(manifest)
    assert {name: row[name] for name in found} == found
    alpha = decode(store.objects["a.png"])[..., 3]
    assert found["transparent"] == (not alpha.any())


@pytest.mark.parametrize("png", ["palette", "compact", "rgba"])
@pytest.mark.parametrize("value_range", ["unit", "0,40", "per-map", "symmetric", "percentile:20,60"])
def test_transparent_is_what_the_png_is(png: Any, value_range: str) -> None:
    random = np.random.default_rng(1)
    found: set[bool] = set()
    maps, largest = [], 1 if value_range == "unit" else 40
    for index in range(120):
        values = random.random(random.integers(1, 4, 2)) * random.choice([0, 0.32, 0.33, 0.36, 1]) * largest
        values[random.random(values.shape) < random.choice([0, 0.5, 1])] = random.choice([0, np.nan, np.inf])
        maps.append((f"{index}", values))
    for colormap in ("jet", Custom(lambda i: 0 if i > 90 else 3), Custom(lambda i: (i % 2) * i)):
        store = MemoryStore()
        settings = am.Settings(workers=0, png=png, range=value_range, invalid="transparent", colormap=colormap)
        receipts = list(am.stream(maps, store, settings=settings))
        assert len(receipts) == len(store.objects) == 120
        for receipt in receipts:
            assert isinstance(receipt, am.Receipt)
            highest = decode(store.objects[f"{receipt.name}.png"])[..., 3].max()
            assert receipt.statistics.transparent == (highest == 0)
            found.add(receipt.statistics.transparent)
            if 0 < highest <= 5:
                assert receipt.statistics.faint
            if colormap == "jet":
                assert receipt.statistics.faint == (0 < highest <= 5)
    assert found == {True, False}


@pytest.mark.parametrize("workers", [0, 1])
def test_each_receipt_says_whether_its_overlay_can_be_seen(workers: int) -> None:
    maps = [("dark", spread(0, 0.04)), ("dim", spread(0, 0.35)), ("bright", spread(0, 1))]
    receipts = list(am.stream(maps, "memory://", settings=am.Settings(workers=workers), ordered=True))
    assert [
        (receipt.statistics.transparent, receipt.statistics.faint)
        for receipt in receipts
        if isinstance(receipt, am.Receipt)
    ] == [(True, False), (False, True), (False, False)]


async def test_put_and_the_statistics_of_a_service_count_them(caplog: pytest.LogCaptureFixture) -> None:
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        assert (await pipeline.put("dark", spread(0, 0.04))).statistics.transparent
        assert (await pipeline.put_nowait("dim", spread(0, 0.35))).statistics.faint
    assert (pipeline.statistics().transparent, pipeline.statistics().faint) == (1, 1)
    assert not caplog.messages


# Each run ----------------------------------------------------------------------------------------------------------


def warnings() -> Iterator[Any]:
    def case(name: str, maps: list[NDArray[Any]], expected: str, **settings: Any) -> Any:
        return pytest.param(maps, expected, settings, id=name)

    show = "try --alpha 0.5 (in Python: alpha=0.5)"
    per_map = 'try --range per-map (in Python: range="per-map")'
    yield case(
        "attention",
        [spread(0, 0.04)] * 12,
        f"12 of 12 overlays are fully transparent: the largest value is 0.04; {per_map}",
    )
    yield case(
        "one map", [spread(0, 0.04)], f"1 of 1 overlay is fully transparent: the largest value is 0.04; {per_map}"
    )
    yield case("dim", [spread(0, 0.35)], f"1 of 1 overlay is nearly invisible: the largest value is 0.35; {per_map}")
    yield case(
        "dark and dim",
        [spread(0, 0.04), spread(0, 0.35)],
        f"2 of 2 overlays are fully transparent or nearly invisible: the largest value is 0.35; {per_map}",
    )
    yield case(
        "most of a set",
        [spread(0, 1), *[spread(0, 0.04)] * 10],
        f"10 of 11 overlays are fully transparent: their largest value is 0.04; {per_map}",
    )
    yield case(
        "labels",
        [LABELS] * 2,
        "2 of 2 overlays are fully transparent: the largest value is 20 of 255; for labels, try --range 0,20 "
        '--alpha 0.5 (in Python: range="0,20", alpha=0.5)',
    )
    yield case(
        "negative values",
        [spread(-5, -0.3)],
        f"1 of 1 overlay is fully transparent: the largest value is -0.3; {per_map}",
        range="0,1",
    )
    yield case(
        "negative values, symmetric",
        [spread(-5, -3)],
        f"1 of 1 overlay is fully transparent: the largest value is -3; {per_map}",
        range="symmetric",
    )
    yield case(
        "constant maps",
        [np.full((2, 3), value) for value in (0.5, 1, 2)],
        '3 of 3 overlays are fully transparent: the largest value is 2; try --range 0,2 (in Python: range="0,2")',
        range="per-map",
    )
    yield case(
        "negative constant maps",
        [np.full((2, 3), value) for value in (-3, -1)],
        '2 of 2 overlays are fully transparent: the largest value is -1; try --range=-3,-1 (in Python: range="-3,-1")',
        range="per-map",
    )
    yield case(
        "zeros",
        [np.zeros((2, 3))],
        f"1 of 1 overlay is fully transparent: all values are 0; check the maps, or {show}",
    )
    yield case(
        "NaN only",
        [NAN],
        "1 of 1 overlay is fully transparent: no value is finite; check the maps, or try --invalid error "
        '(in Python: invalid="error") to list them as failures',
        invalid="transparent",
    )
    yield case(
        "no opacity",
        [spread(0, 1)],
        f"1 of 1 overlay is fully transparent: the colormap has no visible color; {show}",
        alpha=0.0,
    )
    yield case(
        "transparent high values",
        [spread(0.9, 1)],
        f"1 of 1 overlay is fully transparent: the values are 0.9 to 1, where the colormap is transparent; {show}",
        colormap=Custom(lambda i: 255 * (i < 200)),
    )


@pytest.mark.parametrize(("maps", "expected", "settings"), list(warnings()))
def test_a_run_of_invisible_overlays_ends_with_one_warning(
    maps: list[NDArray[Any]], expected: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    report = run(*maps, **settings)
    assert report.warnings == report.as_dict()["warnings"] == [expected]
    assert caplog.record_tuples[-1] == ("async_maps", logging.WARNING, expected)
    assert caplog.messages.count(expected) == 1


@pytest.mark.parametrize(
    ("maps", "settings", "advice"),
    [
        ([spread(0, 0.04)] * 3, {}, {"range": "per-map"}),
        ([spread(-5, -3)] * 3, {"range": "symmetric"}, {"range": "per-map"}),
        ([LABELS] * 3, {}, {"range": "0,20", "alpha": 0.5}),
        ([np.full((2, 3), value) for value in (-3, -1)], {"range": "per-map"}, {"range": "-3,-1"}),
        ([np.zeros((2, 3))] * 3, {}, {"alpha": 0.5}),
    ],
)
def test_the_advice_helps(maps: list[NDArray[Any]], settings: dict[str, Any], advice: dict[str, Any]) -> None:
    assert run(*maps, **settings).warnings
    assert not run(*maps, **{**settings, **advice}).warnings


@pytest.mark.parametrize(
    ("maps", "settings"),
    [
        ([spread(0, 0.01)], {"png": "gray"}),
        ([spread(0, 0.01)], {"alpha": "opaque"}),
        ([spread(0, 0.01)], {"alpha": 0.5, "colormap": "viridis"}),
        ([NAN], {"invalid": "transparent", "alpha": "opaque"}),
        ([NAN], {}),  # fails
        ([*[spread(0, 0.01)] * 9, spread(0, 1)], {}),  # 90%
    ],
)
def test_there_is_no_warning(
    maps: list[NDArray[Any]], settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(*maps, **settings).warnings == []
    assert caplog.messages == []


def test_a_resumed_run_counts_only_its_own_maps(tmp_path: Path) -> None:
    folder, manifest, out = tmp_path / "maps", tmp_path / "m.sqlite", tmp_path / "out"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"dark-{index}.npy", spread(0, 0.04))
    first = am.run(folder, out, settings=THREADS, manifest=manifest)
    assert (first.transparent, len(first.warnings)) == (3, 1)
    nothing_new = am.run(folder, out, settings=THREADS, manifest=manifest)
    assert (nothing_new.skipped, nothing_new.transparent, nothing_new.warnings) == (3, 0, [])
    np.save(folder / "bright.npy", spread(0, 1))
    bright = am.run(folder, out, settings=THREADS, manifest=manifest)
    assert (bright.uploaded, bright.transparent, bright.warnings) == (1, 0, [])
    planned = am.dry_run(folder, out, settings=am.Settings(workers=0, png="compact"), manifest=manifest)
    assert (planned.planned, planned.transparent, planned.warnings) == (4, 0, [])


def test_a_run_that_ends_with_an_error_warns_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_store(monkeypatch, FailingStore(set(), dies_after=2))
    with pytest.raises(am.StoreError) as raised:
        am.run([(str(index), spread(0, 0.04)) for index in range(5)], "memory://", settings=THREADS)
    report = raised.value.report
    assert report is not None
    assert report.warnings[0].startswith(f"{report.uploaded} of {report.uploaded} overlay")
    assert caplog.messages == report.warnings


# The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", ["json", "log"])
def test_the_command_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(12):
        np.save(f"{index}.npy", spread(0, 0.04))
    run_all = ["run", "*.npy", "out", "--workers", "0", "--report", "r.json", "--progress", progress]
    assert invoke(*run_all) == 0
    out, err = capsys.readouterr()
    warning = (
        "12 of 12 overlays are fully transparent: the largest value is 0.04; try --range per-map "
        '(in Python: range="per-map")'
    )
    lines = [json.loads(line) for line in err.splitlines()] if progress == "json" else []
    if lines:
        assert [line["message"] for line in lines if line["level"] == "warning"] == [warning]
        assert (lines[-1]["report"]["transparent"], lines[-1]["report"]["faint"]) == (12, 0)
    else:
        assert err.count(f"async-maps: warning: {warning}\n") == 1
    assert "fully transparent overlays: 12\n" in out
    report = json.loads(Path("r.json").read_text())
    assert (report["transparent"], report["faint"], report["warnings"]) == (12, 0, [warning])
    # With nothing left to do.
    assert invoke(*run_all) == 0
    assert "transparent overlays" not in "".join(capsys.readouterr())


def test_a_dry_run_does_not_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("dark.npy", spread(0, 0.04))
    assert invoke("run", "dark.npy", "out", "--dry-run") == 0
    assert "transparent" not in "".join(capsys.readouterr())


def test_quiet_leaves_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("dark.npy", spread(0, 0.04))
    assert invoke("run", "dark.npy", "out", "--workers", "0", "--quiet") == 0
    out, err = capsys.readouterr()
    assert (err, "fully transparent overlays: 1" in out) == ("", True)
