"""Integrated gradients with captum: ``python -m async_maps.examples.integrated_gradients [DESTINATION]``.

- Method: Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365
- Array: (n, 3, h, w), as the images. Values have both signs and any scale.
- Settings: ``channels="sum"``, as captum's ``visualize_image_attr`` shows them. ``range="symmetric"``, because 0 is
  neutral; two opposite colors, transparent in the middle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__):
    from captum.attr import IntegratedGradients

    from async_maps.examples.stand_ins import batches, classifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

BLUE_TO_RED = ("#2166acff", "#4393c3b0", "#ffffff00", "#d6604db0", "#b2182bff")


def attributions() -> Iterator[tuple[str, Tensor]]:
    """Yield a name and a map, (3, h, w), for each image: the evidence for its predicted class."""
    model = classifier()
    explainer = IntegratedGradients(model)
    for names, images in batches():
        found = explainer.attribute(images, target=model(images).argmax(1), n_steps=32)
        yield from zip(names, found, strict=True)


def main(destination: str = "async-maps-examples/integrated_gradients", /) -> int:
    """Upload the integrated gradients of 24 images to a bucket or a folder."""
    settings = am.Settings(channels="sum", range="symmetric", colormap=BLUE_TO_RED, workers=0)
    report = am.run(attributions(), destination, settings=settings)
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
