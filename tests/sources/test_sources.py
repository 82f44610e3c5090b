"""Listing, in threads, and reading, in workers: what real files and hostile ones come to."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from async_maps.errors import SourceError
from async_maps.outcomes import Failure
from async_maps.sources import files, open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps
from async_maps.sources.formats import npz
from async_maps.sources.formats.registry import Readers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.batches import AnySource, Entry

MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def _save(path: Path, array: NDArray[Any] = MAP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    return path


def read_map(path: str, part: Any) -> NDArray[Any]:
    if isinstance(part, str):
        part = (part, None)
    with Readers() as readers:
        return readers.read(path, part)


def _names(source: Iterable[Entry]) -> list[str]:
    entries = list(source)
    assert all(isinstance(entry, ActivationMap) for entry in entries), entries
    return [entry.name for entry in entries]


def _failures(source: Iterable[Entry]) -> list[Failure]:
    return [entry for entry in source if isinstance(entry, Failure)]


# Listing a folder --------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_with_all_below_it_in_the_order_of_the_paths(maps: Path) -> None:
    paths = ["b.npy", "a/z.npy", "a/b/c.npy", "a.npy", "a-b.npy", "ab/c.npy", "Z.npy", "é.npy", "10.npy", "9.npy"]
    for path in paths:
        _save(maps / path)
    (maps / "notes.txt").write_text("no map")
    (maps / "npy").write_text("no map")
    (maps / "empty").mkdir()
    listed = _names(open_source(maps))
    # By bytes, and as if a folder's name ended in its slash: so it is the order of the keys in the store, too.
    assert listed == [path.removesuffix(".npy") for path in sorted(paths, key=os.fsencode)]
    assert _names(open_source(str(maps) + "/")) == listed


def test_an_entry_says_where_its_map_lies_how_large_it_is_and_what_state_it_is_in(maps: Path) -> None:
    path = _save(maps / "val" / "0001.npy")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    (entry,) = open_source(maps)
    size = path.stat().st_size
    assert entry == ActivationMap(
        "val/0001", str(path), f"{size}-1700000000123456789", MAP.nbytes, path=str(path), part=None, array=None
    )


def test_the_fingerprint_changes_when_the_file_does(maps: Path) -> None:
    path = _save(maps / "a.npy")
    (before,) = open_source(maps)
    assert list(open_source(maps)) == [before]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    (touched,) = open_source(maps)
    _save(path, MAP.astype(np.float64))
    os.utime(path, ns=(0, 0))
    (resized,) = open_source(maps)
    os.utime(path, ns=(0, 0))
    assert len({before.fingerprint, touched.fingerprint, resized.fingerprint}) == 3


def test_a_source_can_be_iterated_again_and_sees_what_is_new(maps: Path) -> None:
    _save(maps / "a.npy")
    sources = [open_source(maps), open_source(str(maps / "*.npy"))]
    assert [_names(source) for source in sources] == [["a"], ["a"]]
    _save(maps / "b.npy")
    assert [_names(source) for source in sources] == [["a", "b"], ["a", "b"]]


@pytest.mark.parametrize("name", ["A.NPY", "b.Npy", "c.npY"])
def test_a_suffix_may_be_upper_case(maps: Path, name: str) -> None:
    _save(maps / name)
    (entry,) = open_source(maps)
    assert entry.name == name[0]
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    np.testing.assert_array_equal(read_map(entry.path, entry.part), MAP)


@pytest.mark.parametrize(
    "name",
    [
        *("with space", " lead", "trail ", "#1", "100%", "%41", "a+b", "why?", "[1]", "*", "a&b=c;d", "q'\"q", "b\\s"),
        *("é", "e\N{COMBINING ACUTE ACCENT}", "日本", "🧠🔥", "x.y.z", "..x", "x..", "~", "-r", "\xa0", "x.npz"),
    ],
)  # fmt: skip
def test_awkward_names_are_kept_as_they_are(maps: Path, name: str) -> None:
    path = _save(maps / name / f"{name}.npy")
    assert _names(open_source(maps)) == [f"{name}/{name}"]
    assert _names(open_source(path)) == [name]
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.path == str(path)
    entry.source.encode()


@pytest.mark.parametrize(
    ("name", "shown", "reason"),
    [
        (b"caf\xe9.npy", r"caf\udce9", "is not UTF-8: rename the file"),
        (b"a\nb.npy", r"a\nb", "has a control character: rename the file"),
        (b"\x1b[31m.npy", r"\x1b[31m", "has a control character: rename the file"),
        (b".npy", "", "is empty, starts or ends with a slash"),
        (b"..npy", ".", "has an empty, '.' or '..' part"),
        (b"...npy", "..", "has an empty, '.' or '..' part"),
    ],
)
def test_a_name_that_cannot_be_a_key_is_a_failure_that_can_be_printed_and_stored(
    maps: Path, name: bytes, shown: str, reason: str
) -> None:
    path = _save(maps / os.fsdecode(name))
    _save(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert (failure.name, failure.stage) == (shown, "source")
    assert failure.fingerprint is not None
    assert reason in failure.reason
    assert f"{failure.name}{failure.source}{failure.reason}".isprintable()
    assert other.name == "z"
    # Named alone, it fares no better.
    assert [failure] == list(open_source(path))


def test_an_undecodable_folder_above_the_source_does_no_harm(tmp_path: Path) -> None:
    path = _save(tmp_path / os.fsdecode(b"caf\xe9") / "a.npy")
    (entry,) = open_source(path.parent)
    assert isinstance(entry, ActivationMap)
    assert entry.name == "a"
    entry.source.encode()
    assert entry.path is not None
    np.testing.assert_array_equal(read_map(entry.path, None), MAP)


# Links and what is no file -----------------------------------------------------------------------------------------


def test_symbolic_links_to_files_and_folders_are_followed(maps: Path, tmp_path: Path) -> None:
    _save(tmp_path / "elsewhere" / "deep" / "a.npy")
    (maps / "folder").symlink_to(tmp_path / "elsewhere")
    (maps / "again").symlink_to("folder")
    (maps / "file.npy").symlink_to(tmp_path / "elsewhere" / "deep" / "a.npy")
    assert _names(open_source(maps)) == ["again/deep/a", "file", "folder/deep/a"]


@pytest.mark.parametrize("pattern", ["", "**/*.npy"])
def test_links_that_lead_back_to_a_folder_above_are_failures(maps: Path, pattern: str) -> None:
    _save(maps / "a" / "x.npy")
    (maps / "a" / "back").symlink_to(maps)
    (maps / "a" / "self").symlink_to(".")
    (maps / "b").symlink_to("a")
    entries = list(open_source(maps / pattern))
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["a/x", "b/x"]
    failures = _failures(entries)
    assert len(failures) == 4
    assert {failure.reason for failure in failures} == {"a symbolic link that leads back to a folder above it"}
    assert {failure.source for failure in failures} == {
        str(maps / folder / link) for folder in "ab" for link in ("back", "self")
    }


@pytest.mark.parametrize("name", ["loop", "loop.npy", "loop.npz"])
def test_a_link_to_itself_takes_nothing_else_with_it(maps: Path, name: str) -> None:
    _save(maps / "a.npy")
    _save(maps / "z.npy")
    (maps / name).symlink_to(name)
    first, failure, last = open_source(maps)
    assert (first.name, last.name) == ("a", "z")
    assert isinstance(failure, Failure)
    assert failure.source == str(maps / name)
    assert failure.reason == "a symbolic link that leads back to itself"


def test_a_link_to_nowhere_is_a_failure_if_it_is_called_a_map(maps: Path) -> None:
    (maps / "gone.npy").symlink_to("nowhere")
    (maps / "gone.npz").symlink_to("nowhere")
    (maps / "gone").symlink_to("nowhere")
    assert {failure.source for failure in _failures(open_source(maps))} == {
        str(maps / "gone.npy"),
        str(maps / "gone.npz"),
    }
    (failure,) = open_source(maps / "gone.npy")
    assert isinstance(failure, Failure)
    assert failure.reason == "the file is not there: it was moved or deleted, or a symbolic link leads nowhere"


def test_a_pipe_called_a_map_is_a_failure_and_nobody_waits_for_it(maps: Path) -> None:
    os.mkfifo(maps / "x.npy")
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.reason == "expected a regular file, found a pipe"
    assert list(open_source(maps / "x.npy")) == [failure]


def test_devices_and_sockets_called_maps_are_failures(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    (maps / "null.npy").symlink_to(os.devnull)
    monkeypatch.chdir(maps)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock.npy")
        assert [failure.reason for failure in _failures(open_source(maps))] == [
            "expected a regular file, found a device",
            "expected a regular file, found a socket",
        ]


@pytest.mark.parametrize("pattern", ["", "**/*.npy", "*/*"])
def test_a_folder_called_a_map_is_a_folder(maps: Path, pattern: str) -> None:
    _save(maps / "x.npy" / "y.npy")
    assert _names(open_source(maps / pattern)) == ["x.npy/y"]


@pytest.mark.parametrize("pattern", ["", "**", "*/*.npy"])
def test_a_folder_that_may_not_be_read_is_a_failure(unprivileged: Path, pattern: str) -> None:
    _save(unprivileged / "a" / "x.npy")
    _save(unprivileged / "secret" / "x.npy")
    (unprivileged / "secret").chmod(0)
    try:
        entry, failure = open_source(unprivileged / pattern)
        assert entry.name == "a/x"
        assert isinstance(failure, Failure)
        assert failure.source == str(unprivileged / "secret")
        assert failure.reason == "cannot be read: Permission denied"
    finally:
        (unprivileged / "secret").chmod(0o755)


def test_a_link_into_a_folder_that_may_not_be_searched_is_a_failure(unprivileged: Path) -> None:
    _save(unprivileged / "maps" / "a.npy")
    _save(unprivileged / "secret" / "more" / "x.npy")
    (unprivileged / "maps" / "link").symlink_to(unprivileged / "secret" / "more")
    (unprivileged / "secret").chmod(0)
    try:
        entry, failure = open_source(unprivileged / "maps")
        assert entry.name == "a"
        assert isinstance(failure, Failure)
        assert failure.source == str(unprivileged / "maps" / "link")
        assert failure.reason == "cannot be read: Permission denied"
    finally:
        (unprivileged / "secret").chmod(0o755)


# A file, and nothing -----------------------------------------------------------------------------------------------


def test_a_file_is_named_by_itself(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(maps / "deep" / "x.npy")
    assert _names(open_source(maps / "deep" / "x.npy")) == ["x"]
    monkeypatch.chdir(maps / "deep")
    assert _names(open_source("x.npy")) == ["x"]
    monkeypatch.chdir(maps)
    (entry,) = open_source(Path("deep/x.npy"))
    assert isinstance(entry, ActivationMap)
    assert entry.path == str(maps / "deep" / "x.npy")


@pytest.mark.parametrize("place", ["none", "none/", "none.npy", "none/*.npy", "", "no\nne"])
def test_a_place_where_nothing_is_is_refused(maps: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(maps)
    with pytest.raises(SourceError, match=r"no such file or folder: ") as refusal:
        open_source(place)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["notes.txt", "npy", "x.npy.gz", "x.png"])
def test_a_file_of_another_kind_is_refused(maps: Path, name: str) -> None:
    (maps / name).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"is not read as activation maps; expected a file ending in \.npy, \.npz, \.tar, "
    ):
        open_source(maps / name)


async def test_a_source_without_maps_is_refused(maps: Path) -> None:
    (maps / "notes.txt").write_text("no map")
    for place in (maps, maps / "*.npy"):
        with pytest.raises(SourceError, match=f"^{place}".replace("*", r"\*") + r" holds no activation maps"):
            await _listed(place)
    with pytest.raises(SourceError, match="holds no activation maps"):
        await _listed([])
    with pytest.raises(SourceError, match="no such file or folder"):
        await _listed(maps / "none")


# Globs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.npy", ["cam_1", "x"]),
        ("cam_*.npy", ["cam_1"]),
        ("*", ["cam_1", "x"]),
        ("cam_?.npy", ["cam_1"]),
        ("[a-w]*.npy", ["cam_1"]),
        ("[!c]*.npy", ["x"]),
        ("*/cam_*.npy", ["a/cam_2", "b/cam_3"]),
        ("**/cam_*.npy", ["a/cam_2", "a/deep/er/cam_4", "b/cam_3", "cam_1"]),
        ("**", ["a/cam_2", "a/deep/er/cam_4", "a/x", "b/cam_3", "cam_1", "x"]),
        ("**/**/cam_*.npy", ["a/cam_2", "a/deep/er/cam_4", "b/cam_3", "cam_1"]),
        ("**/deep/**/*.npy", ["a/deep/er/cam_4"]),
        ("[ab]/*.npy", ["a/cam_2", "a/x", "b/cam_3"]),
        ("*/deep/er/cam_4.npy", ["a/deep/er/cam_4"]),
        ("*/x.npy", ["a/x"]),
        (".h*/*.npy", [".hidden/x"]),
        ("*/*/*.npy", []),
        ("*.npz", []),
        ("*.txt", []),
    ],
)
def test_a_glob_is_named_relative_to_its_fixed_part_and_sorted_and_each_file_comes_once(
    maps: Path, pattern: str, names: list[str]
) -> None:
    for name in ["x", "cam_1", "a/x", "a/cam_2", "b/cam_3", "a/deep/er/cam_4", ".hidden/x", "a/.hidden"]:
        _save(maps / f"{name}.npy")
    (maps / "cam_notes.txt").write_text("no map")
    assert _names(open_source(maps / pattern)) == names


def test_the_fixed_part_of_a_glob_reaches_to_the_first_wildcard(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(maps / "val" / "resnet" / "1.npy")
    assert _names(open_source(maps / "val" / "resnet" / "*.npy")) == ["1"]
    assert _names(open_source(maps / "val" / "*" / "1.npy")) == ["resnet/1"]
    assert _names(open_source(maps / "v*" / "resnet" / "1.npy")) == ["val/resnet/1"]
    monkeypatch.chdir(maps / "val")
    assert _names(open_source("*/*.npy")) == ["resnet/1"]
    assert _names(open_source("../v*/*/*.npy")) == ["val/resnet/1"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(maps: Path) -> None:
    _save(maps / "[1].npy")
    _save(maps / "1.npy")
    assert _names(open_source(maps / "[1].npy")) == ["[1]"]
    assert _names(open_source(maps / "[[]1].npy")) == ["[1]"]


def test_many_looping_links_do_not_keep_a_glob_busy_for_ever(maps: Path) -> None:
    _save(maps / "x.npy")
    for number in range(8):
        (maps / f"loop{number}").symlink_to(".")
    entries = list(open_source(maps / "**" / "*.npy"))
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["x"]
    assert len(entries) == 9


def test_a_glob_looks_into_no_folder_that_cannot_match(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "a/deep"):
        _save(maps / folder / "x.npy")
    looked_into = _watched_scandir(monkeypatch)
    assert _names(open_source(maps / "a*" / "x.npy")) == ["a/x"]
    assert looked_into == [str(maps), str(maps / "a")]


# Large listings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["", "**/*.npy"])
def test_a_long_listing_sorted_on_disk_has_the_same_order(
    maps: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for number in range(40):
        _save(maps / f"{number * 7 % 40}é{'/x' * (number % 3)}.npy")
    _save(maps / "b" / os.fsdecode(b"ok.npy"))
    in_memory = list(open_source(maps / pattern))
    for limit in (1, 2, 7, 41):
        monkeypatch.setattr(files, "_SORT_IN_MEMORY", limit)
        assert list(open_source(maps / pattern)) == in_memory


def test_undecodable_names_survive_the_sort_on_disk(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SORT_IN_MEMORY", 1)
    _save(maps / os.fsdecode(b"caf\xe9.npy"))
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == r"caf\udce9"


def test_the_first_map_comes_before_the_other_folders_were_looked_into(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        _save(maps / f"{number:02}" / "x.npy")
    looked_into = _watched_scandir(monkeypatch)
    listing = iter(open_source(maps))
    assert next(listing).name == "00/x"
    assert looked_into == [str(maps), str(maps / "00")]
    assert len(list(listing)) == 49


@pytest.mark.parametrize("pattern", ["", "*.npy"])
@pytest.mark.slow
def test_the_memory_of_a_listing_does_not_grow_with_the_folder(
    maps: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(files, "_SORT_IN_MEMORY", 100)
    # Hard links: files are dear, names are cheap.
    first = _save(maps / f"{'x' * 100}-0.npy")
    for number in range(1, 5000):
        os.link(first, maps / f"{'x' * 100}-{number}.npy")
    listing = open_source(maps / pattern)
    tracemalloc.start()
    try:
        count = sum(1 for _ in listing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 5000
    # The names alone are over 700 KB.
    assert peak < 300_000


def test_a_file_that_may_not_be_read_is_a_failure(unprivileged: Path) -> None:
    _save(unprivileged / "a.npy").chmod(0)
    _save(unprivileged / "b.npy")
    failure, other = open_source(unprivileged)
    assert isinstance(failure, Failure)
    assert failure.reason == "cannot be read: Permission denied"
    assert other.name == "b"


# Archives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_members_of_an_archive_are_named_after_it_and_their_keys(maps: Path, save: Any) -> None:
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
def test_a_member_cannot_leave_its_place(maps: Path, key: str) -> None:
    with zipfile.ZipFile(maps / "evil.npz", "w") as archive:
        archive.writestr(f"{key}.npy", _npy(MAP))
        archive.writestr("good.npy", _npy(MAP))
    failure, good = open_source(maps)
    assert isinstance(failure, Failure)
    assert "has an empty, '.' or '..' part" in failure.reason or "control character" in failure.reason
    assert good.name == "evil/good"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_archive_is_a_failure_of_its_own(maps: Path, content: bytes) -> None:
    (maps / "broken.npz").write_bytes(content)
    _save(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == "broken"
    assert failure.reason.startswith("expected an .npz archive (a zip file): ")
    assert other.name == "z"


def test_a_damaged_name_in_an_archive_is_a_failure_of_that_archive(maps: Path) -> None:
    np.savez(maps / "a.npz", é=MAP)
    content = (maps / "a.npz").read_bytes()
    (maps / "a.npz").write_bytes(content.replace("é".encode(), b"\xff\xff"))
    _save(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("expected an .npz archive (a zip file): 'utf-8' codec can't decode")
    assert other.name == "z"


def test_an_archive_without_arrays_is_a_failure(maps: Path) -> None:
    with zipfile.ZipFile(maps / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "no map")
    assert [failure.reason for failure in _failures(open_source(maps))] == ["the archive holds no arrays (.npy)"]


def test_a_member_that_is_gone_is_said_to_be(maps: Path) -> None:
    np.savez(maps / "a.npz", kept=MAP)
    with pytest.raises(SourceError, match="the archive holds no array 'gone' any more"):
        read_map(str(maps / "a.npz"), "gone")
    (maps / "a.npz").unlink()
    with pytest.raises(FileNotFoundError):
        read_map(str(maps / "a.npz"), "kept")


def test_a_damaged_member_is_found_by_its_checksum(maps: Path) -> None:
    np.savez(maps / "a.npz", x=MAP)
    content = bytearray((maps / "a.npz").read_bytes())
    content[content.index(MAP.tobytes()) + 5] ^= 1
    (maps / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match="the archive is damaged at 'x': Bad CRC-32"):
        read_map(str(maps / "a.npz"), "x")


def test_a_member_whose_compressed_data_are_damaged_is_said_to_be(maps: Path) -> None:
    np.savez_compressed(maps / "a.npz", x=np.random.default_rng(1).random((64, 64)))
    content = bytearray((maps / "a.npz").read_bytes())
    content[40:3000] = bytes(2960)
    (maps / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match="the archive is damaged at 'x': "):
        read_map(str(maps / "a.npz"), "x")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_zipfile_unpacks_is_read_and_its_damage_is_a_source_error(maps: Path, compression: int) -> None:
    path = maps / "a.npz"
    array = np.random.default_rng(1).random((32, 32))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", _npy(array))
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
def test_encrypted_members_and_unknown_compressions_are_said_to_be(
    maps: Path, offset: int, value: int, reason: str
) -> None:
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


def test_a_member_is_not_held_twice_while_it_is_read(maps: Path) -> None:
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


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "i8", "?", "c8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (3, 5, 1), (7,), (), (0, 4), (2, 3, 4)])
def test_an_array_is_read_as_it_was_saved(maps: Path, dtype: str, order: Any, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).random(shape) * 100
    array = np.asarray(values, order=order).astype(dtype)
    path = _save(maps / "a.npy", array)
    read = read_map(str(path), None)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.flags.f_contiguous == array.flags.f_contiguous
    np.testing.assert_array_equal(read, array)
    np.savez(maps / "a.npz", x=array)
    np.testing.assert_array_equal(read_map(str(maps / "a.npz"), "x"), array)


def test_a_header_of_version_2_is_read(maps: Path) -> None:
    path = maps / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, MAP, version=(2, 0))
    np.testing.assert_array_equal(read_map(str(path), None), MAP)


def test_bytes_behind_the_array_are_not_read(maps: Path) -> None:
    path = _save(maps / "a.npy")
    with path.open("ab") as file:
        file.write(b"more")
    np.testing.assert_array_equal(read_map(str(path), None), MAP)


_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected an .npy file, found an empty one"),
        (b"\x93NUM", "expected an .npy file: EOF: reading magic string"),
        (b"GIF89a" + bytes(100), "expected an .npy file: the magic string is not correct"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "expected an .npy file: version (3, 0) of the format is for structured"),
        (b"\x93NUMPY\x09\x09" + bytes(100), "expected an .npy file: version (9, 9) of the format"),
        (
            b"\x93NUMPY\x01\x00\xff\xff" + b" " * 0xFFFF,
            "expected an .npy file: its header claims 65,535 bytes",
        ),
        ("{'descr': '<f4'", "expected an .npy file: "),
        ("'descr': '<f4'}", "expected an .npy file: "),
        ("{'descr': '<f4', 1: 2}", "expected an .npy file: "),
        ("[" * 3000, "expected an .npy file: "),
        ("{'descr': (), 'fortran_order': False, 'shape': (3, 4), }", "expected an .npy file: "),
        (_HEADER.replace("False", "7"), "expected an .npy file: fortran_order is not a valid bool: 7"),
        (_HEADER.replace("<f4", "no such"), "expected an .npy file: "),
        (_HEADER.replace("3, 4", "-3, 4"), "expected an array of numbers, found the shape (-3, 4) of float32"),
        (_HEADER.replace("3, 4", "-3, -4"), "expected an array of numbers, found the shape (-3, -4) of float32"),
        (_HEADER.replace("3, 4", "0, -4"), "expected an array of numbers, found the shape (0, -4) of float32"),
        (_HEADER.replace("<f4", "S0"), "expected an array of numbers, found the shape (3, 4) of |S0"),
        (_HEADER.replace("'<f4'", "('<f4', (2,))"), "expected an array of numbers, found the shape (3, 4) of ("),
        (_HEADER, "truncated: its header promises 48 bytes of data (shape (3, 4), float32), found 0"),
        (_HEADER.replace("<f4", "|O"), "pickled Python objects, which are never read"),
    ],
)
def test_what_is_no_array_is_told_in_one_sentence(maps: Path, content: bytes | str, reason: str) -> None:
    path = maps / "a.npy"
    path.write_bytes(content if isinstance(content, bytes) else _with_header(content))
    with pytest.raises(SourceError) as refusal:
        read_map(str(path), None)
    assert str(refusal.value).startswith(reason) or reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("cut", [1, 48, 49, 100, 120, 170])
def test_a_truncated_file_is_refused_wherever_it_ends(maps: Path, cut: int) -> None:
    path = _save(maps / "a.npy")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=r"truncated: its header promises 48 bytes of data|expected an \.npy file"):
        read_map(str(path), None)


class _Payload:
    def __init__(self, evidence: Path) -> None:
        self._evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._evidence),)


def test_pickled_objects_are_never_executed(maps: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = _Payload(evidence)
    np.save(maps / "a.npy", array, allow_pickle=True)
    np.savez(maps / "b.npz", x=array)
    (maps / "c.npy").write_bytes(pickle.dumps(_Payload(evidence)))
    with pytest.raises(SourceError, match="found pickled Python objects, which are never read"):
        read_map(str(maps / "a.npy"), None)
    with pytest.raises(SourceError, match="found pickled Python objects, which are never read"):
        read_map(str(maps / "b.npz"), "x")
    with pytest.raises(SourceError, match="the magic string is not correct"):
        read_map(str(maps / "c.npy"), None)
    assert not evidence.exists()
    # The bait was live.
    np.load(maps / "a.npy", allow_pickle=True)
    assert evidence.exists()


def test_objects_hidden_in_a_field_are_refused(maps: Path) -> None:
    np.save(maps / "a.npy", np.zeros(2, [("x", "f4"), ("y", "O")]), allow_pickle=True)
    with pytest.raises(SourceError, match="found pickled Python objects"):
        read_map(str(maps / "a.npy"), None)


def test_a_structured_array_is_read_and_left_to_colorize_to_refuse(maps: Path) -> None:
    array = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
    read = read_map(str(_save(maps / "a.npy", array)), None)
    assert read.dtype == array.dtype


@pytest.mark.parametrize("shape", ["1000000, 1000000", "1" + "0" * 300 + ",", "1" + "0" * 3000 + ","])
def test_a_small_file_that_claims_to_be_huge_is_refused_without_taking_memory(maps: Path, shape: str) -> None:
    path = maps / "a.npy"
    path.write_bytes(_with_header(_HEADER.replace("3, 4", shape)) + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="truncated: its header promises"):
            read_map(str(path), None)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_archive_that_lies_about_a_huge_member_is_refused_without_touching_memory(maps: Path) -> None:
    claimed = 2 * 2**30
    header = _with_header(_HEADER.replace("<f4", "|u1").replace("3, 4", f"{claimed},"))
    with zipfile.ZipFile(maps / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header)
    content = bytearray((maps / "a.npz").read_bytes())
    for start in (22, content.index(b"PK\x01\x02") + 24):
        content[start : start + 4] = struct.pack("<I", claimed + len(header))
    (maps / "a.npz").write_bytes(content)
    # In a process of its own, because a peak of memory never goes down again.
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
    assert reason.endswith("could be unpacked to")
    assert int(grown_kib) < 50 * 1024


def test_what_no_reader_knows_is_refused(maps: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing here reads a\.txt"):
        read_map("a.txt", None)


_NPY = b"\x93NUMPY\x01\x00v\x00" + _HEADER.ljust(117).encode() + b"\n" + MAP.tobytes()
_BYTES = st.integers(0, 255) | st.sampled_from(b"(){}[],'-09aOV|<S")
_CHANGES = st.lists(st.tuples(st.integers(0, 10_000), _BYTES), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=_CHANGES)
@example(changes=[])
def test_no_damage_to_a_file_ends_in_anything_but_an_array_or_a_source_error(
    maps: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(_NPY)
    for position, value in changes:
        content[position % len(content)] = value
    path = maps / "a.npy"
    path.write_bytes(content)
    with suppress(SourceError):
        assert read_map(str(path), None).nbytes <= len(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=_CHANGES, compressed=st.booleans())
def test_no_damage_to_an_archive_ends_in_anything_but_maps_and_failures(
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


def test_a_large_file_is_read_in_one_go_into_one_array(maps: Path) -> None:
    array = np.random.default_rng(1).random((1500, 1000))
    path = _save(maps / "a.npy", array)
    tracemalloc.start()
    try:
        read = read_map(str(path), None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, array)
    assert peak < 1.2 * array.nbytes


# As the pipeline lists them ----------------------------------------------------------------------------------------


async def test_places_sources_and_iterables_are_all_listed(maps: Path) -> None:
    for number in range(600):
        os.link(maps / "000.npy", maps / f"{number:03}.npy") if number else _save(maps / "000.npy")
    names = [f"{number:03}" for number in range(600)]
    for place in (maps, str(maps), open_source(maps), f"{maps}/*.npy"):
        assert [entry.name for entry in await _listed(place)] == names

    async def pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for name in names:
            await asyncio.sleep(0)
            yield name, MAP

    for source in ([(name, MAP) for name in names], dict.fromkeys(names, MAP).items(), pairs()):
        entries = await _listed(source)
        assert [entry.name for entry in entries] == names
        assert entries[0] == ActivationMap("000", "000", None, MAP.nbytes, array=MAP)


async def test_arrays_that_are_no_maps_become_failures_and_the_others_go_on() -> None:
    source: list[tuple[str, Any]] = [
        ("good", MAP),
        ("wrong dtype", MAP.astype(complex)),
        ("wrong shape", np.zeros((2, 2, 3))),
        ("empty", np.zeros((0, 3))),
        ("../out", MAP),
        ("caf\udce9", MAP),
        ("list", [[0.5]]),
        (5, MAP),  # type: ignore[list-item]
        ("good too", MAP[..., None]),
    ]
    entries = await _listed(source)
    failures = _failures(entries)
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["good", "good too"]
    assert [(failure.name, failure.stage, failure.fingerprint) for failure in failures] == [
        (name, "source", None) for name in ("wrong dtype", "wrong shape", "empty", "../out", r"caf\udce9", "list", "5")
    ]
    for failure, reason in zip(
        failures,
        ["found complex128", "(2, 2, 3)", "is empty", "'..' part", "is not UTF-8", "found list", "found int"],
        strict=True,
    ):
        assert reason in failure.reason


@pytest.mark.parametrize("source", [np.zeros((2, 3, 4)), {"a": MAP}, [("a", MAP, 7)]], ids=["array", "dict", "triple"])
async def test_what_gives_no_pairs_is_told_what_to_give(source: Any) -> None:
    with pytest.raises(SourceError, match=r"must give pairs \(name, array\); found (ndarray|str|tuple)"):
        await _listed(source)


async def test_a_slow_iterable_is_not_waited_for_to_fill_a_batch() -> None:
    may_go_on = threading.Event()

    def slow() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", MAP
        time.sleep(0.05)
        yield "second", MAP
        assert may_go_on.wait(5)
        yield "third", MAP

    seen: list[str] = []
    async with aclosing(list_maps(slow())) as batches:
        # It stands still before its third map, and the second comes nevertheless.
        while "second" not in seen:
            seen += [entry.name for entry in await anext(batches)]
        may_go_on.set()
        seen += [entry.name async for batch in batches for entry in batch]
    assert seen == ["first", "second", "third"]


async def test_the_event_loop_goes_on_while_an_iterable_blocks() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    def blocking() -> Iterator[tuple[str, NDArray[Any]]]:
        time.sleep(0.3)
        yield "a", MAP

    ticking = asyncio.create_task(tick())
    await _listed(blocking())
    ticking.cancel()
    assert ticks > 5


async def test_a_batch_is_bounded_in_items_and_in_bytes() -> None:
    large = np.zeros((2**20, 5), np.uint8)
    async with aclosing(list_maps((str(number), large) for number in range(20))) as batches:
        sizes = [sum(entry.max_bytes for entry in batch if isinstance(entry, ActivationMap)) async for batch in batches]
    assert sum(sizes) == 20 * large.nbytes
    assert max(sizes) < 16 * 2**20 + large.nbytes
    async with aclosing(list_maps((str(number), MAP) for number in range(1000))) as batches:
        assert max([len(batch) async for batch in batches]) <= 256


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
async def test_an_error_of_the_iterables_own_is_passed_through(kind: str) -> None:
    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", MAP
        raise _OwnError("theirs")

    async def async_pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for pair in pairs():
            yield pair

    with pytest.raises(_OwnError, match=r"^theirs$"):
        await _listed(pairs() if kind == "iterable" else async_pairs())


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
@pytest.mark.parametrize("end", ["exhausted", "left early", "cancelled"])
async def test_a_generator_is_closed_afterwards(kind: str, end: str) -> None:
    closed = threading.Event()

    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        try:
            for number in range(3 if end == "exhausted" else 100_000):
                yield str(number), MAP
        finally:
            closed.set()

    async def async_pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        try:
            for number in range(3 if end == "exhausted" else 100_000):
                await asyncio.sleep(0)
                yield str(number), MAP
        finally:
            closed.set()

    source = pairs() if kind == "iterable" else async_pairs()
    taking = asyncio.create_task(_listed(source, first=10 if end == "left early" else None))
    if end == "cancelled":
        await asyncio.sleep(0.01)
        taking.cancel()
    await asyncio.wait({taking})
    assert taking.cancelled() == (end == "cancelled")
    # Cancelled, its thread may be on its way back. `source` still lives: it is not the garbage collector that closes.
    assert await asyncio.to_thread(closed.wait, 5), source


async def test_a_generator_that_blocks_does_not_keep_a_cancelled_task_and_is_closed_when_it_comes_back() -> None:
    inside, may_go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> Iterator[tuple[str, NDArray[Any]]]:
        try:
            inside.set()
            assert may_go_on.wait(30)
            while True:
                yield "a", MAP
        finally:
            closed.set()

    source = blocking()
    taking = asyncio.create_task(_listed(source))
    assert await asyncio.to_thread(inside.wait, 5)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not closed.is_set()
    may_go_on.set()
    assert await asyncio.to_thread(closed.wait, 5), source


async def test_an_iterator_without_close_is_left_as_it_is() -> None:
    iterator = iter([("a", MAP), ("b", MAP)])
    assert [entry.name for entry in await _listed(iterator)] == ["a", "b"]


async def _listed(source: AnySource, first: int | None = None) -> list[Entry]:
    entries: list[Entry] = []
    async with aclosing(list_maps(source)) as batches:
        async for batch in batches:
            entries += batch
            if first is not None and len(entries) >= first:
                break
    return entries


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1")


def _watched_scandir(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    looked_into: list[str] = []
    scandir = os.scandir

    def watched(folder: str) -> Any:
        looked_into.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", watched)
    return looked_into


def test_the_members_of_an_archive_are_read_through_one_look_at_its_directory(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_what_came_before_an_iterables_error_is_handed_over_first() -> None:
    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", MAP
        yield "b", MAP
        raise LookupError("mine")

    batches = list_maps(pairs())
    assert [entry.name for entry in await anext(batches)] == ["a", "b"]
    with pytest.raises(LookupError, match="mine"):
        await anext(batches)
