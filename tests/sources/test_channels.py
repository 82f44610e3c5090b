"""``channels`` reduces the maps in files to one value per pixel, and is named where it is probably missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from PIL import Image

import async_maps as am
from tests.support.commands import invoke
from tests.support.entries import save_tar
from tests.support.maps import npy
from tests.support.s3 import upload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
BATCH = RNG.normal(0, 3, (4, 3, 20, 30)).astype(np.float32)
THREADS: dict[str, Any] = {"workers": 0, "range": "symmetric"}

REDUCTIONS = {
    "sum": lambda array: array.astype("f8").sum(-3),
    "norm": lambda array: np.sqrt((array.astype("f8") ** 2).sum(-3)),
    "maxabs": lambda array: np.abs(array.astype("f8")).max(-3),
    "mean": lambda array: array.astype("f8").mean(-3),
}


def overlays_of(planes: Iterable[NDArray[Any]], value_range: str, folder: Path) -> list[bytes]:
    """Return the overlays of maps without channels."""
    maps = [(f"{i:06}", plane.astype(np.float32)) for i, plane in enumerate(planes)]
    am.run(maps, folder, settings=am.Settings(workers=0, range=value_range))
    return [(folder / f"{name}.png").read_bytes() for name, _ in maps]


def overlays(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder))[:-4]: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("by", REDUCTIONS)
@pytest.mark.parametrize("value_range", ["symmetric", "dataset"])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_layout_is_reduced_as_numpy_does(
    maps: Path, tmp_path: Path, workers: int, value_range: str, by: Any
) -> None:
    np.save(maps / "batch.npy", BATCH)
    np.save(maps / "batch-of-one.npy", BATCH[:1])
    np.save(maps / "first.npy", BATCH[0])
    np.save(maps / "fortran.npy", np.asfortranarray(BATCH[0]))
    np.save(maps / "last.npy", np.moveaxis(BATCH[0], 0, -1).copy())
    np.save(maps / "last-batch.npy", np.moveaxis(BATCH, 1, -1).copy())
    np.save(maps / "one-channel.npy", BATCH[:, :1])
    np.save(maps / "single.npy", BATCH[0, :1])
    np.save(maps / "plain.npy", BATCH[0, 0])
    settings = am.Settings(channels=by, range=value_range, workers=workers)
    report = am.run(maps, tmp_path / "out", settings=settings)
    assert (report.uploaded, report.failed) == (3 * 4 + 6, 0)

    reduced = REDUCTIONS[by](BATCH)
    span = f"{report.range_low},{report.range_high}" if value_range == "dataset" else value_range
    ones = [REDUCTIONS[by](array) for array in BATCH[:, :1]]
    *pngs, plain = overlays_of([*reduced, *ones, BATCH[0, 0]], span, tmp_path / "one")
    numbered, single = pngs[: len(reduced)], pngs[len(reduced) :]
    expected = dict.fromkeys(("batch-of-one", "first", "fortran", "last"), numbered[0])
    expected |= {f"{name}/{i:06}": png for name in ("batch", "last-batch") for i, png in enumerate(numbered)}
    expected |= {f"one-channel/{i:06}": png for i, png in enumerate(single)} | {"single": single[0]}
    expected["plain"] = plain
    assert overlays(tmp_path / "out") == expected


def test_the_channels_of_every_format_are_reduced(maps: Path, tmp_path: Path) -> None:
    np.savez(maps / "npz.npz", x=BATCH[0], y=BATCH)
    save_tar(maps / "tar.tar", {"x.npy": npy(BATCH[0]), "y.npy": npy(BATCH)})
    safetensors.numpy.save_file({"x": BATCH[0].copy(), "y": BATCH}, maps / "st.safetensors")
    with h5py.File(maps / "hdf5.h5", "w") as file:
        file["x"], file["y"] = BATCH[0], BATCH
    group = zarr.open_group(maps / "zarr.zarr", mode="w")
    group.create_array("x", data=BATCH[0])
    group.create_array("y", data=BATCH, chunks=(2, 3, 10, 10))
    report = am.run(maps, tmp_path / "out", settings=am.Settings(channels="sum", **THREADS))
    assert report.failed == 0
    pngs = overlays_of(REDUCTIONS["sum"](BATCH), "symmetric", tmp_path / "one")
    expected = {f"{name}/x": pngs[0] for name in ("npz", "tar", "st", "hdf5", "zarr")}
    expected |= {f"{name}/y/{i:06}": pngs[i] for name in ("npz", "tar", "st", "hdf5", "zarr") for i in range(4)}
    assert overlays(tmp_path / "out") == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_channels_in_s3_are_reduced(bucket: str, tmp_path: Path, workers: int) -> None:
    upload(bucket, {"maps/first.npy": npy(BATCH[0]), "maps/batch.npy": npy(BATCH), "maps/rgb.npy": npy(PICTURE)})
    settings = am.Settings(channels="maxabs", range="dataset", workers=workers)
    report = am.run(f"s3://{bucket}/maps/", tmp_path / "out", settings=settings)
    assert [failure.name for failure in report.failures] == ["rgb"]
    span = f"{report.range_low},{report.range_high}"
    pngs = overlays_of(REDUCTIONS["maxabs"](BATCH), span, tmp_path / "one")
    assert overlays(tmp_path / "out") == {"first": pngs[0]} | {f"batch/{i:06}": png for i, png in enumerate(pngs)}


PICTURE = np.full((20, 30, 3), 7, np.uint8)


@pytest.mark.parametrize("channels", ["none", "sum"])
@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30, 4), (5, 20, 30, 3)])
def test_pictures_in_files_are_refused(maps: Path, tmp_path: Path, shape: tuple[int, ...], channels: Any) -> None:
    np.save(maps / "a.npy", np.zeros(shape, np.uint8))
    settings = am.Settings(channels=channels, **THREADS)
    for report in (
        am.run(maps, tmp_path / "out", settings=settings),
        am.dry_run(maps, tmp_path / "out", settings=settings),
    ):
        assert report.failed == (shape[0] if channels == "sum" and len(shape) == 4 else 1)
        assert all("already a picture, not a map" in failure.reason for failure in report.failures)


OPTION = '--channels sum (or norm, maxabs, mean; in Python channels="sum") reduces them'


@pytest.mark.parametrize(
    ("shape", "hints"),
    [
        ((1, 3, 40, 50), [f"if the 3 are channels, {OPTION}"]),
        ((8, 3, 40, 50), [f"if the 3 are channels, {OPTION}", "if these are 24 maps, save cams.reshape(-1, 40, 50)"]),
        ((8, 10, 40, 50), [f"if the 10 are channels, {OPTION}", "if these are 80 maps"]),
        ((40, 50, 3), [f"if the 3 are channels, {OPTION}"]),
        ((8, 40, 50, 2), [f"if the 2 are channels, {OPTION}"]),
        ((9, 4, 4), ["if these are 9 maps of 4 x 4, save cams[:, None]"]),
        ((2, 12, 197, 197), ["if this is the attention of tokens, take [:, :, 0, 1:].reshape(-1, 14, 14)"]),
        ((2, 3, 4, 20, 30), ["if these are 24 maps, save cams.reshape(-1, 20, 30)"]),
        ((1, 1, 1, 20, 30), ["if this is one map, save cams.reshape(20, 30)"]),
    ],
)
def test_a_refused_layout_names_the_remedy(
    maps: Path, tmp_path: Path, shape: tuple[int, ...], hints: list[str]
) -> None:
    np.save(maps / "a.npy", np.zeros(shape, np.float32))
    settings = am.Settings(**THREADS)
    reports = [call(maps, tmp_path / "out", settings=settings) for call in (am.run, am.dry_run)]
    (reason,) = {failure.reason for report in reports for failure in report.failures}
    assert reason.startswith("an activation map must have the shape (h, w) or (h, w, 1); found ")
    for hint in hints:
        assert hint in reason


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((9, 1, 4, 4), "[:, None]"),
        ((24, 40, 50), ".reshape(-1, 40, 50)"),
        ((10, 40, 40), "np.moveaxis(cams, -1, 0)"),
        ((5, 14, 14), "[:, 1:].reshape(5, 14, 14)"),
        ((12, 14, 14), ".reshape(-1, 197, 197)[:, 0, 1:].reshape(-1, 14, 14)"),
    ],
)
def test_what_the_remedies_make_is_accepted(maps: Path, tmp_path: Path, shape: tuple[int, ...], remedy: str) -> None:
    np.save(maps / "a.npy", np.zeros(shape, np.float32))
    report = am.run(maps, tmp_path / "out", settings=am.Settings(**THREADS))
    assert (report.uploaded, report.failed) == (shape[0], 0), remedy


@pytest.mark.parametrize(
    ("shape", "question"),
    [
        ((3, 40, 50), f"so it is a stack of 3 maps: if these are the channels of one map, {OPTION}"),
        ((40, 40, 10), "so it is a stack of 40 maps of 40 x 10: if these are 10 maps of 40 x 40, save np.moveaxis"),
        ((14, 14, 512), "so it is a stack of 14 maps of 14 x 512: if these are 512 maps of 14 x 14, save np.moveaxis"),
        ((96, 128, 10), "so it is a stack of 96 maps of 128 x 10: if these are 10 maps of 96 x 128, save np.moveaxis"),
        ((5, 196), "if its rows are the tokens of 5 maps, take cams.reshape(5, 14, 14)"),
        ((1000, 197), "if its rows are the tokens of 1,000 maps, take cams[:, 1:].reshape(1000, 14, 14), without the"),
        ((2, 12, 577), "if its rows are the tokens of 12 maps, take cams[..., 1:].reshape(-1, 24, 24), without the"),
        ((197, 197), "if this is the attention of tokens, the map of the class token is attention[0, 1:].resh"),
        ((12, 197, 197), "is attention.reshape(-1, 197, 197)[:, 0, 1:].reshape(-1, 14, 14)"),
    ],
)  # fmt: skip
def test_a_doubtful_layout_is_asked_about_once(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...], question: str
) -> None:
    for name in ("a", "b", "c"):
        np.save(maps / f"{name}.npy", np.zeros(shape, np.float32))
    for call in (am.run, am.dry_run):
        caplog.clear()
        report = call(maps, tmp_path / "out", settings=am.Settings(range="dataset", workers=0))
        assert report.failed == 0
        (record,) = [record for record in caplog.records if "if " in record.getMessage()]
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(f"{maps / 'a.npy'}: ")
        assert question in record.getMessage()


@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        ((5, 128, 150), True),
        ((3, 128, 150), False),
        ((512, 56, 56), False),
        ((128, 150, 3), False),
        ((5, 1, 9, 9), False),
    ],
)
def test_a_stack_of_large_maps_that_becomes_one_is_asked_about(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...], asked: bool
) -> None:
    np.save(maps / "a.npy", np.zeros(shape, np.float32))
    am.dry_run(maps, tmp_path / "out", settings=am.Settings(channels="sum", range="per-map"))
    assert [record.getMessage().partition("npy: ")[2] for record in caplog.records] == asked * [
        f"its shape is {shape}, so --channels sum makes one map of 5 channels: if these are 5 maps, save cams[:, None]"
    ]


def test_a_question_names_the_array_in_its_file(maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(maps / "a.npz", left_out=BATCH[1], layer4=BATCH[0], labels=np.arange(3))
    settings = am.Settings(exclude="left_out", **THREADS)
    assert am.run(maps, tmp_path / "out", settings=settings).uploaded == 3
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{maps / 'a.npz'}[layer4]: its shape is (3, 20, 30), so it is a stack of 3 maps")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 50), "f4"), ((3, 4, 4, 1), "f4"), ((196, 196), "f4"), ((224, 196), "f4"), ((128, 256), "f4"),
        ((12, 1024), "f4"), ((257, 400), "f4"), ((257, 257), "f4"), ((513, 513), "f4"), ((14, 14), "f4"),
        ((1, 7), "f4"), ((40, 40, 1), "f4"), ((100, 40, 50), "f4"), ((40, 40, 40), "f4"), ((5, 4, 7), "f4"),
        ((12, 1, 40, 50), "f4"), ((3, 4, 3), "f4"), ((50, 40, 30), "f4"), ((1, 40, 50), "f4"), ((1000, 7, 7), "f4"),
        ((7, 8, 8), "f4"), ((3, 1, 40, 50), "f4"), ((3, 40, 50), "u1"), ((3, 40, 50), "i4"),
    ],
)  # fmt: skip
def test_healthy_maps_cause_no_question(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...], dtype: str
) -> None:
    np.save(maps / "a.npy", np.zeros(shape, dtype))
    am.dry_run(maps, tmp_path / "out", settings=am.Settings(range="per-map"))
    assert not caplog.records


async def test_tokens_in_memory_are_asked_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = np.zeros((12, 196), np.float32)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0)) as pipeline:
        await pipeline.put("a", tokens)
        await pipeline.put("b", tokens)
        await pipeline.run([("c", tokens)])
    (message,) = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert message == ("a: one map of 12 x 196: if its rows are the tokens of 12 maps, take cams.reshape(12, 14, 14)")


def test_the_command_names_the_option_and_reduces_with_it(
    maps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", BATCH[0])
    command = ["run", maps, tmp_path / "out", f"--manifest={tmp_path / 'm.sqlite'}", "--range=per-map", "--workers=0"]
    assert invoke(*command) == 0
    assert capfd.readouterr().err.count("--channels sum (or norm, maxabs, mean") == 1
    assert invoke(*command, "--channels=sum") == 0
    output = capfd.readouterr()
    assert "1 uploaded, 0 skipped, 0 failed" in output.out
    assert "--channels" not in output.err


def test_other_channels_are_other_colors(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", BATCH[0])

    def run(channels: Any, call: Any = am.run) -> tuple[int, ...]:
        settings = am.Settings(channels=channels, range="per-map", workers=0)
        report = call(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
        return report.uploaded, report.planned, report.skipped, report.failed

    assert run("sum") == (1, 0, 0, 0)
    assert run("sum") == (0, 0, 1, 0)
    assert run("norm", am.dry_run) == (0, 1, 0, 0)
    assert run("norm") == (1, 0, 0, 0)
    # The file is opened again: without channels, it is a stack.
    assert run("none", am.dry_run) == (0, 3, 0, 0)
    assert run("none") == (3, 0, 0, 0)
    assert run("none") == (0, 0, 3, 0)
    assert run("sum") == (1, 0, 0, 0)


def test_a_dataset_range_of_other_channels_is_computed_again(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", BATCH)
    spans = {}
    for channels in ("sum", "maxabs", "sum"):
        settings = am.Settings(channels=channels, range="dataset", workers=0)
        report = am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
        reduced = REDUCTIONS[channels](BATCH)
        assert report.range_low is not None
        assert report.range_high is not None
        spans[channels] = report.range_low, report.range_high
        np.testing.assert_allclose(spans[channels], (reduced.min(), reduced.max()), rtol=1e-3)
    assert spans["sum"] != spans["maxabs"]


def test_a_repair_reduces_the_channels_as_the_run_did(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", BATCH[0])
    np.save(maps / "b.npy", BATCH)
    settings = am.Settings(channels="norm", range="per-map", workers=0)
    am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    before = overlays(tmp_path / "out")
    (tmp_path / "out" / "a.png").unlink()
    (tmp_path / "out" / "b" / "000002.png").write_bytes(b"broken")
    verification = am.repair_overlays(tmp_path / "m.sqlite", settings=am.Settings(workers=0))
    assert (verification.is_clean, verification.repaired) == (True, 2)
    assert overlays(tmp_path / "out") == before


@pytest.mark.parametrize("invalid", ["error", "transparent", "zero"])
def test_an_invalid_channel_is_an_invalid_pixel(maps: Path, tmp_path: Path, invalid: Any) -> None:
    array = BATCH[0].copy()
    array[1, 2, 3], array[2, 4, 5] = np.nan, -np.inf
    np.save(maps / "a.npy", array)
    settings = am.Settings(channels="sum", range="per-map", invalid=invalid, alpha="opaque", workers=0)
    report = am.run(maps, tmp_path / "out", settings=settings)
    assert (report.failed, report.invalid) == ((1, 0) if invalid == "error" else (0, 1))
    if invalid == "error":
        assert "2 of 600 values" in report.failures[0].reason
    if invalid == "transparent":
        with Image.open(tmp_path / "out" / "a.png") as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        assert (alpha == 0).sum() == 2
        assert (alpha[[2, 4], [3, 5]] == 0).all()


def test_the_maps_of_a_stack_in_fortran_order_fail_with_advice(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", np.asfortranarray(BATCH))
    settings = am.Settings(channels="sum", **THREADS)
    for call in (am.run, am.dry_run):
        report = call(maps, tmp_path / "out", settings=settings)
        assert {failure.reason for failure in report.failures} == {
            "the maps of a stack in Fortran order cannot be read one by one: save np.ascontiguousarray(stack) instead"
        }
        assert report.failed == 4


@pytest.mark.slow
def test_attributions_in_files_of_torch_are_reduced(maps: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(BATCH[0]), maps / "one.pt")
    torch.save({"integrated": torch.from_numpy(BATCH), "labels": torch.arange(4)}, maps / "several.pt")
    settings = am.Settings(channels="sum", range="symmetric", workers=1)
    assert am.run(maps, tmp_path / "out", settings=settings).failed == 0
    pngs = overlays_of(REDUCTIONS["sum"](BATCH), "symmetric", tmp_path / "one")
    found = overlays(tmp_path / "out")
    assert found.pop("one") == pngs[0]
    assert list(found.values()) == pngs
