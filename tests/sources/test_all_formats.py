"""All formats in one source."""

from __future__ import annotations

import gzip
import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from PIL import Image

import async_maps as am
from async_maps.errors import MissingExtraError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.render.colorize import colorize_activation_map
from async_maps.sources import open_source
from async_maps.sources.formats.registry import open_reader
from tests.support.entries import STACK, names_of, only_failure, plane_by_plane, save_tar
from tests.support.maps import MAP, npy, npz
from tests.support.torch_files import torch_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.h5", "h5py", "hdf5"), ("a.hdf5", "h5py", "hdf5"), ("a.nc", "h5py", "netcdf"), ("a.zarr", "zarr", "zarr")],
)
def test_a_missing_extra_is_named_and_other_formats_are_read(
    maps: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    (maps / name).mkdir() if name == "a.zarr" else (maps / name).write_bytes(b"\x89HDF")
    np.save(maps / "b.npy", MAP)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"async_maps.sources.formats.{extra}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{extra}\]'"):
        open_reader(str(maps / name), LocalFilesystem())
    assert only_failure(maps).reason.endswith(
        f"needs the extra '{extra}': pip install '.[{extra}]' where this package was cloned"
    )
    assert names_of(open_source(maps)) == ["b"]


def test_other_formats_import_no_library_of_an_extra(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    save_tar(maps / "b.tar", {"x.npy": npy(MAP)})
    safetensors.numpy.save_file({"x": MAP}, maps / "c.safetensors")
    (maps / "d.pt").write_bytes(torch_file(MAP))
    (maps / "e.npy.gz").write_bytes(gzip.compress(npy(MAP)))
    program = (
        "import sys; from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "for entry in open_source(sys.argv[1]): print(Readers().read(entry.path, entry.part).sum())\n"
        "print([name for name in ('h5py', 'zarr', 'safetensors', 'torch', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == [*[str(MAP.sum())] * 5, "[]", ""]


def test_npy_files_import_no_other_format_and_no_library_but_numpy(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    program = (
        "import sys; import numpy; numpy_modules = set(sys.modules)\n"
        "from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "for entry in open_source(sys.argv[1]): Readers().read(entry.path, entry.part)\n"
        "new = sys.modules.keys() - numpy_modules\n"
        "print(*sorted(name for name in new if name.startswith('async_maps.sources.formats.')))\n"
        "print(*sorted({name.partition('.')[0] for name in new} - set(sys.stdlib_module_names)))"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    formats, libraries = (set(line.split()) for line in answer.stdout.splitlines())
    assert {name.rpartition(".")[2] for name in formats} == {"npy", "others", "registry", "size", "stacks"}
    # Python's multiprocessing gives the main module this second name.
    assert libraries <= {"async_maps", "numpy", "__mp_main__"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_all_formats_becomes_overlays(maps: Path, tmp_path: Path, workers: int) -> None:
    np.save(maps / "single.npy", MAP)
    np.save(maps / "named.npy", STACK[:2])
    (maps / "named.names.txt").write_text("dog\ncat/1\n")
    np.savez(maps / "npz.npz", x=MAP, y=STACK[:2])
    save_tar(maps / "shard.tar", {"1.jpg": b"", "1.npy": npy(MAP), "2.npy": npy(STACK[:2])})
    with h5py.File(maps / "hdf5.h5", "w") as file:
        file["g/x"] = STACK[:2]
        file["label"] = 7
    zarr.open_group(maps / "group.zarr", mode="w").create_array("g/x", data=STACK[:2])
    zarr.create_array(maps / "array.zarr", data=STACK[:2], zarr_format=2)
    safetensors.numpy.save_file({"x": MAP, "y": STACK[:2]}, maps / "st.safetensors")
    (maps / "torch.pt").write_bytes(torch_file({"x": MAP, "y": STACK[:2]}))
    (maps / "gzip.npy.gz").write_bytes(gzip.compress(npy(STACK[:2])))
    save_tar(maps / "mixed.tar", {"1.cam.pth": torch_file(MAP), "2.npz": npz(x=MAP, y=STACK[:2])})
    expected = {
        "single": MAP, "named/dog": STACK[0], "named/cat/1": STACK[1], "npz/x": MAP, "shard/1": MAP, "st/x": MAP,
        "torch/x": MAP, "mixed/1.cam": MAP, "mixed/2/x": MAP,
    }  # fmt: skip
    for name in ("npz/y", "shard/2", "hdf5", "group", "array", "st/y", "torch/y", "gzip", "mixed/2/y"):
        expected |= plane_by_plane(name, STACK[:2])
    report = am.run(maps, tmp_path / "out", settings=am.Settings(workers=workers))
    assert (report.uploaded, report.failed) == (len(expected), 0)
    written = {str(path.relative_to(tmp_path / "out"))[:-4]: path for path in (tmp_path / "out").rglob("*.png")}
    assert written.keys() == expected.keys()
    for name, path in written.items():
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), colorize_activation_map(expected[name]))
