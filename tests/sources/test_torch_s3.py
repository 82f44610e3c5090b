"""Files of PyTorch, .npy.gz and the members of tars in S3."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.filesystem import Filesystems
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from tests.support.entries import save_tar
from tests.support.leftovers import leaves_nothing
from tests.support.maps import MAP, decode, npy, npz
from tests.support.s3 import upload
from tests.support.s3_proxy import Proxy, counting
from tests.support.torch_files import torch_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo import seaweed

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


def read_in_order(place: str) -> Iterator[tuple[str, Any]]:
    with Filesystems() as filesystems, Readers(filesystems) as readers:
        for entry in open_source(place):
            assert isinstance(entry, ActivationMap)
            yield entry.name, readers.read(str(entry.path), entry.part)


def test_a_run_makes_overlays_of_each_format(bucket: str, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((40, 100, 100), np.float32)
    files = {
        "a.pt": torch_file({"cams": stack, "one": MAP}),
        "b.pth": torch_file({"cams": stack}, old=True),
        "c.npy.gz": gzip.compress(npy(stack), 1),
        "d.tar": save_tar(tmp_path / "d.tar", {"1.cam.pth": torch_file(stack), "2.npz": npz(a=MAP)}).read_bytes(),
        "bad.pt": b"x",
    }
    upload(bucket, files)
    report = am.run(f"s3://{bucket}", tmp_path / "out", settings=am.Settings(workers=0, prefetch=4))
    assert (report.uploaded, report.failed) == (162, 1)
    expected = am.colorize_activation_map(stack[39], am.ColormapJet())
    for name in ("a/cams", "b", "c", "d/1.cam"):
        np.testing.assert_array_equal(decode((tmp_path / f"out/{name}/000039.png").read_bytes()), expected)


@pytest.mark.parametrize("old", [False, True])
def test_listing_a_large_file_reads_no_values(bucket: str, proxy: Proxy, old: bool) -> None:
    maps = {f"{index}": np.random.default_rng(index).random((800, 800)) for index in range(6)}
    upload(bucket, {"x.pt": torch_file(maps, old=old)})
    entries = list(open_source(f"s3://{bucket}/x.pt"))
    assert [entry.name for entry in entries] == [f"x/{name}" for name in maps]
    assert sum(asked.size for asked in proxy.gets()) < 3 * 2**20
    before = len(proxy.gets())
    for (_, array), expected in zip(read_in_order(f"s3://{bucket}/x.pt"), maps.values(), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert len(proxy.gets()) - before < 20


def test_a_stack_in_gzip_is_transferred_once(bucket: str, proxy: Proxy) -> None:
    stack = np.random.default_rng(0).random((30, 300, 300))
    content = gzip.compress(npy(stack), 1)
    upload(bucket, {"x.npy.gz": content})
    for (_, array), expected in zip(read_in_order(f"s3://{bucket}/x.npy.gz"), stack, strict=True):
        np.testing.assert_array_equal(array, expected)
    # Each map would add half of the file. The reads of the start ask for up to 9 MiB more.
    assert sum(asked.size for asked in proxy.gets()) < len(content) + 12 * 2**20
