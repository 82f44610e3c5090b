"""Logits and uncertainty of a segmentation network: ``python -m async_maps.examples.segmentation [DESTINATION]``.

- Arrays: logits (n, classes, h, w), of any sign. Entropy of the class probabilities, (n, h, w), divided by its largest
  possible value: 0 where the network is certain, 1 where all classes are equally likely.
- Maps: one for each image and class, ``val/0001/car``, and one entropy for each image, ``val/0001``.
- Settings: a fixed range for logits, the same for all classes and images. The default range for entropies.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__):
    import torch

    from async_maps.examples.stand_ins import batches, segmenter

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = ("road", "car", "person", "tree")


@torch.no_grad()
def class_logits() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and a map, (h, w), for each image and class."""
    model = segmenter(len(CLASSES))
    for names, images in batches():
        for name, planes in zip(names, model(images), strict=True):
            yield from zip((f"{name}/{label}" for label in CLASSES), planes, strict=True)


@torch.no_grad()
def entropies() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and a map, (h, w) from 0 to 1, for each image."""
    model = segmenter(len(CLASSES))
    for names, images in batches():
        found = torch.special.entr(model(images).softmax(1)).sum(1) / log(len(CLASSES))
        yield from zip(names, found.clamp(0, 1), strict=True)  # rounding may lead above 1


def main(destination: str = "async-maps-examples/segmentation", /) -> int:
    """Upload the logits and entropies of 24 images below a prefix in a bucket or a folder."""
    settings = am.Settings(range=(-8, 8), colormap="viridis", alpha=0.6, workers=0)
    logits = am.run(class_logits(), f"{destination}/logits", settings=settings)
    uncertainty = am.run(entropies(), f"{destination}/entropy", settings=am.Settings(colormap="inferno", workers=0))
    print(logits.summary(), uncertainty.summary(), sep="\n")
    return 1 if logits.failed or uncertainty.failed else 0


if __name__ == "__main__":
    run_program(main)
