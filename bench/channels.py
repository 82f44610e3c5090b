"""What does the reduction of channels cost, compared with NumPy's?

Each row is one map. "NumPy, float64" computes the same result; "NumPy" computes in the dtype of the values, as most
people write it. All use one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from async_maps.render.channels import reduce_channels
from bench.measure import interleaved, parser, ratio_of
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from async_maps.render.channels import Channels

_SHAPES = {"(3, 512, 512)": 0, "(512, 512, 3)": 2, "(512, 56, 56)": 0}
_DTYPES = ("float32", "float16", "float64")
_BY: tuple[Channels, ...] = ("sum", "norm", "maxabs", "mean")
_COLUMNS = {"": "", "shape": "", "dtype": "", "async_maps ms": ".3f", "NumPy, float64 ms": ".3f", "NumPy ms": ".3f",
            "x our time, float64": ".1f", "x our time": ".1f"}  # fmt: skip


def in_dtype(values: NDArray[Any], by: Channels, axis: int) -> NDArray[Any]:
    """Reduce in the dtype of the values."""
    found: NDArray[Any]
    if by == "norm":
        found = np.linalg.norm(values, axis=axis)
    elif by == "maxabs":
        found = np.abs(values).max(axis)
    else:
        found = values.sum(axis) if by == "sum" else values.mean(axis)
    return found


def in_float64(values: NDArray[Any], by: Channels, axis: int) -> NDArray[Any]:
    """Reduce in float64, and return the dtype that async_maps returns."""
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    found: NDArray[Any]
    if by in {"sum", "mean"}:
        found = (values.sum if by == "sum" else values.mean)(axis, dtype=np.float64).astype(dtype)
        return found
    return in_dtype(values.astype(np.float64), by, axis).astype(dtype)


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench channels``."""
    options = parser("channels", __doc__).parse_args(arguments)
    bench, rounds = Bench("channels", options.quick), 2 if options.quick else 9
    table = bench.table(f"ms for a map with channels, one thread, {rounds} rounds", _COLUMNS)
    for shape, axis in _SHAPES.items():
        sizes = tuple(int(size) for size in shape.strip("()").split(", "))
        for dtype in _DTYPES:
            values = np.random.default_rng(0).standard_normal(sizes).astype(dtype)
            for by in _BY:
                work: dict[str, Callable[[], object]] = {
                    "async_maps ms": lambda by=by, values=values: reduce_channels(values, by),  # type: ignore[misc]
                    "NumPy, float64 ms": lambda by=by, values=values, axis=axis: in_float64(values, by, axis),  # type: ignore[misc]
                    "NumPy ms": lambda by=by, values=values, axis=axis: in_dtype(values, by, axis),  # type: ignore[misc]
                }
                times = interleaved(work, rounds)
                ours = times["async_maps ms"]
                table.add(
                    **{"": by, "shape": shape, "dtype": dtype},
                    **times,
                    **{
                        "x our time, float64": ratio_of(times["NumPy, float64 ms"], ours),
                        "x our time": ratio_of(times["NumPy ms"], ours),
                    },
                )
    bench.publish()
