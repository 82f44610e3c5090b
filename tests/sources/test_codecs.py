"""Compression that needs another package: HDF5 filters and Zarr codecs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import pytest
import zarr

from async_maps.sources import open_source
from tests.support.entries import STACK, assert_same, names_of, plane_by_plane, read_all, why_not
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path

BLOSC, UNREGISTERED = 32001, 32123


def save_hdf5(path: Path, code: int) -> None:
    """Write a dataset with a filter that is not installed here."""
    with h5py.File(path, "w") as file:
        file["sound"] = MAP
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(MAP.shape)
        properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple(MAP.shape)
        dataset = h5py.h5d.create(file.id, b"packed", h5py.h5t.IEEE_F32LE, space, properties)
        dataset.write_direct_chunk((0, 0), b"packed by another program")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (BLOSC, "the HDF5 filter blosc (number 32001) is not installed: pip install hdf5plugin"),
        (UNREGISTERED, "number 32123) is not installed: install its plugin, and set HDF5_PLUGIN_PATH to its folder"),
    ],
)
def test_an_hdf5_filter_that_is_not_installed_is_named(maps: Path, code: int, reason: str) -> None:
    save_hdf5(maps / "a.h5", code)
    # Another test of this process may have registered the filter.
    program = (
        "import sys; sys.modules['hdf5plugin'] = None\n"
        "from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "for entry in open_source(sys.argv[1]):\n"
        "    try: print(entry.name, Readers().read(entry.path, entry.part).shape)\n"
        "    except Exception as error: print(entry.name, type(error).__name__, error, entry.problem)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    packed, sound = answer.stdout.splitlines()
    assert packed.startswith("a/packed SourceError the HDF5 filter ")
    assert packed.count(reason) == 2
    assert sound == "a/sound (3, 4)"


def test_filters_of_hdf5plugin_are_read_if_it_is_installed(maps: Path) -> None:
    plugin: Any = pytest.importorskip("hdf5plugin")
    filters = {"blosc": plugin.Blosc(), "zstd": plugin.Zstd(), "lz4": plugin.LZ4(), "shuffled": plugin.Bitshuffle()}
    with h5py.File(maps / "a.h5", "w") as file:
        for name, how in filters.items():
            file.create_dataset(name, data=STACK, chunks=(2, 3, 5), compression=how)
    written: dict[str, Any] = {}
    for name in sorted(filters):
        written |= plane_by_plane(f"a/{name}", STACK)
    # A new process has not imported the plugins.
    program = (
        "import sys; from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "assert 'hdf5plugin' not in sys.modules\n"
        "for entry in open_source(sys.argv[1]): print(entry.name, Readers().read(entry.path, entry.part).tobytes())\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [f"{name} {array.tobytes()}" for name, array in written.items()]


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
    program = (
        "import sys; from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "for entry in open_source(sys.argv[1]): print(entry.name, Readers().read(entry.path, entry.part).tobytes())\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [f"a/{name} {MAP.tobytes()!r}" for name in ("packed", "sound")]


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
