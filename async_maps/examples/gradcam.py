"""Grad-CAMs of a small CNN, uploaded while they are computed: ``python -m async_maps.examples.gradcam [DESTINATION]``.

A CNN learns the 8x8 digits of scikit-learn on a CPU in seconds. captum explains the true and the predicted class of
each test image. The pipeline advances the iterator, and so the model, in a thread, only when there is room for maps.
"""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

import async_maps as am
from async_maps.demo.scenes import contact_sheet
from async_maps.examples import libraries, run_program

with libraries(__name__):
    import torch
    from captum.attr import LayerGradCam
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRAINED = 1100
_BATCH = 64
_TILE = (160, 160)


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 shuffled images, (n, 1, 40, 40) float32 from 0 to 1, and their classes, (n,) int64."""
    found = load_digits()
    small = functional.pad(torch.from_numpy(found.images).float()[:, None] / 16, (1, 1, 1, 1))
    images = functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
    order = torch.randperm(len(images))
    return images[order], torch.from_numpy(found.target)[order]


def train(images: Tensor, classes: Tensor, epochs: int = 6) -> nn.Sequential:
    """Train a CNN; the output of its first module, (n, 64, 10, 10), is the layer for Grad-CAM."""
    features: list[nn.Module] = []
    for channels, filters, size, stride in ((1, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 1)):
        features += [nn.Conv2d(channels, filters, size, stride, size // 2), nn.BatchNorm2d(filters), nn.ReLU()]
    model = nn.Sequential(nn.Sequential(*features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    batches = DataLoader(TensorDataset(images, classes), _BATCH, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=epochs, steps_per_epoch=len(batches))
    for _ in range(epochs):
        for seen, wanted in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(seen), wanted).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def grad_cams(model: nn.Sequential, images: Tensor, classes: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield names and Grad-CAMs, (1, 40, 40), two for each image: ``0007/true-3`` and ``0007/predicted-8``."""
    explainer = LayerGradCam(model, model[0])
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for label, targets in (("true", classes[start : start + _BATCH]), ("predicted", model(batch).argmax(1))):
            cams = explainer.attribute(batch, targets, relu_attributions=True)
            cams = explainer.interpolate(cams, batch.shape[2:], interpolate_mode="bilinear")
            for index, (target, cam) in enumerate(zip(targets.tolist(), cams, strict=True), start):
                yield f"{index:04}/{label}-{target}", cam


def draw(model: nn.Sequential, images: Tensor, classes: Tensor) -> Image.Image:
    """Draw eight correctly classified images, and four others with the Grad-CAMs of both classes."""
    wrong = model(images).argmax(1) != classes
    chosen = torch.cat([(~wrong).nonzero()[:8, 0], wrong.nonzero()[:4, 0]])
    tiles, overlays = [], []
    for name, cam in sorted(grad_cams(model, images[chosen], classes[chosen]), key=itemgetter(0)):
        index, label = name.split("/")
        if int(index) >= 8 or label.startswith("predicted"):  # else both are equal
            pixels = (255 * images[chosen[int(index)], 0]).byte().numpy()
            tile = Image.fromarray(pixels).resize(_TILE, Image.Resampling.BICUBIC).convert("RGB")
            ImageDraw.Draw(tile).text((2, 0), label)
            tiles.append(np.asarray(tile))
            values = cam[0].detach().numpy()
            pixels = am.colorize_activation_map((values - values.min()) / (np.ptp(values) or 1))
            overlays.append(np.asarray(Image.fromarray(pixels).resize(_TILE, Image.Resampling.BICUBIC)))
    return contact_sheet(tiles, overlays, columns=8, tile_width=_TILE[0])


def main(destination: str | None = None, /, *, out: Path = Path("async-maps-gradcam")) -> int:
    """Train a small CNN on digits, and upload its Grad-CAMs while they are computed.

    Args:
        destination: s3://bucket/prefix, gs:// or az://, file:///folder or a path; by default the folder overlays in
            --out.
        out: the folder for the manifest, locators.csv and overlays.png; use one folder per destination.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is too small for more threads
    out.mkdir(parents=True, exist_ok=True)
    images, classes = digits()
    model = train(images[:_TRAINED], classes[:_TRAINED])
    images, classes = images[_TRAINED:], classes[_TRAINED:]
    right = (model(images).argmax(1) == classes).float().mean().item()
    print(f"{right:.1%} of {len(images):,} test images are classified correctly")
    cams, manifest = grad_cams(model, images, classes), out / "manifest.sqlite"
    # per-map, because each map has its own scale; workers=0, because the model uses the cores.
    settings = am.Settings(range="per-map", workers=0)
    report = am.run(cams, destination or str(out / "overlays"), settings=settings, manifest=manifest)
    count = am.export_manifest(manifest, out / "locators.csv")
    draw(model, images, classes).save(out / "overlays.png")
    print(f"{report.summary()}\n{count:,} locators in {out / 'locators.csv'}, see {out / 'overlays.png'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
