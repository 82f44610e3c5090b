"""Compiles a function for one signature, or loads it from the cache (:mod:`.kernel_cache`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba import types

from async_maps.render.kernel_cache import KernelCache

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def kernel(signature: Any, *, name: str = "", **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for one signature, with the cache if possible, else without.

    Every error of the cache (a damaged file, another version of numba) leads to a second compilation without the cache,
    which raises the errors of the kernel itself. ``name`` replaces the function's name, also in the cache.
    """

    def compile_(function: Callable[P, R]) -> Callable[P, R]:
        function.__name__ = function.__qualname__ = name or function.__name__
        try:
            compiled = numba.njit(nogil=True, **options)(function)
            with KernelCache(function, options) as cache:
                compiled._cache = cache
                compiled.compile(signature)
            compiled.disable_compile()
        except Exception:  # noqa: BLE001  # a damaged cache can cause any error
            compiled = numba.njit(signature, nogil=True, **options)(function)
        return cast("Callable[P, R]", compiled)

    return compile_


def readonly(dtype: Any) -> Any:
    """Return numba's type of a flat array that a kernel only reads."""
    return types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C", readonly=True)
