"""Attention rollout of a vision transformer: ``python -m async_maps.examples.attention_rollout [DESTINATION]``.

- Method: Abnar, Zuidema 2020, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928
- Array: (n, grid, grid), one value for each patch: 14x14 for ViT-B/16 at 224x224. Values are 0 or more, and those of
  one image add up to less than 1, so most are near 1 divided by the number of patches.
- Hugging Face's ViT returns ``attentions`` with ``attn_implementation="eager"`` and ``output_attentions=True``.
- Settings: ``range="per-map"``. On the default scale, 0 to 1, all overlays would be transparent.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import async_maps as am
from async_maps.examples import libraries, run_program

with libraries(__name__):
    import torch

    from async_maps.examples.stand_ins import VisionTransformer, batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Return the attention of the class token to each patch, (n, grid, grid), from all layers, (n, heads, t, t)."""
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    product = identity
    for attention in attentions:
        # The mean of the heads, and one half for the connection around each layer: rows still add up to 1.
        product = (attention.mean(1) + identity) / 2 @ product
    grid = isqrt(len(identity) - 1)
    return product[:, 0, 1:].reshape(-1, grid, grid)


@torch.no_grad()
def rollouts() -> Iterator[tuple[str, Tensor]]:
    """Yield a name and a map, (grid, grid), for each image."""
    model = VisionTransformer().eval()
    for names, images in batches():
        _, attentions = model(images)
        yield from zip(names, rollout(attentions), strict=True)


def main(destination: str = "async-maps-examples/attention_rollout", /) -> int:
    """Upload the attention rollouts of 24 images to a bucket or a folder."""
    report = am.run(rollouts(), destination, settings=am.Settings(range="per-map", workers=0))
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_program(main)
