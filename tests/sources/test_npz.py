"""The arrays of .npz archives, whole or damaged."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.errors import SourceError
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats import npz
from async_maps.sources.formats.registry import Readers
from tests.support.entries import BYTES, HEADER, failures_of, read_map, save_map, with_header
from tests.support.maps import MAP, npy
from tests.support.properties import examples

if TYPE_CHECKING:
    from async_maps.filesystems.filesystem import Filesystem

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_are_named_by_the_archive_and_their_keys(maps: Path, save: Any) -> None:
    arrays = {"cam": MAP, "layer4/2": MAP[:2], "with space é": MAP[1:]}
    save(maps / "val.npz", **arrays)
    entries, state = list(open_source(maps)), (maps / "val.npz").stat()
    assert [entry.name for entry in entries] == ["val/cam", "val/layer4/2", "val/with space é"]
    for entry, (key, array) in zip(entries, arrays.items(), strict=True):
        assert isinstance(entry, ActivationMap)
        assert entry.source == f"{maps / 'val.npz'}[{key}]"
        assert entry.part == [key, None]
        assert entry.max_bytes == array.nbytes
        assert entry.fingerprint == f"{state.st_size}-{state.st_mtime_ns} [{key!r}, None]"
        assert entry.path is not None
        np.testing.assert_array_equal(read_map(entry.path, entry.part), array)


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "a/../../b", "a\nb", "", "a//b"])
def test_a_member_name_cannot_escape_the_prefix(maps: Path, key: str) -> None:
    with zipfile.ZipFile(maps / "evil.npz", "w") as archive:
        archive.writestr(f"{key}.npy", npy(MAP))
        archive.writestr("good.npy", npy(MAP))
    failure, good = open_source(maps)
    assert isinstance(failure, Failure)
    assert "not allowed" in failure.reason or "control character" in failure.reason
    assert good.name == "evil/good"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"PK\x05\x06" + b"\xff" * 18])
def test_an_invalid_archive_is_a_failure(maps: Path, content: bytes) -> None:
    (maps / "broken.npz").write_bytes(content)
    save_map(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == "broken"
    assert failure.reason.startswith("expected an .npz archive (a zip file): ")
    assert other.name == "z"


def test_a_damaged_member_name_fails_the_archive(maps: Path) -> None:
    np.savez(maps / "a.npz", é=MAP)
    content = (maps / "a.npz").read_bytes()
    (maps / "a.npz").write_bytes(content.replace("é".encode(), b"\xff\xff"))
    save_map(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("expected an .npz archive (a zip file): 'utf-8' codec can't decode")
    assert other.name == "z"


def test_an_archive_without_arrays_is_a_failure(maps: Path) -> None:
    with zipfile.ZipFile(maps / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "no map")
    assert [failure.reason for failure in failures_of(open_source(maps))] == ["the archive contains no arrays (.npy)"]


def test_a_missing_member_is_named(maps: Path) -> None:
    np.savez(maps / "a.npz", kept=MAP)
    with pytest.raises(SourceError, match="the archive has no array 'gone' anymore"):
        read_map(str(maps / "a.npz"), "gone")
    (maps / "a.npz").unlink()
    with pytest.raises(FileNotFoundError):
        read_map(str(maps / "a.npz"), "kept")


def test_a_wrong_checksum_is_a_damaged_member(maps: Path) -> None:
    np.savez(maps / "a.npz", x=MAP)
    content = bytearray((maps / "a.npz").read_bytes())
    content[content.index(MAP.tobytes()) + 5] ^= 1
    (maps / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match="the archive is damaged at 'x': Bad CRC-32"):
        read_map(str(maps / "a.npz"), "x")


def test_damaged_compressed_data_are_a_damaged_member(maps: Path) -> None:
    np.savez_compressed(maps / "a.npz", x=np.random.default_rng(1).random((64, 64)))
    content = bytearray((maps / "a.npz").read_bytes())
    content[40:3000] = bytes(2960)
    (maps / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match="the archive is damaged at 'x': "):
        read_map(str(maps / "a.npz"), "x")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_compression_of_zipfile_is_read(maps: Path, compression: int) -> None:
    path = maps / "a.npz"
    array = np.random.default_rng(1).random((32, 32))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", npy(array))
    np.testing.assert_array_equal(read_map(str(path), "x"), array)
    content = bytearray(path.read_bytes())
    content[60:2000] = b"\xff" * 1940
    path.write_bytes(content)
    with pytest.raises((SourceError, OSError)):
        read_map(str(path), "x")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(8, 1, "is encrypted, password required"), (10, 99, "compression method is not supported")],
)
def test_encrypted_members_and_unknown_compressions_are_named(maps: Path, offset: int, value: int, reason: str) -> None:
    np.savez(maps / "a.npz", x=MAP)
    content = bytearray((maps / "a.npz").read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + offset] |= value
    content[offset - 2] |= value
    (maps / "a.npz").write_bytes(content)
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    with pytest.raises(SourceError, match=rf"the archive is damaged at 'x': .*{reason}"):
        read_map(str(maps / "a.npz"), "x")


def test_a_member_is_read_without_a_second_copy(maps: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (4096, 4096)).astype(np.uint8)
    np.savez(maps / "a.npz", x=array)
    tracemalloc.start()
    try:
        read = read_map(str(maps / "a.npz"), "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, array)
    assert peak < 1.3 * array.nbytes


@pytest.mark.runs
def test_a_huge_claimed_member_is_refused_without_allocating(maps: Path) -> None:
    claimed = 2 * 2**30
    header = with_header(HEADER.replace("<f4", "|u1").replace("3, 4", f"{claimed},"))
    with zipfile.ZipFile(maps / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header)
    content = bytearray((maps / "a.npz").read_bytes())
    for start in (22, content.index(b"PK\x01\x02") + 24):
        content[start : start + 4] = struct.pack("<I", claimed + len(header))
    (maps / "a.npz").write_bytes(content)
    # In a separate process, because ru_maxrss never decreases.
    program = (
        "import resource, sys\n"
        "from async_maps.sources.formats.registry import Readers; from async_maps.errors import SourceError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: Readers().read(sys.argv[1], ('x', None))\n"
        "except SourceError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(maps / "a.npz")], capture_output=True, text=True, check=True
    )
    reason, grown_kib = answer.stdout.splitlines()
    assert reason.startswith("the archive is damaged at 'x': it claims 2,147,483,7")
    assert reason.endswith("compressed bytes can contain")
    assert int(grown_kib) < 50 * 1024


_CHANGES = st.lists(st.tuples(st.integers(0, 10_000), BYTES), max_size=6)


@examples(300)
@given(changes=_CHANGES, compressed=st.booleans())
def test_a_damaged_archive_gives_only_maps_and_failures(
    maps: Path, changes: list[tuple[int, int]], compressed: bool
) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, a=MAP, é=MAP)
    content = bytearray(buffer.getvalue())
    for position, value in changes:
        content[position % len(content)] = value
    (maps / "a.npz").write_bytes(content)
    for entry in open_source(maps):
        if isinstance(entry, ActivationMap):
            assert entry.path is not None
            with suppress(SourceError, OSError):
                read_map(entry.path, entry.part)


def test_an_archive_is_opened_once_for_all_its_members(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = npz.NpzReader

    def counted(path: str, filesystem: Filesystem) -> npz.NpzReader:
        opened.append(Path(path).name)
        return original(path, filesystem)

    monkeypatch.setattr(npz, "NpzReader", counted)
    for name in ("a", "b"):
        arrays: dict[str, Any] = {f"{i}": MAP * (i / 10) for i in range(10)}
        np.savez(maps / f"{name}.npz", **arrays)
    with Readers() as readers:
        for name in ("a", "b"):
            for i in range(10):
                array = readers.read(str(maps / f"{name}.npz"), [f"{i}", None])
                np.testing.assert_array_equal(array, MAP * (i / 10))
    assert opened == ["a.npz", "b.npz"]
