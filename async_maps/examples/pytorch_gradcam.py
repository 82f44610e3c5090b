"""Grad-CAM with pytorch-grad-cam: ``python -m async_maps.examples.pytorch_gradcam [DESTINATION]``.

It needs the extra ``grad-cam``, and a torchvision that was built for the installed PyTorch.

- Method: https://github.com/jacobgil/pytorch-grad-cam. Its other methods, such as EigenCAM, return the same array.
- Array: NumPy's, (n, h, w) float32, in the size of the images. Each map is scaled to 0 to 1.
- Settings: the default range, 0 to 1. The scale of each map is lost, so maps do not tell which image is stronger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__, "grad-cam"):
    from pytorch_grad_cam import GradCAM

    from async_maps.examples.stand_ins import batches, classifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


def cams() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield a name and a map, (h, w) from 0 to 1, for each image: where the evidence for its predicted class is."""
    model = classifier()
    with GradCAM(model=model, target_layers=[model[0]]) as explainer:
        for names, images in batches():
            yield from zip(names, explainer(input_tensor=images, targets=None), strict=True)


def main(destination: str = "async-maps-examples/pytorch_gradcam", /) -> int:
    """Upload the Grad-CAMs of 24 images to a bucket or a folder."""
    report = am.run(cams(), destination, settings=am.Settings(workers=0))
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
