"""Grad-CAM with captum: ``python -m async_maps.examples.layer_gradcam [DESTINATION]``.

- Method: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks", https://arxiv.org/abs/1610.02391
- Array: (n, 1, h, w) in the size of the layer. Values are 0 or more after the ReLU, on any scale. captum applies the
  ReLU of the paper only with ``relu_attributions=True``.
- Map: (1, h, w), taken as it is. An overlay may be smaller than its image: viewers scale it.
- Settings: ``range="per-map"``. To compare images, see ``density.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__):
    from captum.attr import LayerGradCam

    from async_maps.examples.stand_ins import batches, classifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def cams() -> Iterator[tuple[str, Tensor]]:
    """Yield a name and a map, (1, h, w), for each image: where the evidence for its predicted class is."""
    model = classifier()
    explainer = LayerGradCam(model, model[0])
    for names, images in batches():
        found = explainer.attribute(images, target=model(images).argmax(1), relu_attributions=True)
        yield from zip(names, found, strict=True)


def main(destination: str = "async-maps-examples/layer_gradcam", /) -> int:
    """Upload the Grad-CAMs of 24 images to a bucket or a folder."""
    report = am.run(cams(), destination, settings=am.Settings(range="per-map", workers=0))
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
