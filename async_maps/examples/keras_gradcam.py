"""Grad-CAM of a Keras model on PyTorch: ``python -m async_maps.examples.keras_gradcam [DESTINATION]``.

- Method: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, as in https://keras.io/examples/vision/grad_cam
- Array: (n, h, w) in the size of the last convolution. Values are 0 or more, on any scale.
- Settings: ``range="per-map"``, in place of the division by the maximum in Keras' example.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it when it is imported
with libraries(__name__):
    import keras
    import torch
    from keras import layers

    from async_maps.examples.stand_ins import batches

if TYPE_CHECKING:
    from collections.abc import Iterator


def grad_cam(model: keras.Model, layer: str, images: torch.Tensor) -> torch.Tensor:
    """Return the Grad-CAMs, (n, h, w), of the predicted classes; the images are (n, height, width, channels)."""
    both = keras.Model(model.inputs, [model.get_layer(layer).output, *model.outputs])
    features, logits = both(images)
    (gradients,) = torch.autograd.grad(logits.amax(1).sum(), features)
    cams: torch.Tensor = (features * gradients.mean((1, 2), keepdim=True)).sum(-1).relu()
    return cams


def cams() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and a map, (h, w), for each image."""
    keras.utils.set_random_seed(0)
    features = [layers.Conv2D(16, 3, 2, activation="relu"), layers.Conv2D(32, 3, 2, activation="relu", name="last")]
    model = keras.Sequential([keras.Input((64, 64, 3)), *features, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    for names, images in batches():
        yield from zip(names, grad_cam(model, "last", images.permute(0, 2, 3, 1)), strict=True)


def main(destination: str = "async-maps-examples/keras_gradcam", /) -> int:
    """Upload the Grad-CAMs of 24 images to a bucket or a folder."""
    report = am.run(cams(), destination, settings=am.Settings(range="per-map", workers=0))
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
