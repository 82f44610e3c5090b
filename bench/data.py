"""Seeded activation maps of three common kinds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

KINDS = ("cam", "segmentation", "saliency")


def make_map(index: int, size: int) -> NDArray[np.float32]:
    """Return a map, (size, size) float32 in [0, 1]: in turn a CAM, a segmentation probability or a noisy saliency."""
    rng = np.random.default_rng(index)
    kind = KINDS[index % len(KINDS)]
    values: NDArray[np.floating[Any]]
    if kind == "cam":
        values = _enlarge(rng.random((7, 7), np.float32), size)
    elif kind == "segmentation":
        values = 1 / (1 + np.exp(-6 * _enlarge(rng.standard_normal((32, 32), np.float32), size)))
    else:
        values = np.abs(0.15 * rng.standard_normal((size, size), np.float32))
    return np.clip(values, 0, 1).astype(np.float32)


def upsampled_cam(index: int) -> NDArray[np.float32]:
    """Return a CAM of 14x14 enlarged linearly to (224, 224) float32 in [0, 1], as classifiers' explanations are."""
    grid = np.random.default_rng(index).random((14, 14), np.float32)
    return np.asarray(Image.fromarray(grid).resize((224, 224), Image.Resampling.BILINEAR), np.float32)


def write_maps(folder: Path, count: int, size: int) -> None:
    """Write ``count`` maps as .npy files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        np.save(folder / f"{index:06}.npy", make_map(index, size))


def link_maps(files: Path, folder: Path, count: int, *, per_folder: int = 10_000) -> None:
    """Create ``count`` maps as hard links to a few files, which takes little time and space.

    Args:
        files: a folder written by :func:`write_maps`.
        folder: the folder to create.
        count: the number of maps.
        per_folder: the number of maps in each subfolder.
    """
    sources = sorted(files.iterdir())
    for index in range(count):
        part = folder / f"{index // per_folder:04}" if count > per_folder else folder
        if index % per_folder == 0:
            part.mkdir(parents=True)
        os.link(sources[index % len(sources)], part / f"{index:06}.npy")


def write_stack(files: Path, stack: Path, count: int) -> None:
    """Write ``count`` maps as one .npy file, (count, size, size) float32.

    Args:
        files: a folder written by :func:`write_maps`.
        stack: the file to write.
        count: the number of maps.
    """
    sources = [np.load(file, mmap_mode="r") for file in sorted(files.iterdir())]
    maps = np.lib.format.open_memmap(stack, "w+", np.float32, (count, *sources[0].shape))
    for index in range(count):
        maps[index] = sources[index % len(sources)]


def _enlarge(grid: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC), np.float32)
