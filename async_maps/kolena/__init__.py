"""Overlays for Kolena: one map at a time, as its tutorial goes, or the masks of a whole manifest.

A mask is Kolena's own ``BitmapMask`` where its client is installed; else it is the dict that the same mask is in JSON,
which the service takes as well. It is made of a receipt or of a manifest's row: it never names what is not there.

What Kolena takes is known from its client, 1.69.0, and from "Uploading Activation Maps" in its documentation
(``docs/advanced-usage/uploading-activation-maps.md`` of github.com/kolenaIO/kolena).
"""

from async_maps.kolena.masks import Mask
from async_maps.kolena.results import inference_masks, results_frame
from async_maps.kolena.uploader import (
    acreate_and_upload_bitmap,
    bitmap_mask,
    bitmap_uploader,
    create_and_upload_bitmap,
)

__all__ = [
    "Mask",
    "acreate_and_upload_bitmap",
    "bitmap_mask",
    "bitmap_uploader",
    "create_and_upload_bitmap",
    "inference_masks",
    "results_frame",
]
