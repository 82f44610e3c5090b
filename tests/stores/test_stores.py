"""Destinations, and behavior of the file store only."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from async_maps.errors import ExistsError, ObjectError, SettingsError, StoreError
from async_maps.filesystems.atomic import replacing
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.temporary import PREFIX, sweep, temporary_name
from async_maps.settings import Settings
from async_maps.stores import open_store
from async_maps.stores.files import FileStore

pytestmark = pytest.mark.fast


async def test_a_relative_destination_is_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store("out", Settings()) as store:
        assert store.destination == (tmp_path / "out").as_uri()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (
            "",
            "the address is empty; expected s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///",
        ),
        ("ftp://host/prefix", "unknown address 'ftp://host/prefix'; expected s3://"),
        ("https://bucket.s3.amazonaws.com/x", "unknown address 'https://"),
        ("s3:/bucket/prefix", "'s3:/bucket/prefix' has one slash instead of two"),
        (Path("s3://bucket/prefix"), "'s3:/bucket/prefix' has one slash instead of two (pathlib.Path removes one); "),
        ("file:/folder", "'file:/folder' has one slash instead of two"),
        ("file://host/folder", "'file://host/folder' has a host, or no folder; expected file:///folder"),
        ("file://", "'file://' has a host, or no folder"),
        ("s3://", "'' is not a valid bucket name; expected s3://bucket/prefix"),
        ("s3:///prefix", "'' is not a valid bucket name"),
        ("s3://ab/prefix", "'ab' is not a valid bucket name"),
        ("s3://my bucket/prefix", "'my bucket' is not a valid bucket name"),
        ("s3://my_bucket?/prefix", "'my_bucket?' is not a valid bucket name"),
    ],
)
async def test_an_invalid_destination_is_refused(place: str | Path, sentence: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        async with open_store(place, Settings()):
            pass
    assert str(refusal.value).startswith(sentence)


# Files -------------------------------------------------------------------------------------------------------------


async def test_the_first_put_creates_the_folder(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "a" / "b")
    await store.check()
    assert list(tmp_path.iterdir()) == []
    await store.put("c/d.png", b"pixels")
    assert (tmp_path / "a" / "b" / "c" / "d.png").read_bytes() == b"pixels"


@pytest.mark.parametrize("fsync", [False, True])
async def test_a_put_leaves_only_its_file(tmp_path: Path, fsync: bool) -> None:
    async with open_store(tmp_path, Settings(files={"fsync": fsync})) as store:
        await store.put("a.png", b"first")
        await store.put("a.png", b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"second")]


@pytest.mark.parametrize("fsync", [False, True])
async def test_fsync_is_called_only_if_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool) -> None:
    forced: list[str] = []
    force = os.fsync

    def watched(descriptor: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        force(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    await FileStore(tmp_path / "out", fsync=fsync).put("a.png", b"pixels")
    assert [name.partition("-")[0] for name in forced] == ([".async", "out"] if fsync else [])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
async def test_the_umask_sets_the_modes_of_files_and_folders(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        await FileStore(tmp_path / "out").put("a.png", b"pixels")
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "a.png").stat().st_mode & 0o777 == mode
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


async def test_a_reader_never_sees_a_partial_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    versions = [bytes([n]) * 500_000 for n in range(2)]
    await store.put("a.png", versions[0])
    stop = asyncio.Event()
    seen: set[bytes] = set()

    async def read() -> None:
        while not stop.is_set():
            seen.add(await asyncio.to_thread((tmp_path / "a.png").read_bytes))

    reading = asyncio.create_task(read())
    for n in range(50):
        await store.put("a.png", versions[n % 2])
    stop.set()
    await reading
    assert seen <= set(versions)


async def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    await store.put("a.png", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ObjectError, match=rf"^cannot write {tmp_path}/a\.png: File too large$"):
            await store.put("a.png", bytes(200_000))
        with pytest.raises(ObjectError, match="File too large"):
            await store.put("new/b.png", bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


async def test_a_cancelled_put_leaves_a_whole_file_or_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    data = bytes(20_000_000)
    putting = asyncio.create_task(store.put("a.png", data))
    await asyncio.sleep(0.002)
    putting.cancel()
    await asyncio.wait({putting})
    # The thread finishes the write that it began.
    async with asyncio.timeout(60):
        while any(path.name.startswith(".") for path in tmp_path.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [path.stat().st_size for path in tmp_path.iterdir()] in ([], [len(data)])


async def test_an_obstacle_in_the_path_is_an_object_error(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for key, reason in (
        ("folder.png", "Is a directory"),
        ("file/x.png", "File exists|Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(ObjectError, match=rf"^cannot write .*/{key}: ({reason})$"):
            await store.put(key, b"pixels")
    await store.put("other.png", b"pixels")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "other.png"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_a_full_or_read_only_disk_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # A really full disk would need privileges.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match=os.strerror(code)) as refusal:
        await FileStore(tmp_path).put("a.png", b"pixels")
    assert not isinstance(refusal.value, ObjectError)
    assert list(tmp_path.iterdir()) == []


async def test_check_reports_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        for folder in (tmp_path / name, tmp_path / name / "deeper"):
            with pytest.raises(StoreError, match=rf"^cannot write to {folder}: {tmp_path / name} is not a folder$"):
                await FileStore(folder).check()


async def test_check_reports_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID))
    with pytest.raises(StoreError, match=rf"^cannot write {tmp_path}/out: Read-only file system$"):
        await FileStore(tmp_path / "out").check()


async def test_check_reports_a_folder_without_permission(unprivileged: Path) -> None:
    locked = unprivileged / "locked"
    (locked / "inside").mkdir(parents=True)
    for mode, folders in (
        (0o555, (locked, locked / "out")),
        (0o000, (locked, locked / "inside", locked / "out" / "a")),
    ):
        locked.chmod(mode)
        for folder in folders:
            with pytest.raises(StoreError, match=rf"^cannot write to {folder}: no permission for {locked}$"):
                await FileStore(folder).check()
    with pytest.raises(ObjectError, match=rf"^cannot write {locked}/a\.png: Permission denied$"):
        await FileStore(locked).put("a.png", b"pixels")
    locked.chmod(0o755)


async def test_messages_about_an_undecodable_folder_can_be_encoded(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    (folder / "a.png").mkdir(parents=True)
    store = FileStore(folder)
    store.destination.encode()
    with pytest.raises(ObjectError) as refusal:
        await store.put("a.png", b"pixels")
    str(refusal.value).encode()


# Processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.runs
def test_only_the_store_that_is_used_is_imported(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from async_maps.settings import Settings\n"
        "from async_maps.stores import open_store\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1], Settings()) as store: await store.put('a.png', b'')\n"
        "asyncio.run(main())\n"
        "print([name for name in ('aioboto3', 'botocore') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


PARTIAL = (
    "import os, sys, time; from async_maps.stores.files import FileStore; "
    "os.replace = lambda *_, **__: {end}; FileStore(sys.argv[1])._write('c/a.png', b'half')"
)


@pytest.mark.runs
@pytest.mark.parametrize("suspended", [False, True])
def test_what_a_dead_process_has_left_is_deleted_by_the_next_put(tmp_path: Path, suspended: bool) -> None:
    program = PARTIAL.format(end="(print(flush=True), time.sleep(600))")
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if suspended:
            os.kill(process.pid, signal.SIGSTOP)
        folder = tmp_path / "c"
        (left,) = folder.iterdir()
        os.utime(left, (1, 1))
        # The process still runs: its file stays, however old.
        asyncio.run(FileStore(tmp_path).put("c/a.png", b"pixels"))
        assert set(folder.iterdir()) == {left, folder / "a.png"}
        process.kill()
    asyncio.run(FileStore(tmp_path).put("c/b.png", b"pixels"))
    assert {path.name for path in folder.iterdir()} == {"a.png", "b.png"}


def test_a_reused_process_id_does_not_keep_a_left_over_file(tmp_path: Path) -> None:
    machine, process, started, number = temporary_name().removeprefix(PREFIX).split("-")
    left = tmp_path / f"{PREFIX}{machine}-{process}-{int(started) - 1}-{number}"
    ours = tmp_path / temporary_name()
    for path in (left, ours):
        path.touch()
    sweep(str(tmp_path))
    assert list(tmp_path.iterdir()) == [ours]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_file_of_a_process_that_is_hidden_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    left = tmp_path / temporary_name()
    left.touch()

    def hidden(_: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", hidden)
    sweep(str(tmp_path))
    assert left.exists()


def test_a_file_of_another_machine_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    young, old = (tmp_path / f"{PREFIX}00000000-1-{n}-0" for n in range(2))
    foreign = [tmp_path / f"{PREFIX}demo", tmp_path / f"{PREFIX}00000000-1-1-x"]
    for path in (young, old, *foreign):
        path.touch()
    for path in (old, *foreign):
        os.utime(path, (1, 1))
    sweep(str(tmp_path))
    assert set(tmp_path.iterdir()) == {young, *foreign}


@pytest.mark.parametrize("digits", [24, 32])
def test_a_file_of_an_earlier_version_is_deleted_after_a_day(tmp_path: Path, digits: int) -> None:
    young, old = (tmp_path / f"{PREFIX}{digit * digits}" for digit in "ab")
    for path, hours in ((young, 23), (old, 25)):
        path.touch()
        os.utime(path, (time.time() - hours * 3600,) * 2)
    sweep(str(tmp_path))
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.runs
def test_an_export_deletes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from async_maps.filesystems.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as path: path.write_text('half'); os._exit(9)"
    )
    target = tmp_path / "a.csv"
    assert subprocess.run([sys.executable, "-c", program, target], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(target) as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


# Links --------------------------------------------------------------------------------------------------------------


async def test_a_link_below_the_destination_is_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "deep").mkdir(parents=True)
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "a.png").symlink_to(outside / "mine.txt")
    (outside / "mine.txt").write_text("mine")
    store = FileStore(root)
    for key in ("link/x.png", "link/deep/x.png", "link/new/x.png"):
        with pytest.raises(ObjectError, match="'link' is a symbolic link, and links out of a destination are not"):
            await store.put(key, b"pixels")
    await store.put("a.png", b"pixels")
    assert [path.name for path in sorted(outside.rglob("*"))] == ["deep", "mine.txt"]
    assert (outside / "mine.txt").read_text() == "mine"
    # A link that stays inside is followed.
    (root / "a").mkdir()
    (root / "inner").symlink_to("a")
    await store.put("inner/b/x.png", b"pixels")
    assert (root / "a/b/x.png").read_bytes() == b"pixels"
    # The destination itself may be a link: its owner has named it.
    (tmp_path / "named").symlink_to(root)
    await FileStore(tmp_path / "named").put("b.png", b"pixels")
    assert (root / "b.png").read_bytes() == b"pixels"


async def test_an_existing_link_is_another_file_in_a_create_only_run(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"pixels")
    (tmp_path / "a.png").symlink_to("mine.txt")
    with pytest.raises(ExistsError) as refusal:
        await FileStore(tmp_path, replace=False).put("a.png", b"pixels")
    assert not refusal.value.same


def test_nothing_outside_a_destination_is_found_or_deleted(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"pixels")
    (root / "link").symlink_to(outside)
    within = f"{root.as_uri()}/"
    locators = [f"{within}a.png", f"{within}link/a.png", f"{within}../outside/a.png", f"{outside.as_uri()}/a.png"]
    with Objects() as objects:
        assert [found.locator for found in objects.below(within)] == locators[:1]
        assert [objects.find(locator, within) is not None for locator in locators] == [True, False, False, False]
        kept = objects.delete(locators, within)
    assert list(kept) == locators[1:]
    assert (outside / "a.png").exists()
    assert not (root / "a.png").exists()
