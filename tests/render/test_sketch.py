"""Percentiles of any number of values, in bounded memory, within the stated error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.render.sketch import QuantileSketch
from tests.support.properties import examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

PERCENTILES = (0, 0.1, 25, 50, 99.9, 100)


def sketch_of(*parts: NDArray[np.float64]) -> QuantileSketch:
    sketch = QuantileSketch()
    for part in parts:
        sketch.add(np.ascontiguousarray(part))
    return sketch


def assert_within_the_error(sketch: QuantileSketch, values: NDArray[np.float64]) -> None:
    """Check the error that :meth:`QuantileSketch.percentile` states."""
    order = np.sort(values)
    for percentile in PERCENTILES:
        below = int(percentile / 100 * (values.size - 1))
        magnitude = np.abs(order[[below, min(below + 1, values.size - 1)]]).max()
        exact = float(np.percentile(values, percentile))
        assert abs(sketch.percentile(percentile) - exact) <= magnitude / 2048 + 3e-311
    assert (sketch.percentile(0), sketch.percentile(100)) == (order[0], order[-1])


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1.0, 1e300])
@pytest.mark.parametrize("kind", ["normal", "exponential", "uniform", "sparse", "wide", "constant"])
def test_every_percentile_is_within_the_stated_error(kind: str, scale: float) -> None:
    rng = np.random.default_rng(len(kind))
    values = {
        "normal": rng.standard_normal(5_003),
        "exponential": rng.exponential(size=5_003),
        "uniform": rng.random(5_003),
        "sparse": np.where(rng.random(5_003) < 0.9, 0, rng.random(5_003)),
        "wide": rng.standard_normal(5_003) * 10.0 ** rng.integers(-8, 7, 5_003),
        "constant": np.full(5_003, -0.7),
    }[kind] * scale
    assert_within_the_error(sketch_of(values), values)


@examples(8)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60))
def test_percentiles_of_any_values_are_within_the_stated_error(values: list[float]) -> None:
    array = np.array(values)
    assert_within_the_error(sketch_of(array), array)


def test_merged_sketches_equal_the_sketch_of_all_values() -> None:
    values = np.random.default_rng(0).standard_normal(9_000)
    whole, first, second = sketch_of(values), sketch_of(values[:1], values[1:4_000]), sketch_of(values[4_000:])
    first.add_dump(second.dump())
    assert first.dump() == whole.dump()
    assert first.count == 9_000


def test_a_dumped_sketch_can_be_loaded() -> None:
    values = np.random.default_rng(0).standard_normal(5_000) * 1e200
    sketch = sketch_of(values, np.array([-0.0, 0.0]))
    loaded = QuantileSketch.load(sketch.dump())
    assert loaded.dump() == sketch.dump()
    assert [loaded.percentile(p) for p in PERCENTILES] == [sketch.percentile(p) for p in PERCENTILES]
    empty = QuantileSketch.load(QuantileSketch().dump())
    assert (empty.count, empty.minimum, empty.maximum) == (0, math.inf, -math.inf)
    with pytest.raises(ValueError, match="an empty sketch has no percentiles"):
        empty.percentile(50)


@pytest.mark.parametrize("text", ["", "7", "[1, 2, 3]", '[1, 2, 3, "!!"]', '[1, 2, 3, "AAAA"]'])
def test_loading_an_invalid_sketch_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own, or ours
        QuantileSketch.load(text)


def test_the_sketch_size_does_not_grow_with_the_values() -> None:
    rng = np.random.default_rng(0)
    sketch = QuantileSketch()
    sizes = []
    for _ in range(4):
        sketch.add(rng.random(500_000))
        sizes.append(len(sketch.dump()))
    assert sizes[-1] < 1.5 * sizes[0] < 200_000
    assert sketch._counts.nbytes == 32 * 2**20
