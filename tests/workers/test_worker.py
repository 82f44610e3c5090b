from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from async_maps.errors import WorkerError
from async_maps.render.colorize import colorize_activation_map
from async_maps.render.colormap import ColormapJet, color_table, colormap_table
from async_maps.render.quantize import Measured
from async_maps.render.ranges import UNIT
from async_maps.render.scanlines import scanline_bytes
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from async_maps.stages.encode import encode_bitmap
from async_maps.stages.items import Bitmap, Job
from async_maps.workers import pool, worker
from async_maps.workers.arena import Arena
from async_maps.workers.pool import ProcessWorker
from async_maps.workers.worker import Failed, Recipe, Reply, Request, Result, aligned, colorize_chunk, frame
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

tidy = pytest.mark.usefixtures(leaves_nothing.__name__)
"""It looks at all of memory: for the tests that start processes."""

TABLE = color_table(ColormapJet())
PALETTE, RGBA = Recipe(TABLE), Recipe(TABLE, "rgba")


def random_map(*shape: int, dtype: Any = np.float32, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).random(shape).astype(dtype)


def intensities(array: NDArray[Any]) -> NDArray[np.uint8]:
    """What a palette bitmap of it holds."""
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)


def in_file(path: Path, member: str | None = None) -> Request:
    """A map in a file."""
    return Request(str(path), None if member is None else (member, None), 0, (), "")


def saved(path: Path, array: NDArray[Any]) -> Request:
    """A map in a file that is written now."""
    np.save(path, array)
    return in_file(path)


def placed(block: NDArray[np.uint8], offset: int, array: NDArray[Any]) -> Request:
    """A map in a block, where it is written now."""
    np.ndarray(array.shape, array.dtype, block.data, offset)[...] = array
    return Request(None, None, offset, array.shape, array.dtype.str)


def pixels(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> NDArray[np.uint8]:
    """The pixels whose scanlines a result points at."""
    assert result.rgba == (recipe.png == "rgba")
    shape = (result.height, result.width, 4) if result.rgba else (result.height, result.width)
    lines = scanlines(block, result).reshape(result.height, -1)
    assert set(lines[:, 0].tolist()) in ({0}, {2})
    rows = np.cumsum(lines[:, 1:], 0, np.uint8) if lines[0, 0] else lines[:, 1:]
    return rows.reshape(shape)


def scanlines(block: NDArray[np.uint8], result: Result) -> NDArray[np.uint8]:
    size = scanline_bytes(result.height, result.width, 4 if result.rgba else 1)
    return block[result.offset : result.offset + size]


def colorized(reply: Reply) -> list[Result]:
    """The results of a chunk in which no map failed."""
    assert not [result for result in reply.results if isinstance(result, Failed)]
    return [result for result in reply.results if isinstance(result, Result)]


# A chunk, wherever it is colorized


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_maps_in_files_and_in_the_block_are_colorized_alike(tmp_path: Path, dtype: Any) -> None:
    array = random_map(7, 9, dtype=dtype)
    if dtype is np.uint8:
        array = np.arange(63, dtype=np.uint8).reshape(7, 9)
    np.savez(tmp_path / "many.npz", first=np.zeros((2, 2)), second=array)
    np.savez_compressed(tmp_path / "small.npz", only=array[..., np.newaxis])
    for recipe, expected in ((PALETTE, intensities(array)), (RGBA, colorize_activation_map(array))):
        block = np.zeros(64_000, np.uint8)
        requests = [
            placed(block, 0, array),
            saved(tmp_path / "map.npy", array),
            in_file(tmp_path / "many.npz", "second"),
            in_file(tmp_path / "small.npz", "only"),
            saved(tmp_path / "fortran.npy", np.asfortranarray(array)),
        ]
        reply = colorize_chunk(block, 32_000, requests, recipe)
        assert reply.wanted == 0
        assert len(reply.results) == len(requests)
        for result in colorized(reply):
            np.testing.assert_array_equal(pixels(block, result, recipe), expected)


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
def test_each_map_has_an_aligned_place_of_its_own_behind_the_arrays(recipe: Recipe) -> None:
    block = np.zeros(20_000, np.uint8)
    arrays = [random_map(5, 5 + index, seed=index) for index in range(6)]
    requests = [placed(block, index * 512, array) for index, array in enumerate(arrays)]
    reply = colorize_chunk(block, aligned(6 * 512), requests, recipe)
    end = 6 * 512
    for array, result in zip(arrays, colorized(reply), strict=True):
        assert result.offset % 64 == 0
        assert result.offset >= end
        end = result.offset + scanline_bytes(result.height, result.width, recipe.channels)
        expected = colorize_activation_map(array) if recipe.png == "rgba" else intensities(array)
        np.testing.assert_array_equal(pixels(block, result, recipe), expected)


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
def test_a_full_block_ends_the_chunk_and_says_what_the_next_map_wants(tmp_path: Path, recipe: Recipe) -> None:
    requests = [saved(tmp_path / f"{index}.npy", random_map(8, 8 + index)) for index in range(4)]
    sizes = [scanline_bytes(8, 8 + index, recipe.channels) for index in range(4)]
    whole = np.zeros(aligned(sizes[0]) + aligned(sizes[1]) + sizes[2], np.uint8)

    reply = colorize_chunk(whole, 0, requests, recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8, 9, 10], sizes[3])

    reply = colorize_chunk(whole[:-1], 0, requests, recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8, 9], sizes[2])

    reply = colorize_chunk(whole[: sizes[0] - 1], 0, requests, recipe)
    assert reply == Reply([], sizes[0])

    reply = colorize_chunk(np.zeros(sizes[0], np.uint8), 0, requests[:1], recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8], 0)


def test_nothing_is_written_behind_a_full_block(tmp_path: Path) -> None:
    memory = np.full(1_000, 99, np.uint8)
    requests = [saved(tmp_path / f"{index}.npy", np.zeros((8, 8), np.float32)) for index in range(5)]
    colorize_chunk(memory[64:400], 0, requests, PALETTE)
    assert (memory[:64] == 99).all()
    assert (memory[400:] == 99).all()


def test_what_is_wrong_with_a_map_is_its_own_failure_and_the_others_pass(tmp_path: Path) -> None:
    nan = random_map(3, 4)
    nan[1, 2] = np.nan
    np.savez(tmp_path / "some.npz", here=random_map(3, 4))
    np.save(tmp_path / "objects.npy", np.array([None, {}], dtype=object))
    (tmp_path / "text.npy").write_text("this is no array at all")
    (tmp_path / "text.npz").write_text("this is no archive")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    whole = (tmp_path / "good.npy", random_map(30, 40))
    good = saved(*whole)
    (tmp_path / "torn.npy").write_bytes(whole[0].read_bytes()[:1_000])
    cases: list[tuple[Request, str | None, str]] = [
        (good, None, ""),
        (saved(tmp_path / "nan.npy", nan), "colorize", "found NaN at index (1, 2)"),
        (saved(tmp_path / "rgb.npy", random_map(3, 4, 3)), "colorize", "found (3, 4, 3)"),
        (saved(tmp_path / "int.npy", np.zeros((3, 4), np.int64)), "colorize", "found int64"),
        (saved(tmp_path / "void.npy", np.zeros((0, 4))), "colorize", "is empty"),
        (in_file(tmp_path / "missing.npy"), "read", "the file is not there"),
        (in_file(tmp_path / "text.npy"), "read", "expected an .npy file"),
        (in_file(tmp_path / "empty.npy"), "read", "found an empty one"),
        (in_file(tmp_path / "torn.npy"), "read", "truncated"),
        (in_file(tmp_path / "objects.npy"), "read", "pickled Python objects"),
        (in_file(tmp_path / "folder.npy"), "read", "cannot be read: Is a directory"),
        (in_file(tmp_path / "text.npz", "x"), "read", "expected an .npz archive"),
        (in_file(tmp_path / "some.npz", "gone"), "read", "'gone'"),
        (good, None, ""),
    ]
    block = np.zeros(10_000, np.uint8)
    reply = colorize_chunk(block, 0, [case[0] for case in cases], PALETTE)
    assert reply.wanted == 0
    for result, (_, stage, reason) in zip(reply.results, cases, strict=True):
        if stage is None:
            assert isinstance(result, Result)
            np.testing.assert_array_equal(pixels(block, result, PALETTE), intensities(whole[1]))
        else:
            assert isinstance(result, Failed)
            assert result.stage == stage
            assert reason in result.reason


def test_a_map_that_provokes_anything_else_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(tmp_path / "good.npy", random_map(3, 4))

    original = Readers.read

    def read(self: Readers, path: str, part: Any) -> NDArray[Any]:
        if "hostile" in path:
            raise RecursionError("of a kind nobody thought of")
        return original(self, path, part)

    monkeypatch.setattr(Readers, "read", read)
    reply = colorize_chunk(np.zeros(1_000, np.uint8), 0, [good, in_file(tmp_path / "hostile.npy"), good], PALETTE)
    assert [type(result) for result in reply.results] == [Result, Failed, Result]
    assert reply.results[1] == ("read", "could not be read: RecursionError('of a kind nobody thought of')")


def test_a_failed_map_takes_no_room(tmp_path: Path) -> None:
    bad = saved(tmp_path / "bad.npy", np.full((8, 8), 2.0))
    good = saved(tmp_path / "good.npy", random_map(8, 8))
    reply = colorize_chunk(np.zeros(scanline_bytes(8, 8, 1), np.uint8), 0, [bad, bad, good], PALETTE)
    assert [type(result) for result in reply.results] == [Failed, Failed, Result]
    assert reply.results[2][0] == 0


@pytest.mark.parametrize("message", [["text", 1, None, {"é": [True]}], [], "ready", "x" * 70_000])
def test_a_message_is_its_length_and_json(message: Any) -> None:
    sent = frame(message)
    assert int.from_bytes(sent[:4], "big") == len(sent) - 4
    assert json.loads(sent[4:]) == message
    file = io.BytesIO()
    worker.send_message(file, message)
    assert file.getvalue() == sent


# In a process of its own


@asynccontextmanager
async def started(arena: Arena, recipe: Recipe = PALETTE) -> AsyncIterator[ProcessWorker]:
    """A worker, stopped afterwards."""
    process = ProcessWorker(recipe, arena)
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


def is_alive(pid: int | None) -> bool:
    """Whether there is such a process."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
@tidy
async def test_a_process_colorizes_into_shared_memory_until_it_is_stopped(tmp_path: Path, recipe: Recipe) -> None:
    array = random_map(50, 60)
    expected = colorize_activation_map(array) if recipe.png == "rgba" else intensities(array)
    with Arena(2**20) as arena:
        async with started(arena, recipe) as process:
            pid = process.pid
            assert pid != os.getpid()
            assert is_alive(pid)
            before = await arena.take(1)  # so that the next one does not begin where the arena does
            for size in (2**17, 2**22):  # the second is larger than the arena
                if size > arena.size:
                    before.release()
                block = await arena.take(size)
                requests = [
                    placed(block.memory, 0, array),
                    saved(tmp_path / "map.npy", array),
                    in_file(tmp_path / "none.npy"),
                ]
                reply = await process.colorize(block, size - 2**16, requests)
                assert reply.wanted == 0
                assert [type(result) for result in reply.results] == [Result, Result, Failed]
                for result in colorized(Reply(reply.results[:2], 0)):
                    np.testing.assert_array_equal(pixels(block.memory, result, recipe), expected)
                assert reply.results[2][0] == "read"
                block.release()
            block = await arena.take(4_096)
            large = saved(tmp_path / "large.npy", np.zeros((500, 600)))
            assert await process.colorize(block, 0, [large]) == Reply([], scanline_bytes(500, 600, recipe.channels))
            block.release()
        assert process.pid is None
        assert not is_alive(pid)
        await process.stop()  # once more is harmless


@tidy
async def test_a_worker_outlives_the_signals_that_are_meant_for_its_parent(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            pid = process.pid
            assert pid is not None
            assert os.getsid(pid) == pid  # Ctrl-C in a terminal does not even reach it
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            reply = await process.colorize(await arena.take(2**16), 0, [saved(tmp_path / "a.npy", random_map(3, 4))])
            (result,) = colorized(reply)
            assert (result.offset, result.height, result.width) == (0, 3, 4)
            assert process.pid == pid


@tidy
async def test_what_a_library_prints_goes_to_standard_error_and_not_between_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os\n"
        "quiet = builtins.open\n"
        "def noisy(file, *arguments, **options):\n"
        "    if str(file).endswith('.npy'):\n"
        "        print('printed', flush=True)\n"
        "        os.write(1, b'written')\n"
        "    return quiet(file, *arguments, **options)\n"
        "builtins.open = noisy\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Arena(2**16) as arena:
        async with started(arena) as process:
            request = saved(tmp_path / "a.npy", random_map(3, 4))
            block = await arena.take(2**16)
            for _ in range(3):
                (result,) = colorized(await process.colorize(block, 0, [request]))
                assert (result.offset, result.height, result.width) == (0, 3, 4)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("printed") == err.count("written") == 3


def seconds_of_work(folder: Path) -> list[Request]:
    """A chunk that keeps a worker busy for a second on any machine: each image is read before it is refused."""
    return [saved(folder / "large.npy", np.zeros((2_000, 2_000, 3)))] * 50


@tidy
@pytest.mark.slow
async def test_a_worker_that_was_killed_says_by_which_signal_and_can_be_started_again(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            block = await arena.take(2**16)
            request = saved(tmp_path / "a.npy", random_map(3, 4))
            first = process.pid
            assert first is not None

            # While it works.
            work = asyncio.create_task(process.colorize(block, 0, [request, *seconds_of_work(tmp_path)]))
            await asyncio.sleep(0.1)
            assert not work.done()
            os.kill(first, signal.SIGKILL)
            with pytest.raises(WorkerError, match=r"was killed by signal 9 \(out of memory\?\)"):
                await work
            assert process.pid is None
            assert not is_alive(first)

            # While it waits.
            await process.start()
            second = process.pid
            assert second is not None
            assert second != first
            os.kill(second, signal.SIGSEGV)
            with pytest.raises(WorkerError, match=r"was killed by signal 11$"):
                await process.colorize(block, 0, [request])

            await process.start()
            assert len(colorized(await process.colorize(block, 0, [request]))) == 1


@tidy
async def test_a_cancelled_chunk_kills_its_process(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            pid = process.pid
            block = await arena.take(2**16)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await process.colorize(block, 0, seconds_of_work(tmp_path))
            assert process.pid is None
            assert not is_alive(pid)


@tidy
async def test_a_worker_that_ends_while_it_starts_says_with_which_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_BOOT", "raise SystemExit(3)")
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        with pytest.raises(WorkerError, match="ended with status 3"):
            await process.start()
        assert process.pid is None


@tidy
async def test_a_worker_that_never_gets_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_BOOT", "import time; time.sleep(100)")
    monkeypatch.setattr(pool, "_START_TIMEOUT_S", 0.2)
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        with pytest.raises(WorkerError, match="was not ready after 0 s"):
            await process.start()
        assert process.pid is None


@tidy
async def test_a_worker_that_does_not_end_when_told_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        await process.start()
        pid = process.pid
        assert pid is not None
        monkeypatch.setattr(pool, "_STOP_TIMEOUT_S", 0.1)
        os.kill(pid, signal.SIGSTOP)
        await process.stop()
        assert not is_alive(pid)


PARENT = """
import asyncio, sys
from async_maps.workers.arena import Arena
from async_maps.render.colormap import ColormapJet, color_table
from async_maps.workers.pool import ProcessWorker
from async_maps.workers.worker import Recipe, Request

async def main():
    arena = Arena(2**16)
    worker = ProcessWorker(Recipe(color_table(ColormapJet())), arena)
    await worker.start()
    block = await arena.take(2**16)
    requests = [Request(path, None, 0, (), "") for path in sys.argv[1:]]
    work = asyncio.create_task(worker.colorize(block, 0, requests))
    await asyncio.sleep(0.1)
    print(worker.pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@tidy
def test_a_worker_ends_itself_when_its_parent_was_killed(tmp_path: Path, busy: bool) -> None:
    arguments = []
    if busy:
        arguments = [str(request.path) for request in seconds_of_work(tmp_path)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    if busy:
        # It looks up when its chunk is done.
        assert is_alive(pid)
    # The worker holds its parent's standard error: that ends when both are gone.
    began = time.monotonic()
    _, err = parent.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert err == ""
    assert parent.returncode == -signal.SIGKILL


# What is transparent


def holes(shape: tuple[int, int] = (40, 50), seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map that uses all 256 intensities, with invalid values here and there."""
    array = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    bad = np.random.default_rng(seed).random(shape) < 0.1
    array[bad] = np.nan
    return array, bad


def png_of(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> bytes:
    """The PNG of a result."""
    job = Job(ActivationMap("a", "a", None, 0), lambda _: None, UNIT)
    bitmap = Bitmap(job, scanlines(block, result), result, lambda: None)
    return encode_bitmap(bitmap, recipe.table, 1)


def shown(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> NDArray[np.uint8]:
    """A result's RGBA pixels, as its PNG will have them."""
    with Image.open(io.BytesIO(png_of(block, result, recipe))) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("png", ["palette", "compact", "rgba"])
@pytest.mark.parametrize("alpha", ["fade", "opaque", 0.5])
@pytest.mark.parametrize("values", ["all intensities", "few intensities"])
def test_exactly_the_invalid_pixels_are_transparent_in_every_png(png: Any, alpha: Any, values: str) -> None:
    array, bad = holes()
    if values == "few intensities":
        array = np.round(array, 1)
    recipe = Recipe(colormap_table("jet", alpha), png, "transparent")
    block = np.zeros(40_000, np.uint8)
    reply = colorize_chunk(block, 8_192, [placed(block, 0, array)], recipe)
    (result,) = colorized(reply)
    found = shown(block, result, recipe)
    assert (found[bad, 3] == 0).all()
    expected = recipe.table[np.rint(array[~bad] * 255).astype(int)]
    if png == "compact":
        seen = expected[:, 3] > 0
        np.testing.assert_array_equal(found[~bad][seen], expected[seen])
        assert (found[~bad][~seen, 3] == 0).all()
    else:
        np.testing.assert_array_equal(found[~bad], expected)
    # Only a palette that has no room left gives way to RGBA.
    assert result.rgba == (png == "rgba" or (alpha != "fade" and values == "all intensities"))


def test_a_map_that_turns_to_rgba_asks_for_the_room(tmp_path: Path) -> None:
    array, bad = holes()
    recipe = Recipe(colormap_table("jet", "opaque"), "palette", "transparent")
    requests = [saved(tmp_path / "a.npy", array)]
    height, width = array.shape
    needed = scanline_bytes(height, width, 4)
    room = np.zeros(scanline_bytes(height, width, 1), np.uint8)
    assert colorize_chunk(room, 0, requests, recipe) == Reply([], needed)
    block = np.zeros(needed, np.uint8)
    (result,) = colorized(colorize_chunk(block, 0, requests, recipe))
    assert (shown(block, result, recipe)[bad] == 0).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fade", "auto"]),
    st.sampled_from(["jet", "viridis_r", "#ff000000,#ff0000ff"]),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_compact_is_identical_once_composited_over_anything(seed: int, alpha: Any, colormap: str) -> None:
    rng = np.random.default_rng(seed)
    array = rng.random((30, 20)) ** rng.integers(1, 9)
    background = rng.integers(0, 256, (30, 20, 3)).astype(np.float64)
    composited, sizes = [], []
    for png in ("palette", "compact"):
        recipe = Recipe(colormap_table(colormap, alpha), png)
        block = np.zeros(8_192, np.uint8)
        (result,) = colorized(colorize_chunk(block, 6_400, [placed(block, 0, array)], recipe))
        pixels_ = shown(block, result, recipe).astype(np.float64)
        share = pixels_[..., 3:] / 255
        composited.append(pixels_[..., :3] * share + background * (1 - share))
        sizes.append(len(np.unique(np.ndarray((30, 20), np.uint8, block.data, result.offset))))
    np.testing.assert_array_equal(composited[0], composited[1])
    assert sizes[1] <= sizes[0]


def test_gray_has_the_intensities_whatever_the_colors() -> None:
    array = np.random.default_rng(0).random((30, 20))
    planes = []
    for alpha in ("fade", "opaque"):
        recipe = Recipe(colormap_table("jet", alpha), "gray")
        block = np.zeros(8_192, np.uint8)
        (result,) = colorized(colorize_chunk(block, 6_400, [placed(block, 0, array)], recipe))
        assert (result.rgba, result.transparent) == (False, None)
        planes.append(pixels(block, result, recipe))
    np.testing.assert_array_equal(planes[0], np.rint(array * 255))
    np.testing.assert_array_equal(planes[1], planes[0])


def test_compact_takes_about_half_the_bytes() -> None:
    y, x = np.mgrid[0:512, 0:512]
    array = np.exp(-((y - 200) ** 2 + (x - 300) ** 2) / 2 / 80**2).astype(np.float32)
    sizes = {}
    for png in ("palette", "compact"):
        recipe = Recipe(TABLE, png)
        block = np.zeros(2**21, np.uint8)
        (result,) = colorized(colorize_chunk(block, 2**20, [placed(block, 0, array)], recipe))
        sizes[png] = len(png_of(block, result, recipe))
    assert sizes["compact"] < 0.6 * sizes["palette"]


def test_intensities_from_elsewhere_are_taken_as_they_are_with_what_was_seen_of_their_values() -> None:
    block = np.zeros(8_192, np.uint8)
    plane = np.arange(12, dtype=np.uint8).reshape(3, 4)
    request = placed(block, 0, plane)._replace(
        value_range=("per-map", 0, 1), measured=Measured(-2.0, 7.0, 1.5, -2.0, 7.0)
    )
    (result,) = colorized(colorize_chunk(block, 64, [request], PALETTE))
    np.testing.assert_array_equal(pixels(block, result, PALETTE), plane)
    assert result.statistics[:5] == (-2.0, 7.0, 1.5, -2.0, 7.0)
