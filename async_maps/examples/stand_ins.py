"""Images and models with random weights, in the place of yours: an example runs in seconds and downloads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH = 8


def batches(count: int = 24, size: int = 64) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and images, (8, 3, size, size) float32 from 0 to 1, batch by batch as a ``DataLoader`` does."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, _BATCH):
        coarse = torch.rand(_BATCH, 3, 8, 8, generator=generator)
        images = functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        yield [f"val/{index:04}" for index in range(start, start + _BATCH)], images


def classifier(classes: int = 10) -> nn.Sequential:
    """Return a CNN; its first module computes the features, (n, 32, h/4, w/4)."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes, bias=False))
    return nn.Sequential(_features(), *head).eval()


def segmenter(classes: int) -> nn.Sequential:
    """Return a network whose output is a logit for each class and pixel, (n, classes, h, w)."""
    torch.manual_seed(0)
    head = nn.Conv2d(32, classes, 1)
    nn.init.normal_(head.weight, std=6)  # logits of the size that a trained network has
    return nn.Sequential(_features(), head, nn.Upsample(scale_factor=4, mode="bilinear")).eval()


def counter() -> nn.Sequential:
    """Return a network whose output is a density of objects, (n, 1, h/4, w/4), never negative."""
    torch.manual_seed(0)
    head = nn.Conv2d(32, 1, 1)
    nn.init.normal_(head.weight, std=0.5)
    return nn.Sequential(_features(), head, nn.ReLU()).eval()


def _features() -> nn.Sequential:
    first, second = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 32, 3, 2, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU())


class VisionTransformer(nn.Module):
    """A ViT of two layers: 64 patches of 8x8 pixels, and a class token before them."""

    def __init__(self, classes: int = 10, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 65, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, (n, classes), and the attention of each layer, (n, heads, 65, 65)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        attentions = []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            normed = norm(tokens)
            mixed, attention = layer(normed, normed, normed, average_attn_weights=False)
            tokens = tokens + mixed
            attentions.append(attention)
        return self.head(tokens[:, 0]), attentions
