"""PyTorch's tensors are quantised where they lie, and come to what NumPy comes to; so do arrays of any library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.quantise import quantise, summarise
from async_maps.ranges import ValueRange, parse_range
from async_maps.records import ActivationMap, Failure
from async_maps.sources.arrays import array_map

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGES = ("unit", "-2,2", "per-map", "percentile:1,99", "percentile:12.5,50", "symmetric")


class Converted:
    """What has ``__array__``, as JAX and TensorFlow do."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self._array


class Exchanged:
    """What has DLPack's protocol only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Elsewhere:
    """What refuses to be copied, as CuPy's arrays do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        raise TypeError("implicit conversion is not allowed")


@pytest.mark.parametrize("kind", [Converted, Exchanged])
def test_arrays_of_other_libraries_are_taken(kind: Any) -> None:
    array = np.random.default_rng(0).random((3, 4))
    entry = array_map("a", kind(array))
    assert isinstance(entry, ActivationMap)
    assert entry.array is not None
    np.testing.assert_array_equal(entry.array, array)


def test_an_array_that_cannot_be_copied_says_what_to_do() -> None:
    entry = array_map("a", Elsewhere())
    assert isinstance(entry, Failure)
    assert entry.reason == (
        "the Elsewhere cannot be made a NumPy array; copy it to the CPU first: implicit conversion is not allowed"
    )


@pytest.mark.parametrize("what", [[[0.5]], 0.5, None, "text"])
def test_what_is_no_array_is_named_by_its_type(what: Any) -> None:
    entry = array_map("a", what)
    assert isinstance(entry, Failure)
    assert entry.reason == f"an activation map must be a NumPy array or a tensor; found {type(what).__name__}"


# PyTorch is large: CI installs it for the slow tests.


def agree(tensor: Any, array: NDArray[Any], value_range: ValueRange) -> None:
    """A tensor's intensities and statistics are those of the array."""
    entry = array_map("a", tensor, value_range)
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    assert entry.array.dtype == np.uint8
    assert entry.max_bytes == array.size
    plane = np.empty(array.shape[:2], np.uint8)
    measured = quantise(array, plane, value_range)
    np.testing.assert_array_equal(entry.array, plane)
    assert entry.measured is not None
    theirs, _ = summarise(np.ascontiguousarray(entry.array), entry.measured)
    ours, _ = summarise(plane, measured)
    for their, our in zip(theirs, ours, strict=True):
        assert (their is None and our is None) or their == pytest.approx(our, rel=1e-6, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_tensors_intensities_are_those_of_its_array(dtype: str, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    for seed, shape in enumerate([(1, 1), (7, 9), (64, 33), (5, 6, 1)]):
        generator = torch.Generator().manual_seed(seed)
        values = (
            torch.rand(shape, generator=generator) if value_range == "unit" else torch.randn(shape, generator=generator)
        )
        tensor = values.to(getattr(torch, dtype)).requires_grad_()
        plain = tensor.detach().float() if dtype == "bfloat16" else tensor.detach()
        agree(tensor, plain.numpy(), parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("value_range", RANGES[1:])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_integer_tensors_too(dtype: str, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(-40, 44).reshape(7, 12).to(getattr(torch, dtype))
    agree(tensor, tensor.numpy(), parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-300, 1e300])
@pytest.mark.parametrize("value_range", ["per-map", "symmetric", "percentile:1,99"])
def test_a_constant_tensor_too(value: float, value_range: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full((3, 4), value, dtype=torch.float64)
    agree(tensor, tensor.numpy(), parse_range(value_range))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "bool", "uint16", "uint32", "uint64"])
def test_tensors_that_torch_cannot_compute_with_are_copied(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    entry = array_map("a", tensor, parse_range("per-map"))
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    np.testing.assert_array_equal(entry.array, tensor.numpy())


@pytest.mark.slow
def test_a_tensor_of_a_class_of_ones_own_is_a_tensor() -> None:
    torch = pytest.importorskip("torch")

    class Own(torch.Tensor):  # type: ignore[misc,name-defined]
        """As MONAI's MetaTensor is."""

    tensor = torch.rand(3, 4).as_subclass(Own).requires_grad_()
    entry = array_map("a", tensor, parse_range("unit"))
    assert isinstance(entry, ActivationMap), entry
    assert entry.measured is not None


@pytest.mark.slow
def test_a_tensor_with_invalid_values_or_without_a_range_is_copied_as_it_is() -> None:
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
async def test_tensors_go_the_whole_way(tmp_path: Path) -> None:
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
