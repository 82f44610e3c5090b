"""Other libraries to colorize, encode and upload, used as their documentation says."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from obstore.store import S3Store

HAS_KOLENA = find_spec("kolena") is not None
"""Kolena's client has no release for Python 3.13 yet."""
_FADE = (255 / (1 + np.exp((127.5 - np.arange(256)) / 8))).astype(np.uint8)


def numpy_intensities(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return floats in [0, 1] as bytes, without checks and statistics."""
    return np.rint(values * 255).astype(np.uint8)


def opencv_bgra(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return OpenCV's jet colors with Kolena's opacity."""
    import cv2

    pixels = cv2.cvtColor(cv2.applyColorMap(plane, cv2.COLORMAP_JET), cv2.COLOR_BGR2BGRA)
    pixels[..., 3] = _FADE[plane]
    return np.asarray(pixels, np.uint8)


def opencv_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return OpenCV's PNG of BGRA pixels, with its defaults."""
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


def pillow_rgba_png(pixels: NDArray[np.uint8], level: int) -> bytes:
    """Return Pillow's PNG of RGBA pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def pillow_palette_png(plane: NDArray[np.uint8], table: NDArray[np.uint8], level: int) -> bytes:
    """Return Pillow's indexed PNG with the opacity of each color."""
    image = Image.fromarray(plane)
    image.putpalette(table[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level, transparency=table[:, 3].tobytes())
    return file.getvalue()


def boto3_client(connections: int) -> Any:
    """Return a boto3 client with a connection for each caller; with fewer, it opens one for each request."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=connections))


def obstore_store(bucket: str) -> S3Store:
    """Return an obstore store with the AWS environment variables."""
    from obstore.store import S3Store

    return S3Store(bucket, client_options={"allow_http": True})
