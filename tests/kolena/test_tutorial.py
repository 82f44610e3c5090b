"""Kolena's tutorial "Uploading Activation Maps", steps 1 to 3, with our functions instead of its own."""

# No ``from __future__ import annotations``: Kolena's workflows read the types of fields and refuse strings.

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from numpy.typing import NDArray

import async_maps as am
from async_maps.kolena import bitmap_uploader
from tests.support.kolena_service import serve_kolena
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.s3 import fetch

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

Way = Callable[[str, NDArray[Any]], Any]


@contextmanager
def as_written(bucket: str) -> Iterator[Way]:
    """Steps 1 and 2 with the tutorial's functions: we make the PNGs, boto3 uploads them."""
    import boto3
    from kolena.workflow.annotation import BitmapMask

    from async_maps import colorize_activation_map, encode_png

    s3 = boto3.client("s3")

    def create_bitmap(activation_map: NDArray[Any]) -> Any:
        return encode_png(colorize_activation_map(activation_map), mode="RGBA")

    def upload_bitmap(image_buffer: Any, filename: str) -> str:
        locator = f"{bucket}/tutorial/activation_maps/{filename}.png"
        url = urlparse(locator)
        s3.upload_fileobj(image_buffer, url.netloc, url.path.lstrip("/"))
        return locator

    def create_and_upload_bitmap(filename: str, activation_map: NDArray[Any]) -> Any:
        return BitmapMask(upload_bitmap(create_bitmap(activation_map), filename))

    yield create_and_upload_bitmap
    s3.close()


@contextmanager
def as_one_import(bucket: str) -> Iterator[Way]:
    """Steps 1 and 2 with our uploader."""
    with bitmap_uploader(f"{bucket}/tutorial/activation_maps") as create_and_upload_bitmap:
        yield create_and_upload_bitmap


@pytest.mark.parametrize("steps_1_and_2", [as_written, as_one_import])
def test_the_tutorial_uploads_overlays_and_their_locators(steps_1_and_2: Any, bucket: str) -> None:
    """Follow the tutorial's names, calls and arguments in its order.

    Its text is ``docs/advanced-usage/uploading-activation-maps.md`` of github.com/kolenaIO/kolena (commit 5c64ee7).
    For the run of step 3, it refers to "Building a Workflow", ``docs/building-a-workflow.md``.
    """
    with serve_kolena() as service, steps_1_and_2(f"s3://{bucket}") as create_and_upload_bitmap:
        from kolena.workflow import GroundTruth, Image, define_workflow, test
        from kolena.workflow import Inference as Inf
        from kolena.workflow.annotation import BitmapMask

        @dataclass(frozen=True)
        class Inference(Inf):  # type: ignore[misc]  # Kolena's client is untyped
            activation_map: BitmapMask

        _, TestCase, TestSuite, Model = define_workflow("Activation maps", Image, GroundTruth, Inference)  # noqa: N806
        images = [f"s3://images/{i}.jpg" for i in range(3)]
        maps = {image: random_map(i) for i, image in enumerate(images)}

        def infer(image: Any) -> Inference:
            filename = image.locator.rpartition("/")[2].removesuffix(".jpg")
            return Inference(activation_map=create_and_upload_bitmap(filename, maps[image.locator]))

        case = TestCase("all", test_samples=[(Image(locator=image), GroundTruth()) for image in images])
        test(Model("a model", infer=infer), TestSuite("all", test_cases=[case]))

    (inferences,) = service.inferences
    masks = {row["test_sample"]["locator"]: row["inference"]["activation_map"] for row in inferences}
    assert masks == {
        image: {
            "locator": f"s3://{bucket}/tutorial/activation_maps/{i}.png",
            "data_type": "ANNOTATION/BITMAP_MASK",
        }
        for i, image in enumerate(images)
    }
    assert ("PUT", "/v1/generic/test-run/evaluate") in service.asked
    pngs = asyncio.run(fetch([mask["locator"] for mask in masks.values()]))
    for png, image in zip(pngs, masks, strict=True):
        np.testing.assert_array_equal(decode(png), am.colorize_activation_map(maps[image]))
