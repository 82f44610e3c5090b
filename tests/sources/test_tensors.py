"""PyTorch tensors are quantized on their device with the same result as NumPy; arrays of other libraries are accepted.

CAM libraries return the following for a batch of b images (checked by hand with PyTorch 2.14.1):

- grad-cam 1.5.7, ``GradCAM(...)(input_tensor, targets)``: a NumPy array, (b, h, w) float32, 0 to 1, in the size of the
  image.
- captum 0.9.0, ``LayerGradCam(...).attribute(inputs, target)``: a tensor of the model's dtype, (b, 1, h', w'), in the
  size of the layer's output; signed, of any scale, and it requires a gradient. ``interpolate`` makes it larger.
- torchcam 0.5.0, ``GradCAM(...)(class_idx, scores)``: a list with a tensor of the model's dtype, (b, h', w'), for each
  layer, 0 to 1; of any scale with ``normalized=False``. NaN in the layer counts as 0.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.outcomes import Failure
from async_maps.render.quantize import quantize
from async_maps.render.ranges import ValueRange, parse_range
from async_maps.render.statistics import summarize
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

RANGES = ("unit", "-2,2", "per-map", "percentile:1,99", "percentile:12.5,50", "symmetric")


class Converted:
    """An array with ``__array__``, as in JAX and TensorFlow."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self._array


class Exchanged:
    """An array with DLPack's protocol only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Elsewhere:
    """An array that refuses implicit copies, as CuPy's do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        raise TypeError("implicit conversion is not allowed")


@pytest.mark.parametrize("kind", [Converted, Exchanged])
def test_arrays_of_other_libraries_are_read(kind: Any) -> None:
    array = np.random.default_rng(0).random((3, 4))
    entry = array_map("a", kind(array))
    assert isinstance(entry, ActivationMap)
    assert entry.array is not None
    np.testing.assert_array_equal(entry.array, array)


def test_an_array_on_another_device_is_refused_with_advice() -> None:
    entry = array_map("a", Elsewhere())
    assert isinstance(entry, Failure)
    assert entry.reason == (
        "the Elsewhere cannot be converted to a NumPy array: implicit conversion is not allowed; if it is on another "
        "device, copy it to the CPU first"
    )


@pytest.mark.parametrize("what", [[[0.5]], 0.5, None, "text"])
def test_the_type_of_a_non_array_is_named(what: Any) -> None:
    entry = array_map("a", what)
    assert isinstance(entry, Failure)
    assert entry.reason.startswith(f"an activation map must be a NumPy array or a tensor; found {type(what).__name__}")


@pytest.mark.parametrize(
    ("shape", "expected_shape"),
    [
        ((1, 3, 4), (3, 4)),
        ((1, 1, 3, 4), (3, 4)),
        ((1, 1, 1, 3, 4), (3, 4)),
        ((1, 1, 4), (1, 4)),
        ((1, 1, 1, 1), (1, 1)),
        ((1, 1, 3, 1), (3, 1)),
        ((3, 4), (3, 4)),
        ((1, 4), (1, 4)),
        # Kolena accepts a channel as the last axis.
        ((3, 4, 1), (3, 4, 1)),
        ((1, 4, 1), (1, 4, 1)),
        ((1, 3, 4, 1), (3, 4, 1)),
    ],
)
@pytest.mark.parametrize(
    "kind", [np.asarray, np.asfortranarray, Converted, lambda array: [array], lambda array: (array,)]
)
def test_leading_axes_of_length_one_are_dropped_without_a_copy(
    kind: Any, shape: tuple[int, ...], expected_shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    entry = array_map("a", kind(array))
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    assert entry.array.shape == expected_shape
    np.testing.assert_array_equal(entry.array.ravel(), array.ravel())
    if kind is not np.asfortranarray:
        assert np.shares_memory(entry.array, array)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 7, 7), (1, 2, 3, 4), (2, 3, 4, 1), (1, 2, 1, 3, 4)])
def test_a_batch_of_several_maps_is_refused_with_advice(shape: tuple[int, ...]) -> None:
    entry = array_map("a", np.zeros(shape, np.float32))
    assert isinstance(entry, Failure)
    assert entry.reason == (
        "an activation map must have the shape (h, w) or (h, w, 1), or that with leading axes of length 1; found "
        f"{shape}: put each map with its own name (for name, cam in zip(names, cams))"
    )


def test_a_list_of_two_maps_is_refused_with_advice() -> None:
    entry = array_map("a", [np.zeros((1, 14, 14)), np.zeros((1, 7, 7))])
    assert isinstance(entry, Failure)
    assert entry.reason == (
        "expected one activation map, found a list of 2: put each map with its own name "
        "(for name, cam in zip(names, cams))"
    )


@pytest.mark.parametrize("what", [[], (), [0.5], [[0.5, 0.2], [0.1, 0.3]], [[np.zeros((2, 2))]]])
def test_other_lists_are_refused(what: Any) -> None:
    entry = array_map("a", what)
    assert isinstance(entry, Failure)
    assert entry.reason.startswith(f"an activation map must be a NumPy array or a tensor; found {type(what).__name__}")


def test_an_empty_batch_is_refused() -> None:
    entry = array_map("a", np.zeros((0, 1, 7, 7), np.float32))
    assert isinstance(entry, Failure)
    assert entry.reason == "the activation map is empty: its shape is (0, 1, 7, 7)"


@pytest.mark.usefixtures(leaves_nothing.__name__)
async def test_arrays_as_grad_cam_and_torchcam_return_them_are_uploaded(tmp_path: Path) -> None:
    cams = np.random.default_rng(0).random((3, 20, 30)).astype(np.float32)
    names = ("a", "b", "c")
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0)) as pipeline:
        await pipeline.put("one", cams[:1])
        await pipeline.put("listed", [cams[1:2]])
        report = await pipeline.run(zip(names, cams, strict=True))
        with pytest.raises(am.MapFailedError, match=r"found \(3, 20, 30\): put each map with its own name"):
            await pipeline.put("batch", cams)
        with pytest.raises(am.MapFailedError, match=r"found -0\.5 at index \(0, 1\).*set range to per-map, symmetric"):
            await pipeline.put("signed", np.array([[[0.5, -0.5]]], np.float32))
    assert (report.uploaded, report.failed) == (3, 0)
    for name, cam in zip((*names, "one", "listed"), (*cams, cams[0], cams[1]), strict=True):
        with Image.open(tmp_path / f"{name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), am.colorize_activation_map(cam))


# PyTorch is large, so CI installs it for the slow tests only.


def assert_equals_array(tensor: Any, array: NDArray[Any], value_range: ValueRange) -> None:
    """Check that the tensor's intensities and statistics equal the array's."""
    entry = array_map("a", tensor, value_range)
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    assert entry.array.dtype == np.uint8
    assert entry.max_bytes == array.size
    plane = np.empty(array.shape[:2], np.uint8)
    measured = quantize(array, plane, value_range)
    np.testing.assert_array_equal(entry.array, plane)
    assert entry.measured is not None
    theirs, _ = summarize(np.ascontiguousarray(entry.array), entry.measured)
    ours, _ = summarize(plane, measured)
    for their, our in zip(theirs, ours, strict=True):
        assert (their is None and our is None) or their == pytest.approx(our, rel=1e-6, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_intensities_of_a_float_tensor_equal_its_arrays(dtype: str, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    for seed, shape in enumerate([(1, 1), (7, 9), (64, 33), (5, 6, 1), (1, 5, 6), (1, 1, 5, 6)]):
        generator = torch.Generator().manual_seed(seed)
        values = (
            torch.rand(shape, generator=generator) if value_range == "unit" else torch.randn(shape, generator=generator)
        )
        tensor = values.to(getattr(torch, dtype)).requires_grad_()
        plain = tensor.detach().float() if dtype == "bfloat16" else tensor.detach()
        array = plain.numpy()
        assert_equals_array(tensor, array.reshape(5, 6) if array.ndim > 2 else array, parse_range(value_range))
        assert_equals_array([tensor], array.reshape(5, 6) if array.ndim > 2 else array, parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("value_range", RANGES[1:])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_intensities_of_an_integer_tensor_equal_its_arrays(dtype: str, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(-40, 44).reshape(7, 12).to(getattr(torch, dtype))
    assert_equals_array(tensor, tensor.numpy(), parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-300, 1e300])
@pytest.mark.parametrize("value_range", ["per-map", "symmetric", "percentile:1,99"])
def test_intensities_of_a_constant_tensor_equal_its_arrays(value: float, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full((3, 4), value, dtype=torch.float64)
    assert_equals_array(tensor, tensor.numpy(), parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "bool", "uint16", "uint32", "uint64"])
def test_tensors_of_dtypes_without_torch_arithmetic_are_copied(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    entry = array_map("a", tensor, parse_range("per-map"))
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    np.testing.assert_array_equal(entry.array, tensor.numpy())


@pytest.mark.slow
def test_a_tensor_subclass_is_quantized_as_a_tensor() -> None:
    torch = pytest.importorskip("torch")

    class Own(torch.Tensor):  # type: ignore[misc,name-defined]
        """A subclass, as MONAI's MetaTensor is."""

    tensor = torch.rand(3, 4).as_subclass(Own).requires_grad_()
    entry = array_map("a", tensor, parse_range("unit"))
    assert isinstance(entry, ActivationMap), entry
    assert entry.measured is not None


@pytest.mark.slow
def test_a_tensor_with_invalid_values_or_no_range_is_copied() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.rand(3, 4)
    tensor[1, 2] = torch.nan
    for value_range in (None, parse_range("unit"), parse_range("per-map")):
        entry = array_map("a", tensor, value_range)
        assert isinstance(entry, ActivationMap)
        assert entry.measured is None
        assert entry.array is not None
        np.testing.assert_array_equal(entry.array, tensor.numpy())
    entry = array_map("a", torch.tensor([[0.5, 2.0]]), parse_range("unit"))
    assert isinstance(entry, ActivationMap)
    assert entry.measured is None
    for bad in (torch.rand(2, 3, 4), torch.rand(0, 3), torch.rand(3, 4).to(torch.complex64)):
        assert isinstance(array_map("a", bad, parse_range("unit")), Failure)


@pytest.mark.slow
async def test_tensors_and_arrays_give_equal_overlays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    maps = [torch.randn(20, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    settings = am.Settings(range="per-map", workers=1)
    async with am.Pipeline(tmp_path / "a", settings=settings) as pipeline:
        receipt = await pipeline.put("first", maps[0])
        report = await pipeline.run([(f"{i}", tensor) for i, tensor in enumerate(maps)])
    assert report.uploaded == 12
    assert receipt.statistics is not None
    assert receipt.statistics.maximum == maps[0].max().item()
    async with am.Pipeline(tmp_path / "b", settings=settings) as pipeline:
        await pipeline.run([(f"{i}", tensor.numpy()) for i, tensor in enumerate(maps)])
    for i in range(12):
        assert (tmp_path / "a" / f"{i}.png").read_bytes() == (tmp_path / "b" / f"{i}.png").read_bytes()


def cams_of_library(library: str, images: int) -> tuple[Any, NDArray[np.float32]]:
    """Return a CAM library's result for a model and that number of images, and its maps, (images, h, w)."""
    torch = pytest.importorskip("torch")
    cam = pytest.importorskip(library)
    torch.manual_seed(0)
    nn = torch.nn
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model, batch = nn.Sequential(*layers).eval(), torch.rand(images, 3, 18, 26)
    if library == "captum":
        attributed = importlib.import_module("captum.attr").LayerGradCam(model, layers[0]).attribute(batch, target=1)
        assert attributed.requires_grad
        assert attributed.min() < 0
        return attributed, attributed[:, 0].detach().numpy()
    if library == "pytorch_grad_cam":
        with cam.GradCAM(model=model, target_layers=[layers[0]]) as explainer:
            found = explainer(input_tensor=batch, targets=None)
        return found, found
    with importlib.import_module("torchcam.methods").GradCAM(model, target_layer="0") as extractor:
        listed = extractor(class_idx=[1] * images, scores=model(batch))
    return listed, listed[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["captum", "pytorch_grad_cam", "torchcam"])
async def test_results_of_cam_libraries_are_accepted_unchanged(library: str, tmp_path: Path) -> None:
    one, (expected,) = cams_of_library(library, 1)
    several, planes = cams_of_library(library, 3)
    assert planes.shape == ((3, 18, 26) if library == "pytorch_grad_cam" else (3, 16, 24))
    batch = several[0] if isinstance(several, list) else several
    async with am.Pipeline(tmp_path, settings=am.Settings(range="per-map", workers=0)) as pipeline:
        receipt = await pipeline.put("one", one)
        report = await pipeline.run(zip("abc", batch, strict=True))
        with pytest.raises(am.MapFailedError, match="put each map with its own name"):
            await pipeline.put("several", several)
    assert report.uploaded == 3
    for name, array in zip(("one", *"abc"), (expected, *planes), strict=True):
        plane = np.empty(array.shape, np.uint8)
        quantize(array, plane, parse_range("per-map"))
        with Image.open(tmp_path / f"{name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), am.colorize_activation_map(plane))
    assert receipt.statistics is not None
    assert receipt.statistics.minimum == expected.min()
