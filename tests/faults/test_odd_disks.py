"""Disks that ignore case, have no hard links or locks, are read-only or full, or vanish: right, or one sentence."""

from __future__ import annotations

import sqlite3
import unicodedata
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.errors import StoreError
from async_maps.stores.files import FileStore
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.odd_disk import odd_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(leaves_nothing.__name__)]

QUICK = ("--progress", "none", "--workers", "0")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with the oddities of the parameter."""
    with odd_disk(tmp_path / "disk", *request.param.split()) as folder:
        yield folder


def save(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.full((9, 9 + index), 0.5))
    return folder


def failures(manifest: Path) -> dict[str, str]:
    with closing(sqlite3.connect(manifest)) as database:
        return dict(database.execute("SELECT name, error FROM maps WHERE status = 'failed'"))


def rows(manifest: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(manifest)) as database:
        return sorted(database.execute("SELECT name, status FROM maps"))


@pytest.mark.parametrize("disk", ["ignores-case ignores-form"], indirect=True)
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("IMG_1", "img_1"), "this disk ignores case"),
        (("Straße/x", "strasse/x"), "this disk ignores case"),
        (("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")), "this disk ignores"),
    ],
)
def test_of_two_maps_that_are_one_file_the_second_fails_and_names_the_first(
    tmp_path: Path, disk: Path, names: tuple[str, str], reason: str
) -> None:
    maps, manifest = tmp_path / "maps", tmp_path / "m.sqlite"
    for name in names:
        (maps / name).parent.mkdir(parents=True, exist_ok=True)
    save(maps, *names, "other")
    command = ("run", maps, disk / "out", "--manifest", manifest, *QUICK)
    for _ in range(2):  # the second run does the same
        assert invoke(*command) == 1
        (failed,) = failures(manifest)
        first = next(name for name in names if name != failed)
        assert f"the file of another map, {first!r}: {reason}" in failures(manifest)[failed]
        assert len(rows(manifest)) == 3
        assert invoke("verify", manifest) == 0
    assert invoke("verify", manifest, "--repair") == 0


@pytest.mark.parametrize("disk", ["ignores-form"], indirect=True)
def test_only_what_the_disk_ignores_makes_two_names_one(tmp_path: Path, disk: Path) -> None:
    maps = save(tmp_path / "maps", "IMG_1", "img_1")
    assert invoke("run", maps, disk / "out", *QUICK) == 0
    assert sorted(path.name for path in (disk / "out").iterdir()) == ["IMG_1.png", "img_1.png"]


@pytest.mark.parametrize("disk", ["ignores-ascii-case"], indirect=True)
def test_a_disk_may_ignore_the_case_of_ascii_letters_alone(tmp_path: Path, disk: Path) -> None:
    maps = save(tmp_path / "maps", "IMG_1", "img_1", "\u00c4", "\u00e4")
    assert invoke("run", maps, disk / "out", "--manifest", "m.sqlite", *QUICK) == 1
    assert list(failures(tmp_path / "m.sqlite")) == ["img_1"]


@pytest.mark.parametrize("disk", ["no-links"], indirect=True)
@pytest.mark.parametrize("if_exists", ["skip", "error"])
def test_create_only_works_without_hard_links(
    tmp_path: Path, disk: Path, if_exists: str, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = save(tmp_path / "maps", "first")
    run = ("run", maps, disk / "out", "--manifest", "m.sqlite", "--if-exists", if_exists, *QUICK)
    # A manifest that lists an overlay does not look whether others exist.
    assert invoke(*run) == 0
    save(maps, "a", "b")
    (disk / "out" / "b.png").write_bytes(b"another")
    assert invoke(*run) == 1
    assert list(failures(tmp_path / "m.sqlite")) == ["b"]
    assert (disk / "out" / "b.png").read_bytes() == b"another"
    assert sorted(path.name for path in (disk / "out").iterdir()) == ["a.png", "b.png", "first.png"]
    assert invoke("doctor", disk / "out") == 0
    assert (
        "--if-exists skip and error work; without hard links, a file is empty for a moment" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("disk", "status", "sentence"),
    [
        ("no-locks", 2, "this disk does not support SQLite's locks: choose a path on a local disk with --manifest"),
        ("no-shared-memory", 2, "this disk does not support SQLite's locks"),
        ("read-only", 2, "no permission to write to the file or its folder, or the disk is read-only"),
        ("full=20000", 3, "the disk is full: free some space"),
    ],
    indirect=["disk"],
)
def test_a_disk_that_cannot_hold_a_manifest_is_named_and_nothing_is_called_damaged(
    tmp_path: Path, disk: Path, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = save(tmp_path / "maps", "a")
    assert invoke("run", maps, "out", "--manifest", disk / "m.sqlite", *QUICK) == status
    error = capsys.readouterr().err
    assert sentence in error
    assert "damaged" not in error
    assert "Traceback" not in error


@pytest.mark.parametrize("disk", ["no-locks"], indirect=True)
def test_a_manifest_that_lies_on_a_disk_without_locks_is_not_blamed(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("run", save(tmp_path / "maps", "a"), "out", "--manifest", "m.sqlite", *QUICK) == 0
    (disk / "m.sqlite").write_bytes((tmp_path / "m.sqlite").read_bytes())
    capsys.readouterr()
    assert invoke("verify", disk / "m.sqlite") == 2
    error = capsys.readouterr().err
    assert "does not support SQLite's locks" in error
    assert "another program" not in error


@pytest.mark.parametrize(
    ("disk", "status", "sentence"),
    [
        ("read-only", 2, "Read-only file system"),
        ("full=5000", 3, "No space left on device"),
        ("vanishes=3", 3, "Input/output error"),
    ],
    indirect=["disk"],
)
def test_a_destination_that_fails_blames_no_map(
    tmp_path: Path, disk: Path, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    maps, manifest = save(tmp_path / "maps", *(f"{index:03}" for index in range(40))), tmp_path / "m.sqlite"
    command = ("--manifest", manifest, *QUICK)
    assert invoke("run", maps, disk / "out", *command) == status
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not manifest.exists() or failures(manifest) == {}


async def test_nothing_is_written_below_the_mount_point_of_a_disk_that_was_unmounted(tmp_path: Path) -> None:
    with odd_disk(tmp_path / "disk") as disk:
        store = FileStore(disk)
        await store.put("a.png", b"overlay")
    with pytest.raises(StoreError, match=r"cannot write .*/disk: the disk that was mounted there is gone") as raised:
        await store.put("b.png", b"overlay")
    assert raised.value.may_pass
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("disk", ["forbids=:?"], indirect=True)
def test_a_name_that_the_disk_does_not_allow_fails_alone(tmp_path: Path, disk: Path) -> None:
    maps, manifest = save(tmp_path / "maps", "a", "b:c", "d"), tmp_path / "m.sqlite"
    assert invoke("run", maps, disk / "out", "--manifest", manifest, *QUICK) == 1
    assert rows(manifest) == [("a", "done"), ("b:c", "failed"), ("d", "done")]
    assert "Invalid argument" in failures(manifest)["b:c"]
