from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import weakref
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from async_maps.concurrency.streams import ByteBudget
from async_maps.errors import AsyncMapsError, InputValidationError
from async_maps.outcomes import Failure
from async_maps.render.colormap import ColormapJet, color_table
from async_maps.render.png import encode_png
from async_maps.render.ranges import UNIT
from async_maps.render.scanlines import room_bytes, write_scanlines
from async_maps.sources.activation_map import ActivationMap
from async_maps.stages.encode import Encoding, encode_bitmap, encode_stage
from async_maps.stages.items import Bitmap, Job, Png
from async_maps.stages.meters import Meter
from async_maps.workers.worker import Result
from tests.support.installed import kolena_client
from tests.support.manifests import COUNTED
from tests.support.pipelines import until
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.outcomes import Outcome

pytestmark = pytest.mark.fast

FADED, OPAQUE = color_table(ColormapJet()), color_table(ColormapJet(fade_low_activation=False))


@pytest.fixture(scope="module")
def kolena() -> Any:
    """Kolena's client, which our functions replace."""
    return kolena_client("kolena.workflow.visualization")


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """Return random bytes, viewed as the dtype."""
    data = np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


# The drop-in


@pytest.mark.parametrize(
    ("mode", "image"),
    {
        "RGBA": noise(7, 9, 4),
        "RGB": noise(7, 9, 3),
        "LA": noise(7, 9, 2),
        "L": noise(7, 9),
        "P": noise(7, 9),
        "1": noise(7, 9) > 100,
    }.items(),
)
def test_encode_png_equals_kolenas_byte_for_byte(kolena: Any, mode: str, image: NDArray[Any]) -> None:
    ours, theirs = encode_png(image, mode), kolena.encode_png(image, mode)
    assert type(ours) is type(theirs) is io.BytesIO
    assert ours.tell() == theirs.tell() == 0
    assert ours.getvalue() == theirs.getvalue()


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 50, 4), (50, 1, 4), (64, 64, 4)])
def test_encode_png_equals_kolenas_for_any_size_and_layout(kolena: Any, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    for view in (image, image[::-1, ::-1], np.asfortranarray(image), image[::2, ::3]):
        assert encode_png(view, "RGBA").getvalue() == kolena.encode_png(view, "RGBA").getvalue()


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("RGB", 3), ("LA", 2), ("L", 0)])
def test_encode_png_is_lossless(mode: str, channels: int) -> None:
    image = noise(7, 9, channels) if channels else noise(7, 9)
    decoded = Image.open(encode_png(image, mode))
    assert (decoded.format, decoded.mode) == ("PNG", mode)
    np.testing.assert_array_equal(np.asarray(decoded), image)


@pytest.mark.parametrize(
    "image", [np.zeros(0), np.zeros((0, 4)), np.zeros((3, 0, 4)), np.array(1), np.zeros(5), np.zeros((1, 2, 3, 4))]
)
def test_encode_png_refuses_the_shapes_that_kolena_refuses(kolena: Any, image: NDArray[Any]) -> None:
    with pytest.raises(sys.modules["kolena.errors"].InputValidationError):
        kolena.encode_png(image, "RGBA")
    with pytest.raises(InputValidationError, match=r"is empty: its shape is|must have the shape") as caught:
        encode_png(image, "RGBA")
    assert isinstance(caught.value, AsyncMapsError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize(
    ("mode", "image"),
    [
        ("NOPE", noise(3, 4)),
        ("", noise(3, 4)),
        ("CMYK", noise(3, 4, 4)),
        ("F", np.zeros((3, 4), np.float32)),
        ("L", noise(3, 4, 1)),
        ("RGBA", noise(3, 4)),
        ("RGBA", noise(3, 4, 3)),
        ("RGBA", np.zeros((3, 4, 4))),
    ],
)
def test_encode_png_raises_the_errors_that_kolena_raises(kolena: Any, mode: str, image: NDArray[Any]) -> None:
    def outcome(encode: Callable[..., io.BytesIO]) -> object:
        try:
            return encode(image, mode).getvalue()
        except Exception as error:  # noqa: BLE001  # any error must be the same for both
            return type(error), str(error)

    assert outcome(encode_png) == outcome(kolena.encode_png)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_encode_png_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="mode"):
        encode_png(noise(3, 4), "NOPE")


def test_encode_png_refuses_a_list() -> None:
    with pytest.raises(InputValidationError, match="must be a NumPy array; found list"):
        encode_png([[1]], "L")  # type: ignore[arg-type]


# Our own writers


class PngFile(NamedTuple):
    """A PNG parsed by this test, independent of any library."""

    kinds: list[bytes]
    header: tuple[int, ...]
    palette: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    filters: set[int]
    rows: NDArray[np.uint8]


def take_apart(png: bytes) -> PngFile:
    """Read each chunk, check its checksum, and undo deflate and the filter, "up" or none."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    kinds: list[bytes] = []
    at = 8
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + size]
        assert len(body) == size
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + size
    header = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    row_bytes = header[0] * {6: 4, 3: 1, 0: 1}[header[3]]
    filtered = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(header[1], row_bytes + 1)
    rows = filtered[:, 1:]
    return PngFile(
        kinds,
        header,
        np.frombuffer(chunks.get(b"PLTE", b""), np.uint8).reshape(-1, 3),
        np.frombuffer(chunks.get(b"tRNS", b""), np.uint8),
        set(filtered[:, 0].tolist()),
        np.cumsum(rows, axis=0, dtype=np.uint8) if filtered[0, 0] else rows,
    )


def decoded_by_pillow(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


def decoded_by_opencv(png: bytes) -> NDArray[Any]:
    cv2 = pytest.importorskip("cv2")
    bgra: NDArray[Any] | None = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgra is not None
    assert bgra.ndim == 3
    assert bgra.shape[2] == 4  # also for a fully opaque palette
    return bgra[..., [2, 1, 0, 3]]


def bitmap_of(pixels: NDArray[np.uint8], *, compress: bool = False) -> Bitmap:
    """Return a bitmap of intensities, (h, w), or of RGBA colors, (h, w, 4)."""
    job = Job(ActivationMap("a", "a.npy", None, 0), lambda _: None, UNIT)
    (height, width), rgba = pixels.shape[:2], pixels.ndim == 3
    room = np.empty(room_bytes(height, width, 4 if rgba else 1), np.uint8)
    result = Result(0, height, width, rgba, write_scanlines(pixels, room, compress=compress), None, COUNTED)
    return Bitmap(job, room[: result.size], result, lambda: None)


def encode_palette(plane: NDArray[np.uint8], table: NDArray[np.uint8], level: int = 1) -> bytes:
    return encode_bitmap(bitmap_of(plane, compress=level == 1), table, level)


def encode_rgba(pixels: NDArray[np.uint8], level: int = 1) -> bytes:
    return encode_bitmap(bitmap_of(pixels), None, level)


def encode_gray(plane: NDArray[np.uint8], level: int = 1) -> bytes:
    return encode_bitmap(bitmap_of(plane, compress=level == 1), None, level)


PLANES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
TABLES = st.sampled_from([FADED, OPAQUE]) | st.integers(0, 2**32).map(lambda seed: noise(256, 4, seed=seed))
LEVELS = st.integers(0, 3)


@examples(150)
@given(PLANES, TABLES, LEVELS)
def test_palette_and_rgba_decode_to_the_colors_of_the_table(
    plane: NDArray[np.uint8], table: NDArray[np.uint8], level: int
) -> None:
    expected = table[plane]
    for png in (encode_palette(plane, table, level), encode_rgba(expected, level)):
        np.testing.assert_array_equal(decoded_by_pillow(png), expected)
        np.testing.assert_array_equal(decoded_by_opencv(png), expected)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("table", [FADED, OPAQUE], ids=["faded", "opaque"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3_000), (3_000, 1), (257, 509), (600, 700)])
def test_maps_of_any_size_decode_to_the_same_pixels_at_every_level(
    shape: tuple[int, int], table: NDArray[np.uint8], level: int
) -> None:
    plane = noise(*shape)
    expected = table[plane]
    for png in (encode_palette(plane, table, level), encode_rgba(expected, level)):
        np.testing.assert_array_equal(decoded_by_pillow(png), expected)
        np.testing.assert_array_equal(decoded_by_opencv(png), expected)


def test_a_large_smooth_map_compresses_and_decodes_exactly() -> None:
    plane = np.hypot(*np.indices((1_100, 1_200))).astype(np.uint8)
    for png in (encode_palette(plane, FADED), encode_rgba(FADED[plane])):
        assert len(png) < plane.size / 2
        np.testing.assert_array_equal(decoded_by_pillow(png), FADED[plane])


@examples(40)
@given(PLANES, TABLES, LEVELS)
def test_a_palette_png_follows_the_specification(
    plane: NDArray[np.uint8], table: NDArray[np.uint8], level: int
) -> None:
    png = take_apart(encode_palette(plane, table, level))
    assert png.kinds == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    assert png.header == (plane.shape[1], plane.shape[0], 8, 3, 0, 0, 0)
    assert png.filters in ({0}, {2})
    np.testing.assert_array_equal(png.palette, table[:, :3])
    np.testing.assert_array_equal(png.alpha, table[:, 3])
    np.testing.assert_array_equal(png.rows, plane)


@examples(40)
@given(PLANES, LEVELS)
def test_an_rgba_png_follows_the_specification(plane: NDArray[np.uint8], level: int) -> None:
    pixels = FADED[plane]
    png = take_apart(encode_rgba(pixels, level))
    assert png.kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert png.header == (plane.shape[1], plane.shape[0], 8, 6, 0, 0, 0)
    assert png.filters in ({0}, {2})
    np.testing.assert_array_equal(png.rows, pixels.reshape(len(plane), -1))


@examples(60)
@given(PLANES, LEVELS)
def test_a_gray_png_follows_the_specification(plane: NDArray[np.uint8], level: int) -> None:
    png = encode_gray(plane, level)
    parts = take_apart(png)
    assert parts.kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert parts.header == (plane.shape[1], plane.shape[0], 8, 0, 0, 0, 0)
    np.testing.assert_array_equal(parts.rows, plane)
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), plane)
    cv2 = pytest.importorskip("cv2")
    found = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, plane)  # (h, w): one channel


def test_equal_maps_give_equal_bytes() -> None:
    plane = noise(50, 60)
    assert encode_palette(plane, FADED) == encode_palette(plane.copy(), FADED.copy())


@pytest.mark.slow
def test_maps_give_equal_bytes_in_every_process() -> None:
    # Without bytes that ISA-L compresses first, some of these processes would give other bytes: see png.py.
    code = (
        "import hashlib, numpy as np; from async_maps.render.png import deflate\n"
        "found = hashlib.sha256()\n"
        "for level in (0, 1, 2):\n"
        "    for n in (20, 30, 40, 60, 80, 200, 300, 600, 5000, 20_000):\n"
        "        for period in (4, 5, 7, 10, 17):\n"
        "            part = np.random.default_rng(period).integers(0, 3, period, np.uint8)\n"
        "            found.update(b''.join(deflate(np.resize(part, n), level)))\n"
        "print(found.hexdigest())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(24)]
    assert len({process.communicate()[0] for process in processes}) == 1


def test_a_palette_png_is_half_the_size_of_an_rgba_png() -> None:
    plane = np.hypot(*np.indices((200, 200))).astype(np.uint8)
    assert len(encode_palette(plane, FADED)) < len(encode_rgba(FADED[plane])) / 2


def test_the_writers_accept_read_only_pixels_and_do_not_change_them() -> None:
    plane = noise(9, 8)  # read-only, as it is a view of bytes
    before = plane.tobytes()
    encode_palette(plane, FADED)
    encode_rgba(noise(9, 8, 4))
    assert plane.tobytes() == before


# The stage


class Caller:
    """Receives the outcomes and owns the blocks of the bitmaps."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome | AsyncMapsError] = []
        self.releases: list[str] = []
        self.alive: list[weakref.ref[NDArray[np.uint8]]] = []

    def bitmap(self, name: str, pixels: NDArray[np.uint8]) -> Bitmap:
        """Return a bitmap with its own view, so that a weak reference shows when the view is freed."""
        job = Job(ActivationMap(name, f"{name}.npy", "1-2", pixels.nbytes), self.outcomes.append, UNIT)
        view = pixels[:]
        self.alive.append(weakref.ref(view))
        height, width = pixels.shape[:2]
        result = Result(0, height, width, pixels.ndim == 3, 0, None, COUNTED)
        return Bitmap(job, view, result, lambda: self.releases.append(name))


class Stage:
    """One encoder and its streams."""

    def __init__(self, encode: Callable[[NDArray[np.uint8]], bytes], budget: int = 2**30) -> None:
        self.caller = Caller()
        self.budget = ByteBudget(budget)
        self.meter = Meter(workers=1)
        self.bitmaps: MemoryObjectSendStream[list[Bitmap]]
        self.pngs: MemoryObjectReceiveStream[Png]
        self.bitmaps, self._incoming = anyio.create_memory_object_stream[list[Bitmap]](100)
        self._outgoing, self.pngs = anyio.create_memory_object_stream[Png](100)
        self.encoding = Encoding(lambda bitmap: encode(bitmap.data))

    async def run(self) -> None:
        """Run the stage."""
        bounds = (anyio.CapacityLimiter(1), self.budget)
        await encode_stage(self._incoming, self._outgoing, self.encoding, bounds, self.meter)

    async def close(self) -> None:
        """Close the test's ends of the streams."""
        self.bitmaps.close()
        self.pngs.close()

    def send(self, *batch: tuple[str, NDArray[np.uint8]]) -> None:
        """Send a batch without keeping a view of it."""
        self.bitmaps.send_nowait([self.caller.bitmap(name, pixels) for name, pixels in batch])

    async def finish(self) -> list[Png]:
        """End the incoming stream, run the stage to its end, and return the PNGs."""
        self.bitmaps.close()
        await self.run()
        received = [png async for png in self.pngs]
        self.pngs.close()
        return received


def faded(plane: NDArray[np.uint8]) -> bytes:
    """Encode a palette PNG with the fade."""
    return encode_palette(plane, FADED)


def encode_unless_13(plane: NDArray[np.uint8]) -> bytes:
    """Encode, but fail if the first pixel is 13."""
    if plane[0, 0] == 13:
        raise MemoryError("no room for 13")
    return faded(plane)


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(30):
        await anyio.sleep(0.002)


def named(*names: str, value: int = 7) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return a small plane per name."""
    return [(name, np.full((4, 3 + index), value, np.uint8)) for index, name in enumerate(names)]


async def test_pngs_come_out_in_the_order_of_the_batches() -> None:
    stage = Stage(faded)
    planes = {str(index): noise(5 + index, 9, seed=index) for index in range(7)}
    items = list(planes.items())
    stage.send(*items[:3])
    stage.send(*items[3:4])
    stage.send(*items[4:])
    pngs = await stage.finish()
    assert [png.job.map.name for png in pngs] == list(planes)
    for png in pngs:
        plane = planes[png.job.map.name]
        assert (png.result.height, png.result.width) == plane.shape
        np.testing.assert_array_equal(decoded_by_pillow(png.data), FADED[plane])
    assert stage.caller.outcomes == []


async def test_an_rgba_bitmap_has_its_size() -> None:
    stage = Stage(encode_rgba)
    stage.send(("a", FADED[noise(5, 9)]))
    (png,) = await stage.finish()
    assert (png.result.height, png.result.width) == (5, 9)
    assert decoded_by_pillow(png.data).shape == (5, 9, 4)


async def test_each_block_is_released_exactly_once() -> None:
    stage = Stage(encode_unless_13)
    stage.send(*named("a", "b", "c"))
    stage.send(*named("d", "e", value=13))
    await stage.finish()
    assert sorted(stage.caller.releases) == ["a", "b", "c", "d", "e"]


async def test_a_bitmap_that_cannot_be_encoded_becomes_a_failure() -> None:
    stage = Stage(encode_unless_13)
    stage.send(*named("a"), *named("bad", value=13), *named("c"))
    stage.send(*named("d"))
    pngs = await stage.finish()
    assert [png.job.map.name for png in pngs] == ["a", "c", "d"]
    (failure,) = stage.caller.outcomes
    assert isinstance(failure, Failure)
    assert (failure.name, failure.source, failure.fingerprint, failure.stage) == ("bad", "bad.npy", "1-2", "encode")
    assert failure.reason == "could not be encoded: MemoryError('no room for 13')"
    assert stage.budget.held == sum(len(png.data) for png in pngs)


async def test_each_png_holds_a_lease_of_its_size() -> None:
    stage = Stage(faded)
    stage.send(*named("a", "b", "c"))
    pngs = await stage.finish()
    held = [stage.budget.held]
    for png in pngs:
        png.lease.release()
        held.append(stage.budget.held)
    sizes = [len(png.data) for png in pngs]
    assert held == [sum(sizes), sum(sizes[1:]), sizes[2], 0]


async def test_pngs_beyond_the_budget_wait_for_a_released_lease() -> None:
    size = len(faded(np.full((4, 3), 7, np.uint8)))
    stage = Stage(faded, budget=2 * size)
    names = [str(index) for index in range(5)]
    for name in names:
        stage.send(*named(name))
    received: list[Png] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.run)
        for already in range(4):
            # The budget has room for two that are not released.
            while len(received) < 2 + already:
                received.append(await stage.pngs.receive())
            await settled()
            assert stage.pngs.statistics().current_buffer_used == 0
            assert [png.job.map.name for png in received] == names[: 2 + already]
            assert stage.budget.held == 2 * size
            received[already].lease.release()
        stage.bitmaps.close()
        received[4].lease.release()
    await stage.close()
    assert stage.budget.held == 0


async def test_a_png_larger_than_the_budget_passes_alone() -> None:
    stage = Stage(faded, budget=1)
    stage.send(*named("a", "b"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.run)
        for name in ("a", "b"):
            png = await stage.pngs.receive()
            await settled()
            assert png.job.map.name == name
            assert stage.pngs.statistics().current_buffer_used == 0
            assert stage.budget.held == len(png.data)
            png.lease.release()
        stage.bitmaps.close()
    await stage.close()


async def test_no_view_of_a_block_is_kept_while_its_pngs_wait() -> None:
    stage = Stage(faded, budget=1)
    stage.send(*named("a", "b", "c"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.run)
        await stage.pngs.receive()
        await until(lambda: len(stage.caller.releases) == 3)
        assert sorted(stage.caller.releases) == ["a", "b", "c"]
        assert [view() for view in stage.caller.alive] == [None] * 3
        tasks.cancel_scope.cancel()
    await stage.close()


async def test_cancelling_waits_for_the_encoder_thread_before_releasing() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(plane: NDArray[np.uint8]) -> bytes:
        entered.set()
        assert go_on.wait(60)
        return faded(plane)

    stage = Stage(slow)
    stage.send(*named("a", "b"))
    seen: list[list[str]] = []

    async def look_then_let_go() -> None:
        with anyio.CancelScope(shield=True):
            await settled()
            seen.append(list(stage.caller.releases))
            go_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.run)
        tasks.start_soon(look_then_let_go)
        await anyio.to_thread.run_sync(entered.wait, 60)
        tasks.cancel_scope.cancel()
    await stage.close()
    assert seen == [[]]  # nothing is released while the thread reads
    assert sorted(stage.caller.releases) == ["a", "b"]


async def test_cancelling_while_waiting_for_the_budget_takes_nothing() -> None:
    stage = Stage(faded, budget=10)
    lease = await stage.budget.acquire(10)
    stage.send(*named("a", "b"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.run)
        await settled()
        tasks.cancel_scope.cancel()
    await stage.close()
    assert sorted(stage.caller.releases) == ["a", "b"]
    assert stage.budget.held == 10
    lease.release()
    assert stage.budget.held == 0


async def test_the_meter_counts_maps_and_seconds() -> None:
    stage = Stage(encode_unless_13)
    stage.send(*named("a", "b"))
    stage.send(*named("c", value=13))
    await stage.finish()
    assert stage.meter.maps == 3
    assert 0 < stage.meter.busy_s < 20


async def test_the_last_of_several_encoders_ends_the_stream() -> None:
    first = Stage(faded)
    outgoing, incoming = first._outgoing.clone(), first._incoming.clone()
    for index in range(20):
        first.send(*named(str(index)))
    first.bitmaps.close()
    bounds = (anyio.CapacityLimiter(2), first.budget)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        tasks.start_soon(encode_stage, incoming, outgoing, first.encoding, bounds, first.meter)
        names = [png.job.map.name async for png in first.pngs]
    await first.close()
    assert sorted(names, key=int) == [str(index) for index in range(20)]
    assert sorted(first.caller.releases, key=int) == [str(index) for index in range(20)]
