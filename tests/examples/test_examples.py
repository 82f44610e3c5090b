"""Each example as its page runs it: its overlays are those of its maps, and its maps are those of the method."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.render.quantize import quantize
from async_maps.render.ranges import parse_range
from tests.support.documents import ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Maps = dict[str, NDArray[np.float32]]

pytestmark = pytest.mark.slow

IMAGES = 24
PAGE = "async_maps/examples/README.md"


def example(name: str) -> Any:
    """Import an example, or skip the test if it names a missing package."""
    try:
        return import_module(f"async_maps.examples.{name}")
    except am.AsyncMapsError as error:
        pytest.skip(str(error))


def run(name: str, folder: Path) -> tuple[str, Path]:
    """Run an example as the page says; return what it printed, and the folder of its overlays."""
    ended = subprocess.run(
        [sys.executable, "-m", f"async_maps.examples.{name}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, folder / "async-maps-examples" / name


def arrays(pairs: Iterable[tuple[str, Any]]) -> Maps:
    """Return the maps by name, (h, w) each."""
    found = {}
    for name, array in pairs:
        values = np.asarray(array.detach() if hasattr(array, "detach") else array)
        found[name] = values.reshape(values.shape[-2:]).copy()
    return found


def assert_overlays(folder: Path, maps: Maps, settings: am.Settings) -> None:
    """Check that a folder has exactly the overlays of the maps."""
    assert {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png")} == set(maps)
    for name, values in maps.items():
        plane = np.empty(values.shape, np.uint8)
        quantize(values, plane, parse_range(settings.range))
        with Image.open(folder / f"{name}.png") as overlay:
            np.testing.assert_array_equal(np.asarray(overlay.convert("RGBA")), settings.table()[plane], name)


def images() -> Any:
    """Return all images of the examples, (24, 3, 64, 64)."""
    import torch

    return torch.cat([batch for _, batch in import_module("async_maps.examples.stand_ins").batches()])


def class_activation_maps(features: Any, weights: Any, logits: Any) -> NDArray[np.float32]:
    """Return the maps, (n, h, w), that Grad-CAM equals if a mean and one linear layer follow the features.

    Args:
        features: (n, channels, h, w).
        weights: of the linear layer, (classes, channels).
        logits: (n, classes); the maps are of the largest.
    """
    features, weights, best = (array.detach().numpy() for array in (features, weights, logits.argmax(1)))
    cams: NDArray[np.float32] = np.einsum("nchw,nc->nhw", features, weights[best]) / features[0, 0].size
    return np.maximum(cams, 0)


def test_each_example_of_the_page_is_run() -> None:
    lines = "\n".join(blocks(PAGE, "bash"))
    of_the_page = set(re.findall(r"^python -m async_maps\.examples\.(\w+)$", lines, re.MULTILINE))
    run_here = set(re.findall(r'= run\("(\w+)"', Path(__file__).read_text()))
    assert of_the_page - {"gradcam"} == run_here - {"pytorch_gradcam"}


def test_integrated_gradients_add_up_to_the_change_of_the_logit(tmp_path: Path) -> None:
    module = example("integrated_gradients")
    output, overlays = run("integrated_gradients", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    channels = {name: found.detach().numpy() for name, found in module.attributions()}
    assert {found.shape for found in channels.values()} == {(3, 64, 64)}
    maps = {name: found.sum(0, dtype=np.float64).astype(np.float32) for name, found in channels.items()}
    assert_overlays(overlays, maps, am.Settings(range="symmetric", colormap=module.BLUE_TO_RED))
    model, inputs = module.classifier(), images()
    logits = model(inputs)
    change = (logits - model(inputs * 0)).gather(1, logits.argmax(1, keepdim=True))[:, 0].detach().numpy()
    sums = [values.sum() for values in maps.values()]
    np.testing.assert_allclose(sums, change, atol=0.05 * np.abs(change).max())
    assert all(values.min() < 0 < values.max() for values in maps.values())


def test_grad_cams_of_captum_equal_class_activation_maps(tmp_path: Path) -> None:
    module = example("layer_gradcam")
    output, overlays = run("layer_gradcam", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    maps = arrays(module.cams())
    assert_overlays(overlays, maps, am.Settings(range="per-map"))
    model, inputs = module.classifier(), images()
    expected = class_activation_maps(model[0](inputs), model[-1].weight, model(inputs))
    np.testing.assert_allclose(np.stack(list(maps.values())), expected, atol=1e-6 * expected.max())


def test_attention_rollout_follows_the_papers_recursion(tmp_path: Path) -> None:
    module = example("attention_rollout")
    output, overlays = run("attention_rollout", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    maps = arrays(module.rollouts())
    assert_overlays(overlays, maps, am.Settings(range="per-map"))
    _, attentions = module.VisionTransformer().eval()(images())
    first, second = (0.5 * layer.detach().numpy().mean(1) + 0.5 * np.eye(65) for layer in attentions)
    expected = np.einsum("nij,njk->nik", second, first)[:, 0, 1:].reshape(-1, 8, 8)
    np.testing.assert_allclose(np.stack(list(maps.values())), expected, rtol=1e-5)
    # With the default range, no overlay would be visible.
    assert all(0 < values.sum() < 1 for values in maps.values())
    assert max(values.max() for values in maps.values()) < 0.1


def test_grad_cams_of_keras_equal_class_activation_maps(tmp_path: Path) -> None:
    module = example("keras_gradcam")
    output, overlays = run("keras_gradcam", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    models = []
    original = module.grad_cam

    def watched(model: Any, *arguments: Any) -> Any:
        models.append(model)
        return original(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "grad_cam", watched)
        maps = arrays(module.cams())
    assert_overlays(overlays, maps, am.Settings(range="per-map"))
    *convolutions, _, head = models[0].layers
    features = images().permute(0, 2, 3, 1)
    for layer in convolutions:
        features = layer(features)
    logits = models[0](images().permute(0, 2, 3, 1))
    expected = class_activation_maps(features.permute(0, 3, 1, 2), head.kernel.value.T, logits)
    np.testing.assert_allclose(np.stack(list(maps.values())), expected, atol=1e-6 * expected.max())


def test_logits_and_entropies_have_their_own_scales(tmp_path: Path) -> None:
    module = example("segmentation")
    output, overlays = run("segmentation", tmp_path)
    assert output.startswith(f"{4 * IMAGES} uploaded, 0 skipped, 0 failed\n")
    assert f"\n{IMAGES} uploaded, 0 skipped, 0 failed\n" in output
    logits, entropies = arrays(module.class_logits()), arrays(module.entropies())
    assert_overlays(overlays / "logits", logits, am.Settings(range=(-8, 8), colormap="viridis", alpha=0.6))
    assert_overlays(overlays / "entropy", entropies, am.Settings(colormap="inferno"))
    for name, entropy in entropies.items():
        exponents = np.exp(np.stack([logits[f"{name}/{label}"] for label in module.CLASSES]).astype(np.float64))
        shares = exponents / exponents.sum(0)
        np.testing.assert_allclose(entropy, -(shares * np.log(shares)).sum(0) / log(4), atol=1e-5)
    values = np.stack(list(logits.values()))
    # The range fits: few values are clipped, and they use a good part of it.
    assert np.mean(np.abs(values) > 8) < 0.02
    assert np.ptp(values) > 8


def test_density_maps_share_the_scale_of_the_whole_set(tmp_path: Path) -> None:
    module = example("density")
    maps_folder = tmp_path / "maps"
    module.save_densities(maps_folder)
    files = maps_folder.rglob("*.npy")
    maps = {path.relative_to(maps_folder).with_suffix("").as_posix(): np.load(path) for path in files}
    low, high = (float(choose([choose(values) for values in maps.values()])) for choose in (np.min, np.max))
    output, overlays = run("density", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    assert f"\ncolors span {low:g} to {high:g}\n" in output
    assert_overlays(overlays, maps, am.Settings(range=(low, high)))
    counts = [values.sum() for values in maps.values()]
    assert max(counts) > 2 * min(counts) > 0


def test_grad_cams_of_pytorch_grad_cam_are_scaled_to_0_to_1(tmp_path: Path) -> None:
    module = example("pytorch_gradcam")
    output, overlays = run("pytorch_gradcam", tmp_path)
    assert output.startswith(f"{IMAGES} uploaded, 0 skipped, 0 failed\n")
    found = dict(module.cams())
    assert {(array.shape, array.dtype.name) for array in found.values()} == {((64, 64), "float32")}
    assert all(array.min() == 0 and 0.99 < array.max() <= 1 for array in found.values())
    assert_overlays(overlays, arrays(found.items()), am.Settings())


def test_a_torchvision_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "pytorch_grad_cam.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "async_maps.examples.pytorch_gradcam"]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    expected = "error: a library of this example cannot be imported: operator torchvision::nms does not exist\n"
    assert ended.stderr == expected
