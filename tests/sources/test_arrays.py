"""Arrays in memory, of the real libraries: accepted, or refused with the call that makes an array of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.outcomes import Failure
from async_maps.render.ranges import parse_range
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

MAP = np.random.default_rng(0).random((20, 30)).astype(np.float32)


def taken(array: Any) -> NDArray[Any]:
    entry = array_map("a", array)
    assert isinstance(entry, ActivationMap), entry
    assert entry.array is not None
    return entry.array


def reason(array: Any, **options: Any) -> str:
    entry = array_map("a", array, **options)
    assert isinstance(entry, Failure), entry
    return entry.reason


def test_bfloat16_of_ml_dtypes_becomes_float32() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    values = MAP.astype(bfloat16)
    np.testing.assert_array_equal(taken(values), values.astype(np.float32))
    assert taken(values[None]).dtype == np.float32


async def test_a_bfloat16_array_is_uploaded(tmp_path: Path) -> None:
    values = MAP.astype(pytest.importorskip("ml_dtypes").bfloat16)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0)) as pipeline:
        await pipeline.put("a", values)
    with Image.open(tmp_path / "a.png") as image:
        expected = am.colorize_activation_map(values.astype(np.float32))
        np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), expected)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4"])
def test_other_dtypes_of_ml_dtypes_name_astype(name: str) -> None:
    dtype = getattr(pytest.importorskip("ml_dtypes"), name)
    assert reason(np.ones((4, 4), dtype)).endswith(f'found {name}: convert it with .astype("float32")')


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bfloat16", "as NumPy saves bfloat16, whose dtype is lost"),
        ("float8_e4m3fn", "as NumPy saves float8, whose dtype is lost"),
        ("float8_e5m2", "as NumPy saves float8: save"),
    ],
)
def test_a_file_that_lost_its_dtype_says_how_to_save_it(name: str, expected: str, tmp_path: Path) -> None:
    dtype = getattr(pytest.importorskip("ml_dtypes"), name)
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", np.ones((4, 4), dtype))
    report = am.run(tmp_path / "maps", tmp_path / "out", settings=am.Settings(workers=0))
    (failure,) = report.failures
    assert expected in failure.reason
    assert 'save array.astype("float32") instead' in failure.reason


def test_complex_values_name_np_abs() -> None:
    assert reason(MAP.astype(np.complex64)).endswith("found complex64: take np.abs(array) or its real part")


def test_pandas_and_xarray_are_converted() -> None:
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    np.testing.assert_array_equal(taken(pandas.DataFrame(MAP)), MAP)
    np.testing.assert_array_equal(taken(xarray.DataArray(MAP)), MAP)
    assert "cannot be converted to a NumPy array" in reason(xarray.Dataset({"a": (("y", "x"), MAP)}))


def test_a_sparse_matrix_of_scipy_names_toarray() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    assert reason(sparse.csr_matrix(MAP)).endswith("found csr_matrix: pass its .toarray()")


@pytest.mark.parametrize("mode", ["1", "L", "F", "I", "I;16"])
def test_a_gray_image_of_pillow_names_np_asarray(mode: str) -> None:
    assert reason(Image.new(mode, (5, 4))).endswith("found Image: pass np.asarray(image)")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_a_color_image_of_pillow_is_a_picture(mode: str) -> None:
    expected = f'of mode {mode}: a picture is no map; if it is gray, pass np.asarray(image.convert("L"))'
    assert reason(Image.new(mode, (5, 4))).endswith(expected)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (MAP.tolist(), "found list: if it holds the numbers of one map, pass np.asarray(rows)"),
        ("maps/a.npy", "found str: to read files, pass the path as the source, without a name"),
        (Path("a.npy"), "Path: to read files, pass the path as the source, without a name"),
        (MAP.astype(object), 'found object: convert it with .astype("float32")'),
    ],
)
def test_what_is_no_array_names_the_remedy(array: Any, remedy: str) -> None:
    assert reason(array).endswith(remedy)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (7, "found int: pass str(name)"),
        (Path("a"), "Path: pass str(name)"),
        (("a", "b"), "found tuple: if these are the names of a batch, pass each pair of zip(names, arrays)"),
        (MAP, "found ndarray: pass (name, array), in this order"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_name_names_the_remedy(name: Any, remedy: str) -> None:
    failure = array_map(name, MAP)
    assert isinstance(failure, Failure)
    assert failure.reason.endswith(remedy)


def test_a_dict_as_a_map_names_its_arrays() -> None:
    assert reason({"layer4": MAP}).endswith("found dict: put each of its arrays with its own name")


@pytest.mark.parametrize("source", [{"a": MAP}, {0: MAP}, {}])
async def test_a_dict_as_a_source_names_items(source: Any, tmp_path: Path) -> None:
    with pytest.raises(am.SourceError, match=r"the keys of a dict: pass its \.items\(\)"):
        await am.arun(source, tmp_path, settings=am.Settings(workers=0))
    report = await am.arun({"a": MAP}.items(), tmp_path, settings=am.Settings(workers=0))
    assert report.uploaded == 1


async def test_an_open_npz_as_a_source_names_items(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=MAP)
    with np.load(tmp_path / "a.npz") as archive:
        with pytest.raises(am.SourceError, match=r"pass its \.items\(\)"):
            await am.arun(archive, tmp_path / "out", settings=am.Settings(workers=0))
        report = await am.arun(archive.items(), tmp_path / "out", settings=am.Settings(workers=0))
    assert report.uploaded == 1


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ([("a", MAP, 7)], r"found tuple of 3"),
        ([["a"]], r"found list of 1"),
        ([MAP], r"found ndarray: pass zip\(names, arrays\)"),
        (MAP, r"found ndarray: pass zip\(names, arrays\)"),
    ],
)
async def test_what_is_no_pair_is_named(source: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(am.SourceError, match=rf"must yield pairs \(name, array\); {found}$"):
        await am.arun(source, tmp_path, settings=am.Settings(workers=0))


def test_a_picture_in_memory_is_refused() -> None:
    assert reason(np.zeros((40, 50, 3), np.uint8)).startswith("the array is already a picture, not a map: its shape is")
    assert "already a picture" in reason(np.zeros((1, 40, 50, 4), np.uint8))
    assert "already a picture" in reason(np.zeros((40, 50, 3), np.uint8), channels="sum")


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 40, 50), 'if the 3 are channels, settings=Settings(channels="sum") (or "norm", "maxabs", "mean") reduces'),
        ((1, 3, 40, 50), 'if the 3 are channels, settings=Settings(channels="sum")'),
        ((8, 3, 40, 50), 'if the 3 are channels, settings=Settings(channels="sum")'),
        ((40, 50, 3), 'if the 3 are channels, settings=Settings(channels="sum")'),
        ((1, 12, 197, 197), "put each map with its own name"),
        ((2, 12, 197, 197), "if this is the attention of tokens, take [:, :, 0, 1:].reshape(-1, 14, 14)"),
        ((224, 224, 10), "if these are 10 maps, use np.moveaxis(cams, -1, 0)"),
        ((196,), "if these are tokens, take cams.reshape(14, 14)"),
        ((197,), "if these are tokens, take cams[1:].reshape(14, 14), without the class token"),
    ],
)
def test_a_refused_layout_names_its_remedy(shape: tuple[int, ...], hint: str) -> None:
    found = reason(np.zeros(shape, np.float32))
    assert hint in found
    assert f"found {shape}" in found
    assert "channels" not in reason(np.zeros(shape, np.float32)[:0]).replace("leading axes", "")


@pytest.mark.parametrize("channels", ["sum", "norm", "maxabs", "mean"])
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((3, 20, 30), (3, 20, 30)),
        ((1, 3, 20, 30), (3, 20, 30)),
        ((1, 1, 3, 20, 30), (3, 20, 30)),
        ((20, 30, 3), (20, 30, 3)),
        ((1, 20, 30, 3), (20, 30, 3)),
        ((1, 1, 20, 30), (1, 20, 30)),
        ((20, 30), (20, 30)),
    ],
)
def test_one_map_with_channels_is_taken(shape: tuple[int, ...], kept: tuple[int, ...], channels: Any) -> None:
    array = np.zeros(shape, np.float32)
    for given in (array, [array]):
        entry = array_map("a", given, parse_range("unit"), channels=channels)
        assert isinstance(entry, ActivationMap), entry
        assert entry.array is not None
        assert entry.array.shape == kept
        assert np.shares_memory(entry.array, array)


def test_several_maps_with_channels_are_refused() -> None:
    found = reason(np.zeros((8, 3, 40, 50), np.float32), channels="sum")
    assert re.search(
        r"must have the shape \(c, h, w\), \(h, w, c\) or \(h, w\).*found \(8, 3, 40, 50\): put each", found
    )


# PyTorch is large, so CI installs it for the slow tests only.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch warns of its own prototypes
def test_tensors_without_plain_values_name_the_method() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.rand(4, 5)
    for bad, expected in (
        (tensor.to(torch.float8_e4m3fn), "found a tensor of torch.float8_e4m3fn: pass tensor.float()"),
        (tensor.to(torch.float8_e5m2), "found a tensor of torch.float8_e5m2: pass tensor.float()"),
        (tensor.to_sparse(), "found a sparse tensor (torch.sparse_coo): pass tensor.to_dense()"),
        (tensor.to_sparse_csr(), "found a sparse tensor (torch.sparse_csr): pass tensor.to_dense()"),
        (
            torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8),
            "found a quantized tensor (torch.quint8): pass tensor.dequantize()",
        ),
        (tensor.to("meta"), "found a tensor on the device meta: it has a shape, but no values"),
        (torch.nested.nested_tensor([tensor, tensor]), "found a nested tensor: put each of its tensors"),
        (tensor.to(torch.complex64), "found complex64: take np.abs(array)"),
        (torch.zeros(40, 50, 3, dtype=torch.uint8), "the array is already a picture"),
    ):
        for value_range in (None, parse_range("per-map")):
            assert expected in reason(bad, value_range=value_range)
            assert expected in reason([bad], value_range=value_range)


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["sum", "norm", "maxabs", "mean"])
@pytest.mark.parametrize("value_range", ["unit", "0,1", "per-map", "symmetric", "percentile:1,99"])
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", "uint16"]
)
async def test_channels_of_a_tensor_give_the_overlay_of_its_array(
    dtype: str, value_range: str, channels: Any, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((1, 3, 20, 30), generator=generator) * (0.3 if value_range == "unit" else 90)
    if dtype == "uint8":
        values = values.clamp(0, 80)
    tensor = values.to(getattr(torch, dtype))
    array = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
    settings = am.Settings(channels=channels, range=value_range, workers=0)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        for name, given in (("t", tensor), ("a", array), ("l", np.moveaxis(array[0], 0, -1).copy())):
            if dtype == "uint8" and name == "l":
                continue  # a picture
            try:
                await pipeline.put(name, given)
            except am.MapFailedError as error:
                assert value_range == "unit", error  # noqa: PT017
                assert "every value must lie in [0, 1]" in str(error)  # noqa: PT017
    pngs = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(pngs) <= 1
    if value_range != "unit" or dtype.endswith(("float16", "float32", "float64")):
        assert len(pngs) == 1


@pytest.mark.slow
def test_invalid_channels_of_a_tensor_are_invalid_pixels(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.rand(3, 20, 30)
    tensor[1, 2, 3], tensor[0, 4, 5] = torch.nan, torch.inf
    for channels in ("sum", "norm", "maxabs", "mean"):
        settings = am.Settings(channels=channels, range="per-map", invalid="transparent", workers=0)
        report = am.run([("t", tensor), ("a", tensor.numpy())], tmp_path, settings=settings)
        assert (report.uploaded, report.invalid) == (2, 2)
        assert (tmp_path / "t.png").read_bytes() == (tmp_path / "a.png").read_bytes()
        with Image.open(tmp_path / "a.png") as image:
            assert (np.asarray(image.convert("RGBA"))[[2, 4], [3, 5], 3] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["IntegratedGradients", "Saliency"])
async def test_captums_attributions_need_only_the_setting(method: str, tmp_path: Path) -> None:
    torch, attr = pytest.importorskip("torch"), pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    attributed = getattr(attr, method)(model).attribute(torch.rand(2, 3, 18, 26).requires_grad_(), target=1)
    assert attributed.shape == (2, 3, 18, 26)
    async with am.Pipeline(tmp_path / "none", settings=am.Settings(range="symmetric", workers=0)) as pipeline:
        with pytest.raises(am.MapFailedError, match=r'if the 3 are channels, settings=Settings\(channels="sum"\)'):
            await pipeline.put("a", attributed[:1])
    settings = am.Settings(channels="sum", range="symmetric", workers=0)
    async with am.Pipeline(tmp_path / "sum", settings=settings) as pipeline:
        receipt = await pipeline.put("one", attributed[:1])
        report = await pipeline.run(zip("ab", attributed, strict=True))
    assert report.uploaded == 2
    assert receipt.statistics.maximum == pytest.approx(attributed[0].sum(0).max().item(), rel=1e-5)
    assert (tmp_path / "sum" / "one.png").read_bytes() == (tmp_path / "sum" / "a.png").read_bytes()
