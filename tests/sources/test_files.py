"""Folders, files and globs as sources, with valid and with hostile files."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from async_maps.errors import ShortageError, SourceError
from async_maps.outcomes import Failure
from async_maps.sources import files, open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps
from async_maps.sources.formats.npy import NpyReader
from tests.support.entries import failures_of, only_names, read_map, save_map
from tests.support.limits import no_file_left
from tests.support.maps import MAP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.sources.batches import AnySource, Entry
    from async_maps.sources.formats.registry import ListedArray

pytestmark = pytest.mark.fast


# Listing a folder --------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_recursively_in_path_order(maps: Path) -> None:
    paths = ["b.npy", "a/z.npy", "a/b/c.npy", "a.npy", "a-b.npy", "ab/c.npy", "Z.npy", "é.npy", "10.npy", "9.npy"]
    for path in paths:
        save_map(maps / path)
    (maps / "notes.txt").write_text("no map")
    (maps / "npy").write_text("no map")
    (maps / "empty").mkdir()
    listed = only_names(open_source(maps))
    # By bytes, with the slash after a folder's name: the order of the keys in the store.
    assert listed == [path.removesuffix(".npy") for path in sorted(paths, key=os.fsencode)]
    assert only_names(open_source(str(maps) + "/")) == listed


def test_an_entry_has_the_path_size_and_fingerprint_of_its_file(maps: Path) -> None:
    path = save_map(maps / "val" / "0001.npy")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    (entry,) = open_source(maps)
    size = path.stat().st_size
    assert entry == ActivationMap(
        "val/0001", str(path), f"{size}-1700000000123456789", MAP.nbytes, path=str(path), part=None, array=None
    )


def test_the_fingerprint_changes_when_the_file_does(maps: Path) -> None:
    path = save_map(maps / "a.npy")
    (before,) = open_source(maps)
    assert list(open_source(maps)) == [before]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    (touched,) = open_source(maps)
    save_map(path, MAP.astype(np.float64))
    os.utime(path, ns=(0, 0))
    (resized,) = open_source(maps)
    os.utime(path, ns=(0, 0))
    assert len({before.fingerprint, touched.fingerprint, resized.fingerprint}) == 3


def test_a_second_iteration_lists_new_files(maps: Path) -> None:
    save_map(maps / "a.npy")
    sources = [open_source(maps), open_source(str(maps / "*.npy"))]
    assert [only_names(source) for source in sources] == [["a"], ["a"]]
    save_map(maps / "b.npy")
    assert [only_names(source) for source in sources] == [["a", "b"], ["a", "b"]]


@pytest.mark.parametrize("name", ["A.NPY", "b.Npy", "c.npY"])
def test_a_suffix_may_be_upper_case(maps: Path, name: str) -> None:
    save_map(maps / name)
    (entry,) = open_source(maps)
    assert entry.name == name[0]
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    np.testing.assert_array_equal(read_map(entry.path, entry.part), MAP)


@pytest.mark.parametrize(
    "name",
    [
        *("with space", " lead", "trail ", "#1", "100%", "%41", "a+b", "why?", "[1]", "*", "a&b=c;d", "q'\"q", "b\\s"),
        *("é", "e\N{COMBINING ACUTE ACCENT}", "日本", "🧠🔥", "x.y.z", "x..", "~", "-r", "\xa0", "x.npz"),
    ],
)  # fmt: skip
def test_special_characters_in_names_are_kept(maps: Path, name: str) -> None:
    path = save_map(maps / name / f"{name}.npy")
    assert only_names(open_source(maps)) == [f"{name}/{name}"]
    assert only_names(open_source(path)) == [name]
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
        (b".npy", "", "empty parts are not allowed"),
        (b"..npy", ".", "'.' is not allowed"),
        (b"...npy", "..", "'..' is not allowed"),
    ],
)
def test_an_invalid_name_is_a_printable_failure(maps: Path, name: bytes, shown: str, reason: str) -> None:
    path = save_map(maps / os.fsdecode(name))
    save_map(maps / "z.npy")
    failure, other = open_source(maps)
    assert isinstance(failure, Failure)
    assert (failure.name, failure.stage) == (shown, "source")
    assert failure.fingerprint is not None
    assert reason in failure.reason
    assert f"{failure.name}{failure.source}{failure.reason}".isprintable()
    assert other.name == "z"
    # As a source of its own it is the same failure.
    assert [failure] == list(open_source(path))


def test_an_undecodable_folder_above_the_source_is_accepted(tmp_path: Path) -> None:
    path = save_map(tmp_path / os.fsdecode(b"caf\xe9") / "a.npy")
    (entry,) = open_source(path.parent)
    assert isinstance(entry, ActivationMap)
    assert entry.name == "a"
    entry.source.encode()
    assert entry.path is not None
    np.testing.assert_array_equal(read_map(entry.path, None), MAP)


# Links and special files -------------------------------------------------------------------------------------------


def test_symbolic_links_to_files_and_folders_are_followed(maps: Path, tmp_path: Path) -> None:
    save_map(tmp_path / "elsewhere" / "deep" / "a.npy")
    (maps / "folder").symlink_to(tmp_path / "elsewhere")
    (maps / "again").symlink_to("folder")
    (maps / "file.npy").symlink_to(tmp_path / "elsewhere" / "deep" / "a.npy")
    assert only_names(open_source(maps)) == ["again/deep/a", "file", "folder/deep/a"]


@pytest.mark.parametrize("pattern", ["", "**/*.npy"])
def test_links_to_a_parent_folder_are_failures(maps: Path, pattern: str) -> None:
    save_map(maps / "a" / "x.npy")
    (maps / "a" / "back").symlink_to(maps)
    (maps / "a" / "self").symlink_to(".")
    (maps / "b").symlink_to("a")
    entries = list(open_source(maps / pattern))
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["a/x", "b/x"]
    failures = failures_of(entries)
    assert len(failures) == 4
    assert {failure.reason for failure in failures} == {"a symbolic link points to a folder above it"}
    assert {failure.source for failure in failures} == {
        str(maps / folder / link) for folder in "ab" for link in ("back", "self")
    }


@pytest.mark.parametrize("name", ["loop", "loop.npy", "loop.npz"])
def test_a_link_to_itself_fails_alone(maps: Path, name: str) -> None:
    save_map(maps / "a.npy")
    save_map(maps / "z.npy")
    (maps / name).symlink_to(name)
    first, failure, last = open_source(maps)
    assert (first.name, last.name) == ("a", "z")
    assert isinstance(failure, Failure)
    assert failure.source == str(maps / name)
    assert failure.reason == "a symbolic link points back to itself"


def test_a_dangling_link_with_a_map_suffix_is_a_failure(maps: Path) -> None:
    (maps / "gone.npy").symlink_to("nowhere")
    (maps / "gone.npz").symlink_to("nowhere")
    (maps / "gone").symlink_to("nowhere")
    assert {failure.source for failure in failures_of(open_source(maps))} == {
        str(maps / "gone.npy"),
        str(maps / "gone.npz"),
    }
    (failure,) = open_source(maps / "gone.npy")
    assert isinstance(failure, Failure)
    assert failure.reason == "the file does not exist: it was moved or deleted, or it is a broken symbolic link"


def test_a_pipe_with_a_map_suffix_is_a_failure(maps: Path) -> None:
    os.mkfifo(maps / "x.npy")
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.reason == "expected a regular file, found a pipe"
    assert list(open_source(maps / "x.npy")) == [failure]


def test_devices_and_sockets_with_a_map_suffix_are_failures(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    (maps / "null.npy").symlink_to(os.devnull)
    monkeypatch.chdir(maps)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock.npy")
        assert [failure.reason for failure in failures_of(open_source(maps))] == [
            "expected a regular file, found a device",
            "expected a regular file, found a socket",
        ]


@pytest.mark.parametrize("pattern", ["", "**/*.npy", "*/*"])
def test_a_folder_with_a_map_suffix_is_listed_as_a_folder(maps: Path, pattern: str) -> None:
    save_map(maps / "x.npy" / "y.npy")
    assert only_names(open_source(maps / pattern)) == ["x.npy/y"]


@pytest.mark.parametrize("pattern", ["", "**", "*/*.npy"])
def test_an_unreadable_folder_is_a_failure(unprivileged: Path, pattern: str) -> None:
    save_map(unprivileged / "a" / "x.npy")
    save_map(unprivileged / "secret" / "x.npy")
    (unprivileged / "secret").chmod(0)
    try:
        entry, failure = open_source(unprivileged / pattern)
        assert entry.name == "a/x"
        assert isinstance(failure, Failure)
        assert failure.source == str(unprivileged / "secret")
        assert failure.reason == "cannot be read: Permission denied"
    finally:
        (unprivileged / "secret").chmod(0o755)


def test_a_link_into_an_unreadable_folder_is_a_failure(unprivileged: Path) -> None:
    save_map(unprivileged / "maps" / "a.npy")
    save_map(unprivileged / "secret" / "more" / "x.npy")
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


# A single file, a missing one --------------------------------------------------------------------------------------


def test_a_single_file_is_named_by_its_stem(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_map(maps / "deep" / "x.npy")
    assert only_names(open_source(maps / "deep" / "x.npy")) == ["x"]
    monkeypatch.chdir(maps / "deep")
    assert only_names(open_source("x.npy")) == ["x"]
    monkeypatch.chdir(maps)
    (entry,) = open_source(Path("deep/x.npy"))
    assert isinstance(entry, ActivationMap)
    assert entry.path == str(maps / "deep" / "x.npy")


@pytest.mark.parametrize("place", ["none", "none/", "none.npy", "none/*.npy", "no\nne"])
def test_a_missing_source_is_refused(maps: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(maps)
    with pytest.raises(SourceError, match=r"no such file or folder: ") as refusal:
        open_source(place)
    assert str(refusal.value).isprintable()


def test_an_empty_source_address_is_refused() -> None:
    with pytest.raises(SourceError, match=r"^the address is empty; expected s3://bucket/prefix, gs://bucket/prefix, "):
        open_source("")


@pytest.mark.parametrize("name", ["notes.md", "npy", "x.npy.bak"])
def test_a_file_with_another_suffix_is_refused(maps: Path, name: str) -> None:
    (maps / name).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"is not a file of activation maps: expected a name that ends in \.npy, \.npz, "
    ):
        open_source(maps / name)


async def test_a_source_without_maps_is_refused(maps: Path) -> None:
    (maps / "notes.txt").write_text("no map")
    for place in (maps, maps / "*.npy"):
        with pytest.raises(SourceError, match=f"^{place}".replace("*", r"\*") + r" contains no activation maps"):
            await _listed(place)
    np.save(maps / "labels.npy", np.arange(5))
    for place in (maps / "labels.npy", maps / "l*.npy"):
        with pytest.raises(
            SourceError, match=r"contains no activation maps; passed over: arrays below two dimensions: 1$"
        ):
            await _listed(place)
    with pytest.raises(SourceError, match="contains no activation maps"):
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
def test_a_glob_lists_each_match_once_in_order(maps: Path, pattern: str, names: list[str]) -> None:
    for name in ["x", "cam_1", "a/x", "a/cam_2", "b/cam_3", "a/deep/er/cam_4", ".hidden/x", "a/.hidden"]:
        save_map(maps / f"{name}.npy")
    (maps / "cam_notes.txt").write_text("no map")
    assert only_names(open_source(maps / pattern)) == names


def test_names_are_relative_to_the_first_wildcard_of_a_glob(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_map(maps / "val" / "resnet" / "1.npy")
    assert only_names(open_source(maps / "val" / "resnet" / "*.npy")) == ["1"]
    assert only_names(open_source(maps / "val" / "*" / "1.npy")) == ["resnet/1"]
    assert only_names(open_source(maps / "v*" / "resnet" / "1.npy")) == ["val/resnet/1"]
    monkeypatch.chdir(maps / "val")
    assert only_names(open_source("*/*.npy")) == ["resnet/1"]
    assert only_names(open_source("../v*/*/*.npy")) == ["val/resnet/1"]


def test_an_existing_file_is_not_treated_as_a_glob(maps: Path) -> None:
    save_map(maps / "[1].npy")
    save_map(maps / "1.npy")
    assert only_names(open_source(maps / "[1].npy")) == ["[1]"]
    assert only_names(open_source(maps / "[[]1].npy")) == ["[1]"]


def test_a_glob_ends_despite_looping_links(maps: Path) -> None:
    save_map(maps / "x.npy")
    for number in range(8):
        (maps / f"loop{number}").symlink_to(".")
    entries = list(open_source(maps / "**" / "*.npy"))
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["x"]
    assert len(entries) == 9


def test_a_glob_reads_only_folders_that_can_match(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "a/deep"):
        save_map(maps / folder / "x.npy")
    scanned = _record_scandir(monkeypatch)
    assert only_names(open_source(maps / "a*" / "x.npy")) == ["a/x"]
    assert scanned == [str(maps), str(maps / "a")]


# Large listings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["", "**/*.npy"])
def test_a_long_listing_sorted_on_disk_has_the_same_order(
    maps: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for number in range(40):
        save_map(maps / f"{number * 7 % 40}é{'/x' * (number % 3)}.npy")
    save_map(maps / "b" / os.fsdecode(b"ok.npy"))
    in_memory = list(open_source(maps / pattern))
    for limit in (1, 2, 7, 41):
        monkeypatch.setattr(files, "_SORT_IN_MEMORY", limit)
        assert list(open_source(maps / pattern)) == in_memory


def test_an_undecodable_name_is_kept_by_the_sort_on_disk(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SORT_IN_MEMORY", 1)
    save_map(maps / os.fsdecode(b"caf\xe9.npy"))
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == r"caf\udce9"


def test_the_first_map_comes_before_other_folders_are_read(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        save_map(maps / f"{number:02}" / "x.npy")
    scanned = _record_scandir(monkeypatch)
    listing = iter(open_source(maps))
    assert next(listing).name == "00/x"
    assert scanned == [str(maps), str(maps / "00")]
    assert len(list(listing)) == 49


@pytest.mark.parametrize("pattern", ["", "*.npy"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(maps: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(files, "_SORT_IN_MEMORY", 100)
    # Hard links are quicker to create than files.
    first = save_map(maps / f"{'x' * 100}-0.npy")
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


def test_an_unreadable_file_is_a_failure(unprivileged: Path) -> None:
    save_map(unprivileged / "a.npy").chmod(0)
    save_map(unprivileged / "b.npy")
    failure, other = open_source(unprivileged)
    assert isinstance(failure, Failure)
    assert failure.reason == "cannot be read: Permission denied"
    assert other.name == "b"


# As the pipeline lists them ----------------------------------------------------------------------------------------


async def _listed(source: AnySource, first: int | None = None) -> list[Entry]:
    entries: list[Entry] = []
    async with aclosing(list_maps(source)) as batches:
        async for batch in batches:
            entries += batch
            if first is not None and len(entries) >= first:
                break
    return entries


def _record_scandir(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scanned: list[str] = []
    scandir = os.scandir

    def watched(folder: str) -> Any:
        scanned.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", watched)
    return scanned


def test_a_file_with_an_unexpected_error_fails_alone(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (maps / "a.npy").write_bytes(b"hostile")
    save_map(maps / "b.npy")
    original = NpyReader.arrays

    def arrays(self: NpyReader) -> Iterator[ListedArray]:
        for array in original(self):
            if array.problem:
                raise RecursionError("of a kind nobody thought of")
            yield array

    monkeypatch.setattr(NpyReader, "arrays", arrays)
    first, second = open_source(maps)
    assert isinstance(first, Failure)
    assert first.reason == "could not be listed: RecursionError('of a kind nobody thought of')"
    assert isinstance(second, ActivationMap)
    assert second.name == "b"


@pytest.mark.parametrize("file", ["a.npy", "b/a.npy"])
def test_a_shortage_of_files_ends_the_listing_without_a_failure(maps: Path, file: str) -> None:
    (maps / file).parent.mkdir(exist_ok=True)
    np.save(maps / file, np.eye(4))
    place = maps / file if file == "a.npy" else maps
    entries = iter(open_source(place))
    with no_file_left(), pytest.raises(ShortageError, match="no file can be opened: the limit of open files"):
        next(entries)
