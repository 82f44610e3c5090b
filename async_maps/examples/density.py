"""Density maps on one scale for the whole set: ``python -m async_maps.examples.density [DESTINATION]``.

- Method: Zhang et al. 2016, "Single-Image Crowd Counting via Multi-Column Convolutional Neural Network" (CVPR). The sum
  of a map is the number of objects, so one scale for all maps shows which image has more of them.
- Array: (n, 1, h, w), smaller than the image. Values are 0 or more and have no upper limit.
- Settings: ``range="dataset"``: one scale, from the smallest to the largest value of all maps. It reads the maps twice,
  so they are saved first. A list of arrays works too, if all of them fit into memory.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__):
    import torch

    from async_maps.examples.stand_ins import batches, counter


@torch.no_grad()
def save_densities(folder: Path) -> None:
    """Save a map, (h, w) float32, for each image: ``val/0001.npy``."""
    model = counter()
    for names, images in batches():
        for name, density in zip(names, model(images)[:, 0].cpu().numpy(), strict=True):
            path = folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, density)


def main(destination: str = "async-maps-examples/density", /) -> int:
    """Upload the density maps of 24 images to a bucket or a folder."""
    with TemporaryDirectory() as folder:
        save_densities(Path(folder))
        report = am.run(folder, destination, settings=am.Settings(range="dataset", workers=0))
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
