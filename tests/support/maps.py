"""Maps to upload, and the pixels of overlays."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def random_map(seed: int, shape: tuple[int, int] = (20, 30)) -> NDArray[np.float32]:
    """Return values from 0 to 1, float32 (height, width), equal for equal seeds."""
    return np.random.default_rng(seed).random(shape, np.float32)


def npy(array: NDArray[Any] = MAP) -> bytes:
    """Return the array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    """Return the arrays as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub mistakes the keywords for its own
    return file.getvalue()


def decode(png: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, uint8 (height, width, 4)."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))
