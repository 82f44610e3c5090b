"""Destinations, and behavior of the file store only."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from async_maps.errors import ObjectError, SettingsError, StoreError
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
        ("", "the destination is empty; expected s3://bucket/prefix, file:///folder or a path"),
        ("gs://bucket/prefix", "unknown address 'gs://bucket/prefix'; expected s3://"),
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
    def refuse(*_: object) -> None:
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


def test_an_old_partial_file_is_deleted_by_the_next_put(tmp_path: Path) -> None:
    program = (
        "import os, sys; from async_maps.stores.files import FileStore; os.replace = lambda *_: os._exit(9); "
        "FileStore(sys.argv[1])._write('a.png', b'half')"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    store = FileStore(tmp_path)
    asyncio.run(store.put("a.png", b"pixels"))
    # A recent file may belong to a running process.
    assert set(tmp_path.iterdir()) == {left, tmp_path / "a.png"}
    os.utime(left, (1, 1))
    asyncio.run(store.put("a.png", b"pixels"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}
