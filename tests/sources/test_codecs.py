"""Compression that needs another package: HDF5 filters and Zarr codecs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr

from async_maps.sources import open_source
from tests.support.entries import STACK, assert_same, names_of, plane_by_plane, read_all, why_not
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path


SAVE_WITH_FILTER = """
import sys, h5py
with h5py.File(sys.argv[1] + "/a.h5", "w") as file:
    file["sound"] = [[0.0, 1.0]]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((3, 4))
    properties.set_filter(int(sys.argv[2]), h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple((3, 4))
    dataset = h5py.h5d.create(file.id, b"packed", h5py.h5t.IEEE_F32LE, space, properties)
    dataset.write_direct_chunk((0, 0), b"packed by another program")
"""
SAVE_WITH_PLUGIN = """
import sys, h5py, hdf5plugin, numpy
with h5py.File(sys.argv[1] + "/a.h5", "w") as file:
    for name in ("Bitshuffle", "Blosc", "LZ4", "Zstd"):
        how = getattr(hdf5plugin, name)()
        file.create_dataset(name, data=numpy.load(sys.argv[2]), chunks=(2, 3, 5), compression=how)
"""
READ = """
import sys
if "without" in sys.argv: sys.modules["hdf5plugin"] = None
from async_maps.sources import open_source
from async_maps.sources.formats.registry import Readers
for entry in open_source(sys.argv[1]):
    try: print(entry.name, Readers().read(entry.path, entry.part).tobytes())
    except Exception as error: print(entry.name, type(error).__name__, error, entry.problem)
"""


def in_new_process(program: str, *arguments: object) -> list[str]:
    """Run a program in a process that has not registered filters, and return its lines."""
    # netCDF4 sets the variable when it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_PLUGIN_PATH"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (32001, "the HDF5 filter blosc (number 32001) is not installed: pip install hdf5plugin"),
        (32123, "number 32123) is not installed: install its plugin, and set HDF5_PLUGIN_PATH to its folder"),
    ],
)
def test_an_hdf5_filter_that_is_not_installed_is_named(maps: Path, code: int, reason: str) -> None:
    in_new_process(SAVE_WITH_FILTER, maps, code)
    packed, sound = in_new_process(READ, maps, "without")
    assert packed.startswith("a/packed SourceError the HDF5 filter ")
    # The listing has the reason too.
    assert packed.count(reason) == 2
    assert sound == f"a/sound {np.array([[0.0, 1.0]]).tobytes()!r}"


def test_filters_of_hdf5plugin_are_read_if_it_is_installed(maps: Path, tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    np.save(tmp_path / "stack.npy", STACK)
    in_new_process(SAVE_WITH_PLUGIN, maps, tmp_path / "stack.npy")
    written: dict[str, Any] = {}
    for name in ("Bitshuffle", "Blosc", "LZ4", "Zstd"):
        written |= plane_by_plane(f"a/{name}", STACK)
    assert in_new_process(READ, maps) == [f"{name} {array.tobytes()!r}" for name, array in written.items()]


@pytest.mark.parametrize("how", ["lzf", "szip", "gzip"])
def test_filters_that_h5py_contains_are_read(maps: Path, how: str) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        try:
            file.create_dataset("x", data=STACK, chunks=(1, 3, 5), compression=how)
        except ValueError:
            pytest.skip(f"this h5py cannot write {how}")
    assert_same(read_all(maps), plane_by_plane("a", STACK))


def save_zarr(path: Path, version: Any, **codecs: Any) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("sound", data=MAP)
    group.create_array("packed", data=MAP)
    metadata = path / "packed" / ("zarr.json" if version == 3 else ".zarray")
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | codecs))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize(
    ("version", "codecs", "reason"),
    [
        (2, {"compressor": {"id": "zfpy"}}, "the codec 'zfpy' is not installed: pip install zfpy"),
        (2, {"filters": [{"id": "own"}]}, "the codec 'own' is not installed: install the package that has this codec"),
        (
            3,
            {"codecs": [{"name": "numcodecs.pcodec", "configuration": {}}]},
            "the codec 'pcodec' is not installed: pip install pcodec",
        ),
        (
            3,
            {"codecs": [BYTES, {"name": "own"}]},
            "the codec 'own' is not installed: install the package that has this codec",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_a_zarr_codec_that_is_not_installed_is_named(
    maps: Path, monkeypatch: pytest.MonkeyPatch, version: Any, codecs: dict[str, Any], reason: str
) -> None:
    for package in ("zfpy", "pcodec"):
        monkeypatch.setitem(sys.modules, package, None)
    save_zarr(maps / "a.zarr", version, **codecs)
    packed, sound = open_source(maps)
    assert why_not(packed) == reason
    assert names_of([sound]) == ["a/sound"]


def test_a_zarr_codec_of_imagecodecs_is_registered_when_it_is_needed(maps: Path) -> None:
    codecs: Any = pytest.importorskip("imagecodecs.numcodecs")
    save_zarr(maps / "a.zarr", 2, compressor={"id": "imagecodecs_lzw"})
    (maps / "a.zarr" / "packed" / "0.0").write_bytes(codecs.Lzw().encode(MAP.tobytes()))
    assert in_new_process(READ, maps) == [f"a/{name} {MAP.tobytes()!r}" for name in ("packed", "sound")]


def test_a_zarr_codec_of_imagecodecs_names_it(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.delitem(sys.modules, "imagecodecs.numcodecs", raising=False)
    save_zarr(maps / "a.zarr", 2, compressor={"id": "imagecodecs_jpeg2k"})
    packed, _ = open_source(maps)
    assert why_not(packed) == "the codec 'imagecodecs_jpeg2k' is not installed: pip install imagecodecs"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_are_read(maps: Path, version: Any) -> None:
    group = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=version)
    shards: Any = {"shards": (4, 3, 5)} if version == 3 else {}
    group.create_array("deep/stack", data=STACK, chunks=(2, 3, 5), **shards)
    zarr.consolidate_metadata(maps / "a.zarr")
    assert_same(read_all(maps), plane_by_plane("a", STACK))
