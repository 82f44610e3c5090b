"""Files that PyTorch writes, and runs on them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from tests.support.entries import STACK, assert_same, only_failure, passed_over, read_all, why_not
from tests.support.maps import MAP, decode
from tests.support.torch_files import torch_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("old", [False, True])
def test_the_own_writer_writes_what_pytorch_reads(torch: Any, old: bool) -> None:
    found = torch.load(io.BytesIO(torch_file({"a": MAP, "b": [STACK, 3]}, old=old)), weights_only=True)
    np.testing.assert_array_equal(found["a"].numpy(), MAP)
    np.testing.assert_array_equal(found["b"][0].numpy(), STACK)


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_each_dtype_is_read_as_pytorch_reads_it(torch: Any, maps: Path, how: dict[str, Any]) -> None:
    kinds = (
        "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 complex64 complex128"
    )
    values = torch.linspace(0, 2, 12).reshape(3, 4)
    tensors = {kind: values.to(getattr(torch, kind)) for kind in kinds.split()}
    torch.save(tensors, maps / "x.pt", **how)
    expected = {kind: (tensor.float() if kind == "bfloat16" else tensor).numpy() for kind, tensor in tensors.items()}
    assert_same(read_all(maps), {f"x/{kind}": array for kind, array in expected.items()})


@pytest.mark.parametrize("old", [False, True])
def test_views_are_read_with_their_strides(torch: Any, maps: Path, old: bool) -> None:
    stack = torch.rand(6, 7, 8)
    views = {
        "transposed": stack.permute(2, 0, 1),
        "part": stack[1:3],
        "steps": stack[:, ::2, 1:],
        "map": stack[4].T,
        "channel": stack[:, None],
        "parameter": torch.nn.Parameter(stack),
        "one": stack[2:3, 1:4],
    }
    torch.save(views, maps / "x.pt", _use_new_zipfile_serialization=not old)
    found = read_all(maps)
    for name, view in views.items():
        planes = view.detach().numpy()
        for index, plane in enumerate([planes] if name == "map" else planes):
            read = found[f"x/{name}" if name in {"map", "one"} else f"x/{name}/{index:06}"]
            np.testing.assert_array_equal(read, plane.squeeze(0) if name == "channel" else plane)


def test_wrong_checksums_do_not_matter(torch: Any, maps: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.from_numpy(MAP)}, maps / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_all(maps), {"x": MAP})


def test_subclasses_and_attributes_of_tensors_are_read(torch: Any, maps: Path) -> None:
    with_attribute = torch.rand(3, 4)
    with_attribute.note = "x"
    torch.save({"a": with_attribute, "b": torch.nn.Buffer(torch.rand(3, 4))}, maps / "x.pt")
    assert list(read_all(maps)) == ["x/a", "x/b"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_in_a_file_of_pytorch_are_read(torch: Any, maps: Path, protocol: int) -> None:
    arrays = {
        "a": MAP,
        "stack": STACK.astype(">f8"),
        "fortran": np.asfortranarray(STACK * 2),
        "bool": np.eye(3, dtype=bool),
        "bytes": np.arange(256, dtype=np.uint8).reshape(16, 16),
    }
    torch.save(arrays | {"labels": np.arange(3), "names": np.array(["a"])}, maps / "x.pt", pickle_protocol=protocol)
    found = read_all(maps)
    for name, array in arrays.items():
        for index, plane in enumerate(array) if name in {"stack", "fortran"} else [(None, array)]:
            np.testing.assert_array_equal(found[f"x/{name}" if index is None else f"x/{name}/{index:06}"], plane)
    assert passed_over(maps) == ["arrays below two dimensions", "arrays of text"]


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda torch: torch.rand(3, 4).to(torch.float8_e4m3fn), "save tensor.float()"),
        (lambda torch: torch.eye(3).to_sparse(), "save tensor.to_dense()"),
        (lambda torch: torch.eye(3).to_sparse_csr(), "save tensor.to_dense()"),
        (lambda torch: torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.quint8), "save tensor.dequantize()"),
        (lambda torch: torch.nested.nested_tensor([torch.rand(2, 3)]), "save the list tensor.unbind()"),
        (lambda torch: torch.rand(1, 3, 4).expand(9, 3, 4), "save tensor.contiguous()"),
        (lambda torch: torch.imag(torch.rand(3, 4, dtype=torch.complex64).conj()), "resolve_neg()"),
        (lambda torch: torch.rand(3, 4, device="meta"), "keeps no values"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_values_names_the_call(
    torch: Any, maps: Path, make: Callable[[Any], Any], call: str
) -> None:
    torch.save({"special": make(torch), "map": torch.from_numpy(MAP)}, maps / "x.pt")
    special, map_ = open_source(maps)
    assert call in why_not(special)
    assert isinstance(special, ActivationMap)
    assert special.problem == why_not(special)
    assert map_.name == "x/map"


def test_weights_and_optimizers_are_passed_over(torch: Any, maps: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "cam": torch.from_numpy(MAP)}
    torch.save(state, maps / "checkpoint.pt")
    torch.save(model.state_dict(), maps / "weights.pth")
    assert_same(read_all(maps), {"checkpoint": MAP})
    weights = "weights of a model (state_dict)"
    assert passed_over(maps) == [*[weights] * 4, *["state of an optimizer"] * 2, *[weights] * 4]


def test_a_model_is_refused(torch: Any, maps: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), maps / "a.pt")
    assert only_failure(maps).reason == (
        "expected tensors, found an object of the class torch.nn.modules.linear.Linear: save tensors, alone or in a "
        "dict or a list, because no other Python object is read"
    )


def test_members_of_webdataset_are_read(torch: Any, maps: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(maps / "x.tar")) as shard:
        shard.write({"__key__": "000001", "cam.npy": MAP, "cls": 3, "heat.npz": {"a": MAP * 2}})
        shard.write({"__key__": "000002", "cam.pth": torch.from_numpy(MAP * 3)})
    assert_same(read_all(maps), {"x/000001.cam": MAP, "x/000001.heat": MAP * 2, "x/000002.cam": MAP * 3})


# Runs


def test_files_of_pytorch_become_overlays(maps: Path, tmp_path: Path) -> None:
    (maps / "x.pt").write_bytes(torch_file({"a": MAP, "stack": STACK}))
    report = am.run(maps, tmp_path / "out", settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (6, 0)
    expected = am.colorize_activation_map(STACK[2], am.ColormapJet())
    np.testing.assert_array_equal(decode((tmp_path / "out/x/stack/000002.png").read_bytes()), expected)
