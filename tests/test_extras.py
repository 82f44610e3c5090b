"""A feature without its extra names the extra in its error. CI runs this file with the wheel without any extra."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from async_maps.kolena import inference_masks, results_frame
from async_maps.shares.ray import RayEngine
from tests.support.commands import invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runs

S3 = "s3://bucket/maps"


class Elsewhere(am.MemoryStore):
    """A store in memory with locators in S3, as Kolena needs them."""

    def locator(self, key: str) -> str:
        return f"{S3}/{key}"


@pytest.fixture(autouse=True)
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The manifest of one map in the working folder, beside a file of each format that needs an extra."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    am.run([("a", np.zeros((4, 4)))], Elsewhere(), settings=am.Settings(workers=0), manifest="a.sqlite")
    for name in ("a.h5", "a.mat", "a.nc", "a.parquet", "a.arrow", "a.tif", "a.zarr/zarr.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    return "a.sqlite"


def sentence(what: str, extra: str) -> str:
    return f"{what} needs the extra '{extra}': pip install '.[{extra}]' where this package was cloned"


@pytest.mark.parametrize(
    ("command", "library", "what", "extra"),
    [
        ("run a.h5 overlays --progress none", "h5py", "reading HDF5", "hdf5"),
        ("run a.tif overlays --progress none", "tifffile", "reading TIFF", "tiff"),
        ("run a.nc overlays --progress none", "h5py", "reading NetCDF 4", "netcdf"),
        ("run a.mat overlays --progress none", "h5py", "reading MATLAB 7.3", "matlab"),
        ("run a.zarr overlays --progress none", "zarr", "reading Zarr", "zarr"),
        ("run a.parquet overlays --progress none", "pyarrow", "reading Parquet and Arrow", "parquet"),
        ("run a.arrow overlays --progress none", "pyarrow", "reading Parquet and Arrow", "parquet"),
        ("verify a.parquet --progress none", "pyarrow", "reading Parquet", "parquet"),
        ("export a.sqlite b.parquet", "pyarrow", "writing Parquet", "parquet"),
        ("run a.h5 gs://bucket/p --progress none", "google", "gs://", "gcs"),
        ("run gs://bucket/p overlays --progress none", "google", "gs://", "gcs"),
        ("run a.h5 az://maps/p --progress none", "azure", "az:// without AZURE_STORAGE_KEY", "azure"),
        ("run az://maps/p overlays --progress none", "azure", "az:// without AZURE_STORAGE_KEY", "azure"),
    ],
)
def test_a_command_names_the_missing_extra(
    command: str,
    library: str,
    what: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    for name in ("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    # The process that decodes files has the path of this one, and imports the library anew.
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / f"{library}.py").write_text("raise ModuleNotFoundError")
    monkeypatch.syspath_prepend(tmp_path / "without")
    # A reader that an earlier test used has already imported its library.
    for module in (extra, "arrow", "columns", "ipc", "ipc_metadata"):
        monkeypatch.delitem(sys.modules, f"async_maps.sources.formats.{module}", raising=False)
    assert invoke(*command.split()) in {1, 2}
    line, *more = capsys.readouterr().err.splitlines()
    assert line.endswith(f": {sentence(what, extra)}")
    assert all("to list the failure: async-maps export " in text for text in more)


def test_demo_serve_names_the_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seaweed, "_find_weed", lambda: None)
    assert invoke("demo", "--serve") == 2
    assert capsys.readouterr().err == f"async-maps: error: {sentence('--serve', 'demo')}\n"


@pytest.mark.parametrize(
    ("module", "library", "what", "extra"),
    [
        ("async_maps.metrics", "prometheus_client.core", "async_maps.metrics", "metrics"),
        ("async_maps.examples.gradcam", "torch", "this example", "examples"),
        ("async_maps.examples.integrated_gradients", "captum.attr", "this example", "examples"),
        ("async_maps.examples.pytorch_gradcam", "pytorch_grad_cam", "this example", "grad-cam"),
    ],
)
def test_a_module_names_the_missing_extra(
    module: str, library: str, what: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(am.MissingExtraError) as refusal:
        import_module(module)
    assert str(refusal.value) == sentence(what, extra)


def test_a_frame_of_results_names_the_missing_extra(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    on: Callable[[object], str] = str
    with pytest.raises(am.MissingExtraError) as refusal:
        results_frame(manifest, object(), on=on)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence("a frame of results", "kolena")


def test_the_engine_ray_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(am.MissingExtraError) as refusal:
        RayEngine()
    assert str(refusal.value) == sentence("the engine ray", "ray")


def test_masks_need_no_extra(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kolena.annotation", None)
    (mask,) = inference_masks(manifest).values()
    assert mask["locator"] == f"{S3}/a.png"


def test_loops_need_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert am.run([("a", np.zeros((4, 4)))], am.MemoryStore(), settings=am.Settings(workers=0)).uploaded == 1
