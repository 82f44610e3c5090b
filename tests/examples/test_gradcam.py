"""The Grad-CAM example: a trained model, its Grad-CAMs, and every overlay in Kolena's colors."""

from __future__ import annotations

import csv
import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import async_maps as am

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

TESTED = 697
EXAMPLE = "async_maps.examples.gradcam"


class Ran(NamedTuple):
    """The results of ``python -m async_maps.examples.gradcam``.

    Attributes:
        folder: its ``--out``.
        output: what it printed.
        cams: the maps that it gave the pipeline, by name, (40, 40) float32.
        images: the test images, (40, 40) float32 each.
    """

    folder: Path
    output: str
    cams: dict[str, NDArray[np.float32]]
    images: list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run the example once and record the maps that it uploads."""
    for package in ("torch", "captum", "sklearn"):
        pytest.importorskip(package)
    import torch

    from async_maps.examples import gradcam

    folder, output, threads = tmp_path_factory.mktemp("gradcam"), io.StringIO(), torch.get_num_threads()
    original = gradcam.grad_cams
    calls: list[tuple[Any, dict[str, NDArray[np.float32]]]] = []

    def watched(*arguments: Any) -> Iterator[tuple[str, Any]]:
        calls.append((arguments[1], seen := {}))
        for name, cam in original(*arguments):
            assert cam.shape == (1, 40, 40)
            assert cam.requires_grad
            seen[name] = cam.detach().numpy()[0].copy()
            yield name, cam

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(gradcam, "grad_cams", watched)
        assert gradcam.main(out=folder) == 0
    torch.set_num_threads(threads)
    images, cams = calls[0]
    return Ran(folder, output.getvalue(), cams, [image.numpy() for image in images[:, 0]])


def intensities(cam: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the intensities of a map between its own minimum and maximum."""
    low, high = float(cam.min()), float(cam.max())
    return np.rint((cam.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


@pytest.mark.slow
def test_the_model_of_the_example_classifies_90_percent(ran: Ran) -> None:
    accuracy, _, rest = ran.output.partition("%")
    assert float(accuracy) >= 90
    assert rest.startswith(
        f" of {TESTED} test images are classified correctly\n{2 * TESTED:,} uploaded, 0 skipped, 0 failed"
    )


@pytest.mark.slow
def test_every_grad_cam_has_an_overlay_in_kolenas_colors(ran: Ran) -> None:
    with (ran.folder / "locators.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(ran.cams)
    assert len(rows) == 2 * TESTED
    assert {name.partition("-")[0] for name in rows} == {
        f"{index:04}/{label}" for index in range(TESTED) for label in ("true", "predicted")
    }
    for name, cam in ran.cams.items():
        path = ran.folder / "overlays" / f"{name}.png"
        assert (rows[name]["status"], rows[name]["locator"]) == ("done", path.as_uri())
        assert cam.max() > cam.min()
        with Image.open(path) as overlay:
            expected = am.colorize_activation_map(intensities(cam))
            np.testing.assert_array_equal(np.asarray(overlay.convert("RGBA")), expected, name)


@pytest.mark.slow
def test_high_activations_of_the_predicted_class_lie_on_the_digit(ran: Ran) -> None:
    on_digit = 0
    for name, cam in ran.cams.items():
        if "predicted" in name:
            image = ran.images[int(name[:4])]
            on_digit += bool(image[cam > cam.max() / 2].mean() > image.mean())
    assert on_digit >= 0.95 * TESTED


@pytest.mark.slow
def test_the_sheet_has_16_gray_images_with_colored_overlays(ran: Ran) -> None:
    with Image.open(ran.folder / "overlays.png") as sheet:
        assert sheet.size == (8 * 172 + 12, 2 * 332 + 12)
        saturated = np.ptp(np.asarray(sheet, np.int16), axis=2) > 100
    for row in range(2):
        for column in range(8):
            left, top = 12 + 172 * column, 12 + 332 * row
            # The image is gray; its overlay is not.
            assert not saturated[top : top + 160, left : left + 160].any()
            assert saturated[top + 160 : top + 320, left : left + 160].mean() > 0.02
