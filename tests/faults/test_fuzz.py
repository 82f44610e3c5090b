"""Every reader turns random and mutated bytes into maps and failures; random names stay below the destination."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
import zipfile
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from async_maps.errors import ObjectError, SourceError, translate_os_error
from async_maps.keys import KeyTemplate
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map
from async_maps.sources.batches import with_key
from async_maps.sources.formats.registry import Readers
from async_maps.stores.files import FileStore
from tests.support.properties import examples
from tests.support.torch_files import torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.hypothesis

MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
STACK = np.linspace(0, 1, 75, dtype=np.float32).reshape(5, 3, 5)
MIB = 2**20
MAX_PIXELS = 10**6

_ENTRIES = 300
"""The most entries to list; a damaged header may claim any number of maps."""


@contextmanager
def little_memory() -> Iterator[None]:
    """Check that this process takes at most 100 MiB more than before; on Linux only."""

    def resident(line: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(text.split()[1]) for text in lines if text.startswith(line))

    forget_peak = Path("/proc/self/clear_refs")
    if not forget_peak.exists():
        yield
        return
    forget_peak.write_text("5")
    before = resident("VmRSS:")
    yield
    assert resident("VmHWM:") - before < 100 * MIB


# Files to mutate


def _npy(array: Any = MAP) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npy_gz(array: Any) -> bytes:
    return gzip.compress(_npy(array))


def _npz(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, a=MAP, é=STACK)
    return buffer.getvalue()


def _tar(kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        members = {"é" * 20 + ".npy": _npy(), "1.json": b"{}", "2.npy": _npy(STACK), "3.pt": torch_file([MAP, STACK])}
        for name, content in (members | {"4.npy.gz": _npy_gz(MAP), "5.npz": _npz(np.savez)}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _hdf5(libver: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        file["a"], file["labels"], file["text"] = MAP, np.arange(5), "text"
        file.create_dataset("g/s", data=STACK, **how)
        file["soft"], file["external"] = h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/a")
    return buffer.getvalue()


def _tiff(*arrays: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=how.pop("bigtiff", False)) as file:
        for array in arrays:
            file.write(array, photometric="minisblack", **how)
    return buffer.getvalue()


def _picture(kind: str, mode: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    gray = Image.fromarray((MAP * 255).astype(np.uint8))
    (Image.fromarray((MAP * 65535).astype(np.uint16)) if mode == "I;16" else gray.convert(mode)).save(
        buffer, kind, **how
    )
    return buffer.getvalue()


def _netcdf(version: str) -> bytes:
    netcdf4: Any = pytest.importorskip("netCDF4")
    with TemporaryDirectory() as folder:
        with netcdf4.Dataset(f"{folder}/x.nc", "w", format=version) as file:
            for name, size in {"n": None, "y": 3, "x": 5, "width": 2}.items():
                file.createDimension(name, size)
            file.createVariable("names", "S1", ("n", "width"))[:] = np.array(list("aabbccddee")).reshape(5, 2)
            file.createVariable("lat", "f4", ("y", "x"))[:] = 0
            packed = file.createVariable("s", "i2", ("n", "y", "x"), fill_value=-1)
            packed.scale_factor, packed.coordinates = 0.01, "lat"
            packed[:] = STACK
        return Path(f"{folder}/x.nc").read_bytes()


def _table() -> pa.Table:
    columns = {
        "name": pa.array([f"map {number}" for number in range(5)]),
        "lists": pa.array(STACK.tolist(), pa.list_(pa.list_(pa.float32()))),
        "labels": pa.array(range(5)),
        "bytes": pa.array([b"text"] * 5),
    }
    return pa.table(columns)


def _parquet_files() -> list[bytes]:
    return [_parquet(**how) for how in ({}, {"compression": "zstd", "data_page_version": "2.0"})]


def _arrow_files() -> list[bytes]:
    return [_arrow(new, codec) for new in (pa.ipc.new_file, pa.ipc.new_stream) for codec in (None, "lz4", "zstd")]


def _parquet(**how: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(_table(), buffer, row_group_size=3, **how)
    return buffer.getvalue()


def _arrow(new: Callable[..., Any], codec: str | None) -> bytes:
    buffer, table = io.BytesIO(), _table()
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(STACK)
    if codec == "zstd":
        table = table.set_column(1, "tensors", tensors).set_column(0, "name", table["name"].cast(pa.string_view()))
    with new(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


def _matlab(packed: bool) -> bytes:
    scipy_io: Any = pytest.importorskip("scipy.io")
    buffer = io.BytesIO()
    names = np.array(list("abcde"), object)
    arrays = {"s": {"x": np.moveaxis(STACK, 0, -1), "names": names}, "c": np.array([[MAP, "x"]], object), "l": MAP > 0}
    scipy_io.savemat(buffer, arrays, do_compression=packed)
    return buffer.getvalue()


def _matlab_73() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        cells = file.create_group("#refs#")
        for name, value in {"a": MAP, "b": STACK, "c": np.array([[97]], "u2")}.items():
            cells[name] = value
            cells[name].attrs["MATLAB_class"] = np.bytes_(b"char" if name == "c" else b"single")
        for name, values in {"cells": "ab", "s/names": "ccccc"}.items():
            file.create_dataset(name, (len(values), 1), h5py.ref_dtype)[:, 0] = [cells[value].ref for value in values]
        file.create_dataset("s/x", data=STACK, **_PACKED)
    return buffer.getvalue()


_PACKED: dict[str, Any] = {"chunks": (2, 3, 5), "compression": "gzip", "fletcher32": True}


_KEPT: dict[str, Any] = {"pnginfo": PngInfo(), "exif": Image.Exif()}


def _tiffs() -> list[bytes]:
    codecs = [{"compression": codec} for codec in ("zlib", "lzw", "lzma", "zstd", "packbits")]
    kinds: list[dict[str, Any]] = [{}, {"metadata": None}, {"truncate": True}, {"bigtiff": True}]
    kinds += [{"tile": (16, 16)}, {"rowsperstrip": 1}, *(codecs if find_spec("imagecodecs") else [])]
    return [_tiff(STACK, **how) for how in kinds] + [_tiff(MAP, MAP[:2]), _tiff((MAP * 255).astype("u1"))]


_TENSORS: dict[str, Any] = {"a": MAP, "s": STACK, "h": MAP.astype(np.float16), "labels": np.arange(5)}


def _torch_files() -> list[bytes]:
    nested = _TENSORS | {"l": [MAP.T, 3]}
    return [torch_file(nested), torch_file(nested, old=True), torch_file(MAP)]


@cache
def originals(suffix: str) -> list[bytes]:
    """Return valid files of a format, one of each kind that its writers make."""
    files: dict[str, Callable[[], list[bytes]]] = {
        ".npy": lambda: [_npy(), _npy(STACK), _npy(MAP.T), _npy(np.zeros(3, [("a", "f4")]))],
        ".npz": lambda: [_npz(np.savez), _npz(np.savez_compressed)],
        ".npy.gz": lambda: [_npy_gz(MAP), _npy_gz(STACK)],
        ".tar": lambda: [_tar(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)],
        ".h5": lambda: [_hdf5(libver, **how) for libver in ("earliest", "latest") for how in ({}, _PACKED)],
        ".safetensors": lambda: [
            safetensors.numpy.save(_TENSORS),
            safetensors.numpy.save({"a": MAP}, {"made": "here"}),
        ],
        ".nc": lambda: [_netcdf(version) for version in ("NETCDF3_CLASSIC", "NETCDF3_64BIT_DATA", "NETCDF4")],
        ".mat": lambda: [_matlab(False), _matlab(True), _matlab_73()],
        ".tif": _tiffs,
        ".parquet": _parquet_files,
        ".arrow": _arrow_files,
        ".png": lambda: [_picture("PNG", mode, **_KEPT) for mode in ("1", "L", "LA", "P", "I;16", "RGB")],
        ".jpg": lambda: [_picture("JPEG", "L"), _picture("JPEG", "L", progressive=True), _picture("JPEG", "RGB")],
        ".pt": _torch_files,
    }
    return files[suffix]()


@cache
def hierarchies(version: Any) -> dict[str, bytes]:
    """Return the files of a Zarr hierarchy by name."""
    store: dict[str, Any] = {}
    root = zarr.open_group(store, mode="w", zarr_format=version)
    for name, array in {"a": MAP, "g/s": STACK}.items():
        root.create_array(name, shape=array.shape, chunks=(2, *array.shape[1:]), dtype="f4")[...] = array
    return {name: value.to_bytes() for name, value in store.items()}


_BYTES = st.integers(0, 255) | st.sampled_from(b'\x00\xff\x7f\x80\x01(){}[],:"-+09aeOV|<S./\n ')
_PLACES = st.integers(0, 2**16)
_MUTATIONS = st.lists(
    st.tuples(st.just("set"), _PLACES, _BYTES)
    | st.tuples(st.just("insert"), _PLACES, st.binary(max_size=20))
    | st.tuples(st.just("repeat"), _PLACES, st.integers(1, 600))
    | st.tuples(st.just("drop"), _PLACES, st.integers(1, 600))
    | st.tuples(st.just("cut"), _PLACES, st.none()),
    min_size=1,
    max_size=8,
)


def mutated(content: bytes, mutations: list[tuple[str, int, Any]]) -> bytes:
    """Return the content after the mutations."""
    changed = bytearray(content)
    for kind, place, value in mutations:
        at = place % max(len(changed), 1)
        match kind:
            case "set" if changed:
                changed[at] = value
            case "insert":
                changed[at:at] = value
            case "repeat":
                changed[at:at] = changed[at : at + value]
            case "drop":
                del changed[at : at + value]
            case "cut":
                del changed[at:]
    return bytes(changed)


def list_and_read(place: Path) -> None:
    """List and read everything at the place as a run does. Errors other than a map's failure are raised."""
    with Readers(max_pixels=MAX_PIXELS) as readers:
        for entry in islice(open_source(place), _ENTRIES):
            if isinstance(entry, Failure):
                assert entry.reason
                assert f"{entry.name}{entry.source}{entry.reason}".isprintable(), entry
                entry.reason.encode()
                continue
            assert entry.path is not None
            # Parts are sent to workers as JSON.
            part = json.loads(json.dumps(entry.part))
            try:
                array = readers.read(entry.path, part)
            except (SourceError, OSError) as error:
                reason = translate_os_error(error)
            else:
                reason = ""
                assert array.size <= MAX_PIXELS
                assert isinstance(array_map("a", array), ActivationMap | Failure)
            assert "\n" not in reason


_MAGIC = {
    ".npy": b"\x93NUMPY\x01\x00",
    ".npz": b"PK\x03\x04",
    ".npy.gz": b"\x1f\x8b\x08",
    ".tar": b"",
    ".h5": b"\x89HDF\r\n\x1a\n",
    ".nc": b"CDF\x01",
    ".mat": bytes(124) + b"\x00\x01IM\x0e\x00\x00\x00",
    ".safetensors": b"",
    ".pt": b"\x80\x02",
    ".tif": b"II*\x00",
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".parquet": b"PAR1",
    ".arrow": b"ARROW1\0\0",
}
"""The first bytes of a file of each format."""

CASES = 100
"""The cases for each format; with ``-m long`` 2,000."""


def _fuzz(cases: int) -> settings:
    return settings(examples(cases), database=None, suppress_health_check=list(HealthCheck), print_blob=True)


@pytest.mark.parametrize("suffix", _MAGIC)
def test_mutated_files_give_only_maps_and_failures(suffix: str, maps: Path) -> None:
    @_fuzz(CASES)
    @given(original=st.sampled_from(originals(suffix)), mutations=_MUTATIONS)
    def check(original: bytes, mutations: list[tuple[str, int, Any]]) -> None:
        (maps / f"x{suffix}").write_bytes(mutated(original, mutations))
        list_and_read(maps)

    list_and_read(maps)
    with little_memory():
        check()


@pytest.mark.parametrize("suffix", _MAGIC)
def test_random_bytes_give_only_maps_and_failures(suffix: str, maps: Path) -> None:
    @_fuzz(CASES)
    @given(content=st.binary(max_size=3_000), magic=st.booleans())
    def check(content: bytes, magic: bool) -> None:
        (maps / f"x{suffix}").write_bytes((_MAGIC[suffix] if magic else b"") + content)
        list_and_read(maps)

    with little_memory():
        check()


_SIZES = st.integers(-3, 6) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**12, 10**40])
_SHAPES = st.lists(_SIZES, max_size=6) | st.lists(st.just(1), min_size=60, max_size=70)
_DESCR = st.sampled_from(
    ["<f4", ">f8", "|u1", "<f2", "|O", "|V8", "|V2147483647", "<U500000000", "|S0", "<c16", "M8[s]"]
)


def test_random_headers_give_only_maps_and_failures(maps: Path) -> None:
    @_fuzz(CASES)
    @given(
        shape=_SHAPES, descr=_DESCR, fortran=st.booleans(), data=st.binary(max_size=300), how=st.sampled_from("ntzs")
    )
    def check(shape: list[int], descr: str, fortran: bool, data: bytes, how: str) -> None:
        for path in maps.iterdir():
            path.unlink()
        header = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}).encode()
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
        match how:
            case "n":
                (maps / "x.npy").write_bytes(content)
            case "t":
                with tarfile.open(maps / "x.tar", "w") as archive:
                    member = tarfile.TarInfo("a.npy")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            case "z":
                with zipfile.ZipFile(maps / "x.npz", "w", zipfile.ZIP_DEFLATED) as zipped:
                    zipped.writestr("a.npy", content)
            case "s":
                dtype = {"<f4": "F32", "|u1": "U8", "<f2": "F16", "<c16": "BF16"}.get(descr, "F64")
                tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
                header_json = json.dumps({"a": tensor}).encode()
                (maps / "x.safetensors").write_bytes(len(header_json).to_bytes(8, "little") + header_json + data)
        list_and_read(maps)

    with little_memory():
        check()


@pytest.mark.parametrize("version", [2, 3])
def test_mutated_zarr_hierarchies_give_only_maps_and_failures(version: Any, maps: Path) -> None:
    files = hierarchies(version)

    @_fuzz(CASES)
    @given(name=st.sampled_from(sorted(files)), mutations=_MUTATIONS)
    def check(name: str, mutations: list[tuple[str, int, Any]]) -> None:
        for file, content in files.items():
            path = maps / "x.zarr" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutated(content, mutations) if file == name else content)
        list_and_read(maps)

    with little_memory():
        check()


# Names


_PARTS = st.sampled_from(["..", ".", "", "a", "b c", "é", "~", "\\", "%2e%2e", "x.npy", "\x00", "\x9b", "C:", "\u2028"])
_NAMES = st.text(max_size=40) | st.lists(_PARTS | st.text(max_size=5), max_size=6).map("/".join) | st.binary(
    max_size=20
).map(lambda name: name.decode(errors="surrogateescape"))  # fmt: skip
_TEMPLATES = st.sampled_from(["{name}.png", "{parent}/{stem}.png", "a/{stem}/{index:06}.png", "{stem}", "x{name}"])


def test_random_names_stay_below_the_destination(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "out"
    folder.mkdir(parents=True)
    store = FileStore(folder)
    stored: set[str] = set()

    @_fuzz(CASES)
    @given(name=_NAMES, template=_TEMPLATES)
    def check(name: str, template: str) -> None:
        keys = KeyTemplate(template)
        entry = with_key(array_map(name, MAP), "", keys)
        if isinstance(entry, Failure):
            assert entry.stage == "source"
            assert f"{entry.name}{entry.source}{entry.reason}".isprintable()
            return
        assert entry.name == name
        key = keys.key("", name)
        try:
            loop.run_until_complete(store.put(key, b"x"))
        except ObjectError:
            return  # a part too long for the disk, or both a file and a folder
        assert (folder / key).read_bytes() == b"x"
        stored.add(key)

    loop = asyncio.new_event_loop()
    try:
        check()
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found <= stored
    assert {path.name for path in tmp_path.iterdir()} == {"above"}
    assert {path.name for path in folder.parent.iterdir()} == {"out"}
