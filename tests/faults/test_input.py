"""Bad input fails alone with a short reason, in bounded memory and time."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from numpy.lib.format import open_memmap

import async_maps as am
from async_maps.cli import app as cli
from async_maps.errors import SourceError
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map
from async_maps.sources.formats.registry import Readers
from async_maps.workers.arena import Arena
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.memory import MIB, held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SMALL = 1_000
"""The largest number of pixels in these tests."""
THREADS = am.Settings(workers=0, max_pixels=SMALL)
TOO_LARGE = "and max_pixels allows 1,000 pixels: scale it down, or raise max_pixels"
TOO_LARGE_BY_DEFAULT = TOO_LARGE.replace("1,000", "268,435,456")


def npy_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claim(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """Return the header of an ``.npy`` file without data."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def tar_with(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def reasons(entries: Any) -> list[str]:
    return [entry.reason for entry in entries if isinstance(entry, Failure)]


def why_not(path: Path, part: Any = None, max_pixels: int | None = SMALL) -> str:
    """Return the reason why a map cannot be read, and check that reading takes little memory."""
    tracemalloc.start()
    try:
        with Readers(max_pixels=max_pixels) as readers, pytest.raises(SourceError) as refusal:
            readers.read(str(path), part)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    return str(refusal.value)


# --max-pixels


def large_files(folder: Path) -> None:
    """Save in each format a map above SMALL (40x30), one below (20x30), and a stack of small ones."""
    large, small = random_map(1, (40, 30)), random_map(2, (20, 30))
    arrays = {"large": large, "small": small, "stack": np.stack([small, small])}
    np.save(folder / "npy.npy", large)
    np.savez(folder / "npz.npz", **arrays)  # type: ignore[arg-type]
    tar_with(folder / "tar.tar", {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()})
    safetensors.numpy.save_file(arrays, folder / "safe.safetensors")
    root = zarr.open_group(folder / "zarr.zarr", mode="w")
    with h5py.File(folder / "h5.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
            root.create_array(name, shape=array.shape, dtype="f4")[...] = array


LARGE = {"npy", *(f"{file}/large" for file in ("npz", "tar", "safe", "zarr", "h5"))}


async def test_a_map_above_max_pixels_fails_alone_in_every_format(maps: Path, tmp_path: Path) -> None:
    large_files(maps)
    settings = am.Settings(workers=1, max_pixels=SMALL)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report = await pipeline.run(maps)
    assert report.uploaded == 15
    assert {failure.name for failure in report.failures} == LARGE
    for failure in report.failures:
        assert (failure.stage, failure.reason) == ("read", f"too large: its shape is (40, 30), {TOO_LARGE}")


async def test_a_map_of_exactly_max_pixels_passes(tmp_path: Path) -> None:
    source = [("just", random_map(1, (25, 40))), ("over", random_map(1, (7, 143)))]
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        report = await pipeline.run(source)
    assert (report.uploaded, [failure.name for failure in report.failures]) == (1, ["over"])


async def test_maps_above_max_pixels_in_s3_fail_before_the_download(bucket: str, maps: Path, tmp_path: Path) -> None:
    import boto3

    large_files(maps)
    client = boto3.client("s3")
    for path in maps.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"maps/{path.relative_to(maps)}")
    client.close()
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        report = await pipeline.run(f"s3://{bucket}/maps/")
    assert report.uploaded == 15
    assert {(failure.name, failure.stage) for failure in report.failures} == {(name, "read") for name in LARGE}
    assert all(failure.reason.endswith(TOO_LARGE) for failure in report.failures)


class Untouchable:
    """An array of another library whose copy would be too large."""

    shape = (10**6, 10**6)

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise AssertionError


async def test_an_array_above_max_pixels_is_refused_before_the_copy(tmp_path: Path) -> None:
    failure = array_map("a", Untouchable(), None, SMALL)
    assert isinstance(failure, Failure)
    assert failure.stage == "source"
    assert failure.reason == f"too large: its shape is (1,000,000, 1,000,000), {TOO_LARGE}"
    virtual = np.broadcast_to(np.float32(0.5), (10**6, 10**6))
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=0)) as pipeline:
        with pytest.raises(am.MapFailedError, match=r"max_pixels allows 268,435,456 pixels"):
            await pipeline.put("a", virtual)
        report = await pipeline.run([("a", virtual), ("b", random_map(1))])
    assert (report.uploaded, report.failed) == (1, 1)


async def test_the_first_pass_of_a_dataset_range_skips_large_maps(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    np.save(maps / "large.npy", np.full((40, 30), 77.0, np.float32))
    settings = am.Settings(workers=0, range="dataset", max_pixels=SMALL)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report = await pipeline.run(maps)
    assert (report.surveyed, report.unsurveyed, report.uploaded, report.failed) == (2, 1, 1, 1)
    assert report.range_high is not None
    assert report.range_high < 1


def terabytes(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yield small files that contain terabytes of zeros, and a part of each."""
    shape = (500_000, 500_000)
    with h5py.File(folder / "h5.h5", "w") as file:
        file.create_dataset("x", shape, "f4", chunks=(1000, 1000))
        file.create_dataset("s", (4, *shape), "f4", chunks=(1, 1000, 1000))
        file.create_dataset("c", (2, 30, 30), "f4", maxshape=(None, None, None), chunks=(2, 10_000, 10_000))
    root = zarr.open_group(folder / "zarr.zarr", mode="w")
    for name, size, chunks in [
        ("x", shape, (1000, 1000)),
        ("s", (4, *shape), (1, 1000, 1000)),
        ("c", (2, 30, 30), (2, 10_000, 10_000)),
    ]:
        root.create_array(name, shape=size, chunks=chunks, dtype="f4")
    for path in (folder / "zarr.zarr", folder / "h5.h5"):
        yield path, ["x", None]
        yield path, ["s", 1]
        yield path, ["c", 1]
    with (folder / "sparse.npy").open("wb") as sparse:
        sparse.write(claim(shape))
        sparse.truncate(10**12 + 1000)
    yield folder / "sparse.npy", None


def test_a_sparse_terabyte_is_refused_without_allocating(maps: Path) -> None:
    for path, part in terabytes(maps):
        reason = why_not(path, part, 2**24)
        if part is not None and part[0] == "c":
            assert reason == (
                "too large: its chunks have the shape (2, 10,000, 10,000), and are unpacked completely: write "
                "smaller chunks, or raise max_pixels"
            )
        else:
            assert reason.startswith("too large: its shape is (500,000, 500,000), and max_pixels allows 16,777,216 ")


def test_very_wide_values_are_refused(maps: Path) -> None:
    with (maps / "a.npy").open("wb") as sparse:
        sparse.write(claim((30, 30), "|V1000000000"))
        sparse.truncate(10**12)
    assert why_not(maps / "a.npy") == "too large: a value has 1,000,000,000 bytes, more than any real number"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1,) * 70, "expected an array of up to 64 dimensions, found 70"),
        ((2**62, 2**62, 0), "its shape is (about 2^62, about 2^62, 0), which is too large for any array"),
        ((10**40, 0), "its shape is (about 2^132, 0), which is too large for any array"),
    ],
)
def test_an_impossible_shape_is_refused(shape: tuple[int, ...], reason: str, maps: Path) -> None:
    (maps / "a.npy").write_bytes(claim(shape, "|u1") + b"x")
    assert why_not(maps / "a.npy") == reason


def zip_bomb(path: Path, shape: tuple[int, int]) -> None:
    """Write a small archive that inflates to gigabytes of zeros; only its checksum is wrong."""
    header = claim(shape)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, a block does not refer to earlier ones, so the same bytes can be repeated.
    zeros = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    size = shape[0] * shape[1] * 4
    body = start + zeros * (size // MIB) + deflate.compress(bytes(size % MIB)) + deflate.flush()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x.npy", body)
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    for method, length in ((8, 22), (central + 10, central + 24)):
        content[method : method + 2] = (8).to_bytes(2, "little")
        content[length : length + 4] = (len(header) + size).to_bytes(4, "little")
    path.write_bytes(content)


def test_a_zip_bomb_is_refused_in_bounded_memory(maps: Path) -> None:
    zip_bomb(maps / "a.npz", (30_000, 30_000))
    assert (maps / "a.npz").stat().st_size < 5 * MIB
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert why_not(maps / "a.npz", entry.part, am.Settings().max_pixels) == (
        "too large: its shape is (30,000, 30,000), and max_pixels allows 268,435,456 pixels: scale it down, or raise "
        "max_pixels"
    )
    # Bytes after a small map are not unpacked.
    with zipfile.ZipFile(maps / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", claim((5, 5)) + bytes(64 * MIB))
    tracemalloc.start()
    try:
        with Readers(max_pixels=SMALL) as readers:
            assert readers.read(str(maps / "b.npz"), ("x", None)).shape == (5, 5)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_a_stack_larger_than_its_archive_is_one_failure(maps: Path) -> None:
    header = claim((10**9, 1, 1, 1), "|u1")
    for name, compression in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
        path = maps / f"{name}.npz"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x.npy", header)
        content = bytearray(path.read_bytes())
        claimed = (10**9 + len(header)).to_bytes(4, "little")
        for start in (22, content.index(b"PK\x01\x02") + 24):
            content[start : start + 4] = claimed
        path.write_bytes(content)
        assert why_not(path, ["x", 5]).startswith("the archive is damaged at 'x': it claims 1,000,000,")
    assert [entry.name for entry in open_source(maps)] == ["packed", "stored"]


@pytest.mark.parametrize("shape", [(10**12, 0, 5), (10**12, 5, 0), (10**12, 1, 0, 5), (0, 5, 5)])
def test_a_stack_of_empty_maps_is_one_failure(shape: tuple[int, ...], maps: Path) -> None:
    (maps / "a.npy").write_bytes(claim(shape))
    with zipfile.ZipFile(maps / "b.npz", "w") as archive:
        archive.writestr("x.npy", claim(shape))
    tar_with(maps / "c.tar", {"x.npy": claim(shape)})
    header_json = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (maps / "d.safetensors").write_bytes(len(header_json).to_bytes(8, "little") + header_json)
    with h5py.File(maps / "e.h5", "w") as file:
        file.create_dataset("x", shape, "f4")
    assert [entry.name for entry in open_source(maps)] == ["a", "b", "c", "d", "e"]
    report = am.run(maps, maps.parent / "out", settings=am.Settings(workers=0))
    assert [failure.stage for failure in report.failures] == ["colorize"] * 5
    assert {failure.reason for failure in report.failures} == {f"the activation map is empty: its shape is {shape}"}


def test_a_name_of_gigabytes_in_a_tar_is_refused(maps: Path) -> None:
    tar_with(maps / "a.tar", {"x.npy": npy_bytes(random_map(1))})
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 3 * 2**30
    with (maps / "a.tar").open("r+b") as archive:
        archive.seek(1024 * 3)  # after the member: a header and 2,528 bytes
        archive.write(long.tobuf(tarfile.GNU_FORMAT))
        archive.truncate(4 * 2**30)
    tracemalloc.start()
    try:
        entry, failure = open_source(maps)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert entry.name == "a/x"
    assert isinstance(failure, Failure)
    assert failure.reason == "the archive is damaged: a name or attributes of 3,221,225,472 bytes"


@pytest.mark.timeout(60)
def test_a_tensor_of_100_000_dimensions_is_refused_quickly(maps: Path) -> None:
    header_json = json.dumps({"x": {"dtype": "F32", "shape": [10**300] * 10**5, "data_offsets": [0, 0]}}).encode()
    (maps / "a.safetensors").write_bytes(len(header_json).to_bytes(8, "little") + header_json)
    with Readers() as readers, pytest.raises(SourceError, match="the header is damaged at the tensor 'x'"):
        readers.read(str(maps / "a.safetensors"), ["x", None])


# One huge map among small ones


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process")
@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_huge_map_among_small_ones_stays_within_the_memory_bound(maps: Path, tmp_path: Path) -> None:
    side, queue = 6_000, 2 * MIB
    for number in range(60):
        np.save(maps / f"{number:02}.npy", random_map(number, (100, 100)))
    settings = am.Settings(workers=2, encode_threads=2, queue_bytes=queue)
    without = _peak(lambda: am.run(maps, tmp_path / "small", settings=settings))
    huge = open_memmap(maps / "30x.npy", mode="w+", dtype=np.float32, shape=(side, side))
    huge[:] = np.linspace(0, 1, side, dtype=np.float32)
    huge.flush()
    del huge
    blocks_held: list[tuple[int, int]] = []
    original = Arena.take

    async def watched(arena: Any, size: int, spare: int) -> Any:
        block = await original(arena, size, spare)
        blocks_held.append((block.size, arena.held))
        return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "take", watched)
        with_huge = _peak(lambda: am.run(maps, tmp_path / "out", settings=settings))
    assert len(list((tmp_path / "out").glob("*.png"))) == 61
    pixels = decode((tmp_path / "out" / "30x.png").read_bytes())
    assert pixels.shape == (side, side, 4)
    assert max(size for size, _ in blocks_held) in range(side * side, side * (side + 1) + 2**16)
    assert max(held for _, held in blocks_held) <= max(queue, 2 * side * (side + 1) + 2**17)
    # README's formula: a worker holds a map's array and intensities, an encode thread its pixels and PNG.
    array, plane = side * side * 4, side * side
    assert with_huge - without < array + 4 * plane + 30 * MIB


def _peak(work: Callable[[], object]) -> int:
    """Return the most bytes that all processes together hold during the work, above those held before."""
    before, samples, running = held(), [0], threading.Event()

    def watch() -> None:
        while not running.wait(0.01):
            samples.append(held() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        running.set()
        watching.join()
    return max(samples)


# Files that change after the listing


class Listed:
    """A source that lists a folder and then changes it."""

    def __init__(self, folder: Path, change: Callable[[], None]) -> None:
        self._folder = folder
        self._change = change

    def __iter__(self) -> Iterator[Any]:
        entries = list(open_source(self._folder))
        self._change()
        yield from entries


@pytest.mark.timeout(60)
@pytest.mark.usefixtures(leaves_nothing.__name__)
async def test_files_changed_after_the_listing_are_failures(maps: Path, tmp_path: Path) -> None:
    for name in ("good", "vanishes", "shrinks", "folder", "pipe", "device", "link", "text", "larger"):
        np.save(maps / f"{name}.npy", random_map(1))
    for name in ("member", "archive"):
        np.savez(maps / f"{name}.npz", x=random_map(1), labels=np.arange(5))
    tar_with(maps / "moved.tar", {"x.npy": npy_bytes(random_map(1))})

    def change() -> None:
        for name in ("vanishes", "folder", "pipe", "device", "link"):
            (maps / f"{name}.npy").unlink()
        os.truncate(maps / "shrinks.npy", 1_000)
        (maps / "folder.npy").mkdir()
        os.mkfifo(maps / "pipe.npy")
        (maps / "device.npy").symlink_to("/dev/zero")
        (maps / "link.npy").symlink_to("link.npy")
        (maps / "text.npy").write_text("no map any more")
        np.save(maps / "larger.npy", random_map(1, (50, 50)))
        np.savez(maps / "member.npz", y=random_map(1))
        os.truncate(maps / "archive.npz", 300)
        os.truncate(maps / "moved.tar", 700)

    settings = am.Settings(workers=1, max_pixels=SMALL)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report = await pipeline.run(Listed(maps, change), manifest=tmp_path / "manifest.sqlite")
    assert report.uploaded == 1
    assert {failure.stage for failure in report.failures} == {"read"}
    found = {failure.name: failure.reason for failure in report.failures}
    assert found.pop("archive").startswith("expected an .npz archive (a zip file): ")
    assert found == {
        "vanishes": "the file does not exist: it was moved or deleted, or it is a broken symbolic link",
        "shrinks": "truncated: its header promises 2,400 bytes of data (shape (20, 30), float32), found 872",
        "folder": "cannot be read: Is a directory",
        "pipe": "expected a regular file, found a pipe",
        "device": "expected a regular file, found a device",
        "link": "a symbolic link points back to itself",
        "text": "expected an .npy file: the magic string is not correct; expected b'\\x93NUMPY', got b'no map'",
        "larger": f"too large: its shape is (50, 50), {TOO_LARGE}",
        "member": "the archive has no array 'x' anymore",
        "moved": "truncated: its data end at byte 3,040, but the archive at byte 700",
    }


@pytest.mark.timeout(60)
def test_a_pipe_beside_a_stack_or_in_a_hierarchy_is_a_failure(maps: Path) -> None:
    np.save(maps / "a.npy", np.zeros((3, 5, 5), np.float32))
    os.mkfifo(maps / "a.names.txt")
    zarr.create_array(maps / "b.zarr", data=np.ones((5, 5), np.float32))
    os.mkfifo(maps / "b.zarr" / "c" / "0" / "1")
    assert reasons(open_source(maps)) == [
        "the list of names cannot be read: expected a regular file, found a pipe",
        "at c/0/1: expected a regular file, found a pipe",
    ]


# Names


@pytest.mark.parametrize("character", [*map(chr, range(0x80, 0xA0))])
def test_a_name_with_terminal_controls_is_refused_and_escaped(character: str, maps: Path) -> None:
    np.save(maps / f"a{character}31m.npy", random_map(1))
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.reason == f"the name a\\x{ord(character):x}31m has a control character: rename the file"


# Every kind of bad input


def everything_bad(folder: Path, evidence: Path) -> dict[str, tuple[str, str]]:
    """Write a bad file of each kind. Returns stage and reason by source."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(evidence),)

    pickled = np.empty(1, object)
    pickled[0] = Payload()
    np.save(folder / "pickled.npy", pickled, allow_pickle=True)
    np.savez(folder / "pickled.npz", allow_pickle=True, x=pickled)
    good = random_map(1)
    arrays = {
        "structured": np.zeros((2, 2), [("a", "f4")]),
        "complex": np.zeros((3, 4), complex),
        "integers": np.zeros((3, 4), np.int64),
        "text": np.full((3, 4), "0.5"),
        "0-d": np.float32(0.5),
        "1-d": good[0],
        "3-d": np.zeros((3, 4, 3), np.float32),
        "4-d": np.zeros((2, 3, 4, 5), np.float32),
        "5-d": np.zeros((2, 2, 3, 4, 5), np.float32),
        "zero-size": np.zeros((0, 4), np.float32),
        "nan": np.where(good == good[3, 4], np.nan, good),
        "infinite": np.where(good == good[3, 4], -np.inf, good),
        "out of range": np.where(good == good[3, 4], np.float32(1.5), good),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))
    (folder / "truncated.npy").write_bytes(npy_bytes(good)[:-1])
    (folder / "empty.npy").touch()
    (folder / "magic.npy").write_bytes(b"GIF89a" + bytes(99))
    (folder / "terabyte.npy").write_bytes(claim((500_000, 500_000)))
    with (folder / "sparse.npy").open("wb") as sparse:
        sparse.write(claim((500_000, 500_000)))
        sparse.truncate(10**12 + 1000)
    zip_bomb(folder / "bomb.npz", (20_000, 20_000))
    (folder / "empty.npz").touch()
    os.mkfifo(folder / "pipe.npy")
    (folder / "device.npy").symlink_to("/dev/zero")
    (folder / "dangling.npy").symlink_to("nowhere")
    (folder / "loop.npy").symlink_to("loop.npy")
    for name in ("a.h5", "a.safetensors", "a.tar", "a.tar.gz", "a.zarr"):
        (folder / name).write_bytes(b"not what its name says" * 40)
    (folder / "folder.zarr").mkdir()
    members = {name: npy_bytes(good) for name in ("../up.npy", "/absolute.npy", "a/../../b.npy", "x\x1b[2J.npy")}
    tar_with(folder / "evil.tar", members)
    with zipfile.ZipFile(folder / "evil.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    np.save(folder / "twin.NPY.npy", good)
    np.savez(folder / "twin.npz", NPY=good, other=good)
    (folder / "twin").mkdir()
    np.save(folder / "twin" / "NPY.npy", good)
    for undecoded in (b"caf\xe9.npy", b"a\nb.npy", b"...npy", b".npy"):
        (folder / os.fsdecode(undecoded)).write_bytes(npy_bytes(good))
    deep = Path(*["d" * 200] * 5)
    (folder / deep).mkdir(parents=True)
    (folder / deep / f"{'d' * 16}.npy").write_bytes(npy_bytes(good))

    def dims(shape: str) -> tuple[str, str]:
        return "colorize", f"an activation map must have the shape (h, w) or (h, w, 1); found {shape}"

    def bad_value(value: str) -> tuple[str, str]:
        return "colorize", (
            f"every value must lie in [0, 1]; found {value} at index (3, 4) (NaN or out of range: 1 of 600 values)"
        )

    pickles = "read", "expected an array of numbers, found pickled Python objects, which are never read"
    another = "another map of this run has the same name"
    promises = "truncated: its header promises"
    relative = "is not allowed; use a relative path such as 'folder/name'"
    empty = "empty parts are not allowed; use a relative path such as 'folder/name'"
    expected = {
        "pickled.npy": pickles,
        "complex.npy": ("colorize", "the values of an activation map must be real numbers; found complex128"),
        "integers.npy": ("colorize", (
            "an activation map must be uint8, or float with values in [0, 1]; found int64: for other values, set range "
            "to per-map, symmetric or LO,HI"
        )),
        "3-d.npy": dims("(3, 4, 3)"),
        "4-d.npy": dims("(2, 3, 4, 5)"),
        "5-d.npy": dims("(2, 2, 3, 4, 5)"),
        "zero-size.npy": ("colorize", "the activation map is empty: its shape is (0, 4)"),
        "nan.npy": bad_value("NaN"),
        "infinite.npy": bad_value("-inf"),
        "out of range.npy": bad_value("1.5"),
        "truncated.npy": ("read", f"{promises} 2,400 bytes of data (shape (20, 30), float32), found 2,399"),
        "empty.npy": ("read", "expected an .npy file, found an empty one"),
        "magic.npy": ("read", "expected an .npy file: the magic string is not correct"),
        "terabyte.npy": ("read", f"{promises} 1,000,000,000,000 bytes of data (shape (500000, 500000), float32)"),
        "sparse.npy": ("read", f"too large: its shape is (500,000, 500,000), {TOO_LARGE_BY_DEFAULT}"),
        "bomb.npz": ("read", f"too large: its shape is (20,000, 20,000), {TOO_LARGE_BY_DEFAULT}"),
        "empty.npz": ("source", "expected an .npz archive (a zip file): File is not a zip file"),
        "pipe.npy": ("source", "expected a regular file, found a pipe"),
        "device.npy": ("source", "expected a regular file, found a device"),
        "dangling.npy": ("source", "the file does not exist: it was moved or deleted, or it is a broken symbolic link"),
        "loop.npy": ("source", "a symbolic link points back to itself"),
        "a.h5": ("source", "expected an HDF5 file: "),
        "a.safetensors": ("source", "expected a safetensors file: no header of "),
        "a.tar": ("source", "expected a tar archive that is not compressed: "),
        "a.tar.gz": ("source", (
            "a compressed tar has no random access: decompress it first"
        )),
        "a.zarr": ("source", "expected a folder, found a regular file"),
        "folder.zarr": ("source", "expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray"),
        "twin/NPY.npy": ("source", f"{another}: '{folder}/twin.npz[NPY]'; rename one of them"),
        "caf\\udce9.npy": ("source", "the name caf\\udce9 is not UTF-8: rename the file"),
        "a\\nb.npy": ("source", "the name a\\nb has a control character: rename the file"),
        "...npy": ("source", f"the name '..': '..' {relative}"),
        ".npy": ("source", f"the name '': {empty}"),
        f"{deep}/{'d' * 16}.npy": ("source", "the key is 1,025 bytes long, and S3 allows 1,024; use a shorter name: "),
    }  # fmt: skip
    for file in ("evil.tar", "evil.npz"):
        for member, problem in (("../up", f"'..' {relative}"), ("/absolute", empty), ("a/../../b", f"'..' {relative}")):
            expected[f"{file}[{member}]"] = ("source", f"the name 'evil/{member}': {problem}")
        expected[f"{file}[x\\x1b[2J]"] = (
            "source",
            "the name evil/x\\x1b[2J has a control character: rename the file",
        )
    return {f"{folder}/{source}": failure for source, failure in expected.items()}


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.timeout(100)
async def test_every_kind_of_bad_input_fails_alone(maps: Path, tmp_path: Path) -> None:
    evidence, out = tmp_path / "executed", tmp_path / "above" / "out"
    expected = everything_bad(maps, evidence)
    good = {f"good/{number}": random_map(number) for number in range(17)}
    (maps / "good").mkdir()
    for name, array in good.items():
        np.save(maps / f"{name}.npy", array)
    (maps / "folder.npy").mkdir()
    np.save(maps / "folder.npy" / "in it.npy", random_map(17))
    before = tree(tmp_path)
    async with am.Pipeline(out, settings=am.Settings(workers=1)) as pipeline:
        report = await pipeline.run(maps, manifest=tmp_path / "manifest.sqlite")
    arrived = {*good, "folder.npy/in it", "twin/NPY", "twin/other", "twin.NPY"}
    assert (report.uploaded, report.failed) == (len(arrived), len(expected)) == (21, 41)
    with Manifest(tmp_path / "manifest.sqlite", read_only=True) as manifest:
        rows = list(manifest.rows(failed=True))
    assert {row[0] for row in rows if row[2] == "done"} == arrived
    failed = {str(row[3]): (str(row[10]), str(row[11])) for row in rows if row[2] == "failed"}
    assert set(failed) == set(expected)
    for source, (stage, reason) in expected.items():
        assert failed[source][0] == stage, source
        assert failed[source][1].startswith(reason), source
        assert failed[source][1].isprintable()
    # Nothing was executed, and nothing was written outside the destination.
    assert not evidence.exists()
    new = tree(tmp_path) - before - {out.parent, out} - set(tmp_path.glob("manifest.sqlite*"))
    assert {str(path.relative_to(out)) for path in new if path.is_file()} == {f"{name}.png" for name in arrived}
    for name, array in good.items():
        assert np.array_equal(decode((out / f"{name}.png").read_bytes()), am.colorize_activation_map(array))


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_dry_run_knows_all_failures_but_those_of_values(maps: Path, tmp_path: Path, with_manifest: bool) -> None:
    everything_bad(maps, tmp_path / "executed")
    settings, manifest = am.Settings(workers=0, max_pixels=1000), tmp_path / "m.sqlite" if with_manifest else None
    planned, done = (do(maps, tmp_path / "out", settings=settings, manifest=manifest) for do in (am.dry_run, am.run))
    assert set(planned.failures) < set(done.failures)
    assert planned.seen == done.seen
    unknown = set(done.failures) - set(planned.failures)
    assert len(unknown) == 3
    assert all(failure.reason.startswith("every value must lie in [0, 1]; found") for failure in unknown)


def test_the_command_names_bad_input_and_exits_with_1(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = everything_bad(maps, tmp_path / "executed")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(maps), "out", "--progress", "none", "--max-pixels", "1000", "--report", "report.json"])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert f"3 uploaded, 0 skipped, {len(expected)} failed" in out
    assert all(line.isprintable() for line in err.splitlines())
    command = f"async-maps export {tmp_path}/async-maps.sqlite failures.csv --failed"
    assert f"to list the {len(expected)} failures: {command}" in err
    report = json.loads(Path("report.json").read_text())
    assert report["exit_code"] == 1
    found = {failure["source"]: failure["reason"] for failure in report["failures"]}
    assert found[f"{maps}/sparse.npy"] == f"too large: its shape is (500,000, 500,000), {TOO_LARGE}"
