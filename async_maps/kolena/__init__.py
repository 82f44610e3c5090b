"""Overlays for Kolena: one map at a time, as in its tutorial, or the masks of a whole manifest.

A mask is Kolena's ``BitmapMask`` if its client is installed. Otherwise it is the same mask as a dict for JSON, which
the service accepts too. A mask is made from a receipt or a row of a manifest, so its overlay exists.

Sources: the client, kolena 1.69.0, and "Uploading Activation Maps" in its documentation
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
