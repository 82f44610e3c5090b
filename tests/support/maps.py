"""Maps to put in, and overlays as pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def random_map(seed: int, shape: tuple[int, int] = (20, 30)) -> NDArray[np.float32]:
    """Values from 0 to 1, float32 (height, width), the same for the same seed."""
    return np.random.default_rng(seed).random(shape, np.float32)


def npy(array: NDArray[Any] = MAP) -> bytes:
    """The array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    """The arrays as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keywords for its own
    return file.getvalue()


def decode(png: bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG, uint8 (height, width, 4)."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))
