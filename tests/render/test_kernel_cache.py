"""Compiled kernels are cached, shared by processes and CPUs, and loaded only from files that nobody else can write."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from async_maps.concurrency.launch import anonymous_file
from async_maps.render.kernel_cache import Loaded
from async_maps.render.kernel_stores import Folder, Memory, Places, UntrustedError
from tests.support.kernels import COUNT, FEW, PROGRAM, Place, finish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a full cache; tests must not change it."""
    place = Place(tmp_path_factory.mktemp("filled"))
    assert place.load() == (COUNT, 0)
    return place


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place that ``warm`` filled; tests must not change it."""
    place = Place(tmp_path_factory.mktemp("warmed"))
    ended = place.run("warm")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "17 compiled now" in ended.stdout
    return place


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a few kernels; tests must not change it."""
    place = Place(tmp_path_factory.mktemp("few"), few=True)
    assert place.load() == (FEW, 0)
    return place


@pytest.fixture
def place(few: Place, tmp_path: Path) -> Place:
    """The same code, with a copy of its cache."""
    copy = Place(tmp_path, few.code, few=True)
    shutil.copytree(few.cache, copy.cache)
    return copy


def test_a_second_process_loads_the_kernels_from_the_cache(filled: Place) -> None:
    assert len(filled.files()) == COUNT
    assert filled.load() == (0, COUNT)


@pytest.mark.parametrize("cpu", ["", "skylake", "znver3", "generic"])
def test_a_warmed_cache_serves_other_cpus(cpu: str, warmed: Place, tmp_path: Path) -> None:
    copy = Place(tmp_path, warmed.code)
    shutil.copytree(warmed.cache, copy.cache)
    copy.environment |= {"NUMBA_CPU_NAME": cpu} if cpu else {}
    assert copy.load() == (0, COUNT)
    assert len(copy.files()) == 17


@pytest.mark.long
def test_a_cpu_without_the_instructions_of_the_baseline_compiles_its_own(warmed: Place, tmp_path: Path) -> None:
    copy = Place(tmp_path, warmed.code)
    shutil.copytree(warmed.cache, copy.cache)
    program = "from async_maps.render import kernel_cache\nkernel_cache._V3 = ('no such feature',)\n"
    (tmp_path / "other.py").write_text(program + PROGRAM)
    copy.environment["NUMBA_CPU_NAME"] = "x86-64-v2"
    found = finish(copy.start(str(tmp_path / "other.py")))
    assert (found["compiled"], found["found"]) == (COUNT, 0)


def test_warm_compiles_once(warmed: Place) -> None:
    assert "17 kernels for" in (again := warmed.run("warm")).stdout
    assert "0 compiled now" in again.stdout


def test_warm_without_a_folder_fails_with_one_sentence(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.environment["NUMBA_CACHE_DIR"] = str(place.code / "program.py")
    ended = place.run("warm")
    assert ended.returncode == 1
    assert ended.stderr.startswith("async-maps: error: the kernels cannot be kept: ")
    assert ended.stderr.count("\n") == 1


def test_warm_tells_in_one_sentence_why_its_process_failed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (place.code / "async_maps/render/channel_kernels.py").write_text("raise RuntimeError('no kernels today')")
    ended = place.run("warm")
    assert ended.returncode == 1
    assert ended.stderr == (
        "async-maps: error: the kernels cannot be compiled: the process ended with status 1: "
        "RuntimeError: no kernels today\n"
    )


@pytest.mark.parametrize(
    "damage", ["torn", *(pytest.param(damage, marks=pytest.mark.long) for damage in ("empty", "garbage"))]
)
def test_a_damaged_file_is_compiled_and_replaced(place: Place, damage: str) -> None:
    for file in place.files():
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": bytes(len(whole))}[damage])
    assert place.load() == (FEW, 0)
    assert place.load() == (0, FEW)


@pytest.mark.parametrize(
    ("endanger", "reason"),
    [
        (lambda cache: cache.chmod(0o777), "can be written by other users (mode 0777): chmod go-w"),
        (lambda cache: (cache / "async-maps").chmod(0o775), "can be written by other users (mode 0775): chmod go-w"),
        (lambda cache: os.chown(cache / "async-maps", 65534, 65534), "belongs to another user (uid 65534)"),
        (lambda cache: os.chown(cache, 65534, 65534), "belongs to another user (uid 65534)"),
    ],
)
def test_a_folder_that_others_can_write_is_not_used(
    endanger: Callable[[Path], object], reason: str, place: Place
) -> None:
    if os.geteuid() and "chown" in str(endanger.__code__.co_names):
        pytest.skip("only root gives a folder to another user")
    before = {file: file.stat().st_mtime_ns for file in place.files()}
    endanger(place.cache)
    found = finish(place.start(place.program))
    assert (found["compiled"], found["found"]) == (FEW, 0)
    assert reason in found["problem"]
    assert {file: file.stat().st_mtime_ns for file in place.files()} == before


def test_a_file_that_others_can_write_is_not_loaded(place: Place, tmp_path: Path) -> None:
    planted = place.files()[0]
    planted.chmod(0o666)
    found = finish(place.start(place.program))
    assert (found["compiled"], found["found"]) == (1, FEW - 1)
    assert f"{planted} can be written by other users (mode 0666)" in found["problem"]
    link = place.files()[1]
    shutil.move(link, tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    assert place.load() == (1, FEW - 1)
    assert not link.is_symlink()


def test_a_sticky_folder_is_safe(place: Place) -> None:
    place.cache.chmod(0o1777)
    assert place.load() == (0, FEW)


def test_files_are_readable_by_others_with_any_umask(tmp_path: Path) -> None:
    place = Place(tmp_path, few=True)
    before = os.umask(0o002)
    try:
        process = place.start(place.program)
    finally:
        os.umask(before)
    assert finish(process)["problem"] == ""
    assert {file.stat().st_mode & 0o777 for file in place.files()} == {0o644}
    assert (place.cache / "async-maps").stat().st_mode & 0o777 == 0o755


def test_concurrent_processes_compile_each_kernel_once(tmp_path: Path) -> None:
    place = Place(tmp_path, few=True)
    processes = [place.start(place.program, "together") for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sum(finish(process)["compiled"] for process in processes) == FEW


def test_workers_without_a_folder_share_one_compilation_and_one_notice(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.environment["NUMBA_CACHE_DIR"] = str(place.code / "program.py")
    code = (
        "import asyncio, numpy as np\n"
        "from async_maps.workers.arena import Arena\n"
        "from async_maps.workers.pool import launched_workers, start_workers\n"
        "from async_maps.workers.worker import Recipe\n"
        "async def main():\n"
        "    with Arena(2**20) as arena:\n"
        "        async with launched_workers(Recipe(np.zeros((256, 4), np.uint8)), 3, arena) as workers:\n"
        "            await start_workers(workers)\n"
        "            print(*[worker.kernels.compiled for worker in workers])\n"
        "asyncio.run(main())\n"
    )
    process = place.start("-c", code)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, sum(map(int, out.split()))) == (0, COUNT)
    assert err.count("compiled kernels cannot be kept") == 1
    assert "Set NUMBA_CACHE_DIR" in err
    assert "async-maps warm" in err


def test_one_refused_folder_is_not_called_a_loss_of_all_kernels() -> None:
    refused = "/shared can be written by other users (mode 0777)"
    assert Loaded(2, 9, "/mine", refused, kept=True).notice == (
        f"a cache folder of compiled kernels is not used: {refused}; they are kept in /mine"
    )
    assert "cannot be kept" in Loaded(11, 0, "", refused, kept=False).notice
    assert not Loaded(0, 11, "/mine", "", kept=True).notice


# The parts ------------------------------------------------------------------------------------------------------------


def test_a_folder_returns_what_was_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"data")
    assert (folder.read("a"), folder.read("b")) == (b"data", None)
    with folder.locked():
        (tmp_path / "a").chmod(0o646)
    with pytest.raises(UntrustedError, match="mode 0646"):
        folder.read("a")
    assert os.listdir(tmp_path) == ["a"]


def test_memory_overwrites_a_torn_record() -> None:
    descriptor = anonymous_file()
    try:
        memory = Memory(descriptor)
        memory.write("a", b"1" * 1000)
        size = os.fstat(descriptor).st_size
        memory.write("b", b"2" * 1000)
        os.ftruncate(descriptor, size + 500)
        assert (memory.read("a"), memory.read("b")) == (b"1" * 1000, None)
        with memory.locked():
            memory.write("c", b"3")
        assert [memory.read(name) for name in "abc"] == [b"1" * 1000, None, b"3"]
    finally:
        os.close(descriptor)


def test_a_variable_with_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "~/kernels")
    places = Places.find()
    assert places.writable is not None
    assert places.writable.folder == tmp_path / "kernels/async-maps"


@pytest.mark.parametrize("home", [None, "~", "no/absolute/path"])
def test_no_folder_named_tilde_is_made(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "~/kernels")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    places = Places.find()
    assert os.listdir(tmp_path) == []
    assert all(place.folder.is_absolute() for place in places.readable)
