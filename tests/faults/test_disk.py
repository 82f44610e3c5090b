"""Full, read-only and damaged disks end the command with one message. The next run on a good disk uploads every map."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.errors import ManifestError
from async_maps.export.tables import export_manifest
from async_maps.manifest.claims import Claims
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import VERSION
from async_maps.sources.coverage import Coverage, every
from tests.support.commands import COMMAND, invoke
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import DESTINATION, SETTINGS, failure_for, make_map, read_rows, receipt_for, write_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

COUNT = 1200
"""The number of maps; their rows take about 400 KiB."""
QUICK = ("--progress", "none", "--workers", "0")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stack(maps: Path) -> Path:
    """A folder with many maps in one file."""
    np.save(maps / "stack.npy", np.random.default_rng(1).random((COUNT, 6, 6)))
    return maps


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that sets the size of a separate disk and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk of a given size takes root")

    def sized(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
        return folder

    try:
        yield sized
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk. Returns the file to delete to make room again."""
    filling = folder / "filling"
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filling


def error_message(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the command's one error message, without the hint to the doctor."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line, *hint = err.splitlines()
    assert all(text.startswith("async-maps: to find the problem, run: async-maps doctor ") for text in hint)
    assert line.startswith("async-maps: error: ")
    return line.removeprefix("async-maps: error: ")


def whole(manifest: Path, out: Path, names: set[str]) -> None:
    """Check that each of these maps has its row and its object, and nothing else has."""
    assert {str(row["name"]) for row in read_rows(manifest) if row["status"] == "done"} == names
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        f"{name}.png" for name in names
    }
    assert sorted(path.name for path in manifest.parent.glob(f"{manifest.name}*")) == [manifest.name]


IN_STACK = {f"stack/{index:06}" for index in range(COUNT)}


# Full disks ----------------------------------------------------------------------------------------------------------


def test_a_full_manifest_disk_ends_the_run_and_the_next_completes(
    stack: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = disk("200k") / "m.sqlite"
    command = ("run", stack, "out", "--manifest", manifest, *QUICK)
    assert invoke(*command) == 3
    assert error_message(capsys) == (
        f"the manifest {manifest} cannot be written: the disk is full: free some space, and run the same command again"
    )
    # Each committed row has its object.
    done = {str(row["name"]) for row in read_rows(manifest)}
    stored = {path.stem for path in Path("out/stack").iterdir()}
    assert done <= {f"stack/{stem}" for stem in stored}
    assert len(done) < COUNT
    disk("8m")
    assert invoke(*command) == 0
    whole(manifest, Path("out"), IN_STACK)


def test_a_full_manifest_disk_is_reported_before_any_upload(
    stack: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = disk("64k") / "m.sqlite"
    filling = fill(manifest.parent)
    command = ("run", stack, "out", "--manifest", manifest, *QUICK)
    assert invoke(*command) == 3
    assert re.fullmatch(
        rf"the manifest {manifest} cannot be \w+: the disk is full: free some space, .*", error_message(capsys)
    )
    assert not Path("out").exists()
    filling.unlink()
    disk("8m")
    assert invoke(*command) == 0
    whole(manifest, Path("out"), IN_STACK)


@pytest.mark.slow
def test_a_run_that_hits_a_file_size_limit_can_be_completed(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path("m.sqlite").absolute()
    command = ("run", stack, "out", "--manifest", manifest, *QUICK, "--queue-bytes", 2**16)
    # A limit of the file size needs no root.
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from async_maps.cli.app import main; main(sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", program, *map(str, command)]
    limited = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert limited.returncode == 3, limited.stderr
    (line,) = limited.stderr.splitlines()
    assert line.startswith(
        f"async-maps: error: the manifest {manifest} cannot be written: the disk failed (disk I/O error"
    )
    assert line.endswith("run the same command again when it works")
    assert invoke(*command) == 0
    whole(manifest, Path("out"), IN_STACK)


def test_a_transaction_on_a_full_disk_can_be_repeated(disk: Callable[[str], Path]) -> None:
    path = disk("200k") / "m.sqlite"
    outcomes = [receipt_for(make_map(f"{n:04}")) for n in range(200)]
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        filling = fill(path.parent)
        for _ in range(2):
            with pytest.raises(ManifestError, match="cannot be written: the disk is full"):
                manifest.write(outcomes, SETTINGS)
            assert manifest.counts() == {}
        filling.unlink()
        manifest.write(outcomes, SETTINGS)
    assert len(read_rows(path)) == 200


def test_a_full_destination_ends_the_run_without_partial_files(
    stack: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk("1m") / "out"
    manifest = Path("m.sqlite")
    command = ("run", stack, out, "--manifest", manifest, *QUICK)
    assert invoke(*command) == 3
    assert error_message(capsys) == f"cannot write {out}: No space left on device"
    assert not list(out.rglob(".*"))
    assert all(path.read_bytes().endswith(b"IEND\xaeB`\x82") for path in out.rglob("*.png"))
    assert {f"stack/{path.stem}" for path in out.rglob("*.png")} >= {row["name"] for row in read_rows(manifest)}
    disk("16m")
    assert invoke(*command) == 0
    whole(manifest, out, IN_STACK)


def test_a_report_on_a_full_disk_keeps_the_older_one(
    maps: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", np.eye(4))
    report = disk("64k") / "report.json"
    command = ("run", maps, "out", *QUICK, "--report", report)
    assert invoke(*command) == 0
    before = report.read_text()
    assert json.loads(before)["uploaded"] == 1
    filling = fill(report.parent)
    assert invoke(*command) == 1
    assert error_message(capsys) == f"cannot write the report to {report}: No space left on device"
    assert report.read_text() == before
    assert {path.name for path in report.parent.iterdir()} == {report.name, filling.name}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_an_export_to_a_full_disk_leaves_no_file(tmp_path: Path, disk: Callable[[str], Path], suffix: str) -> None:
    write_run(tmp_path / "m.sqlite", [receipt_for(make_map(f"{n:04}")) for n in range(2000)])
    file = disk("20k") / f"locators{suffix}"
    with pytest.raises(ManifestError, match=rf"^cannot write {file}: .*No space left on device"):
        export_manifest(tmp_path / "m.sqlite", file)
    assert list(file.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("full", "progress", "code"), [("stdout", "none", 1), pytest.param("stderr", "bar", 0, marks=pytest.mark.slow)]
)
def test_output_to_a_full_disk_loses_no_map(maps: Path, full: str, progress: str, code: int) -> None:
    np.save(maps / "a.npy", np.eye(4))
    with open("/dev/full", "w") as nowhere:
        channels = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: nowhere}
        command = [*COMMAND, "run", str(maps), "out", "--workers", "0", "--progress", progress]
        done = subprocess.run(command, text=True, check=False, **channels)  # type: ignore[call-overload]
    assert done.returncode == code
    assert "1 uploaded" in done.stdout if full == "stderr" else True
    if full == "stdout":
        assert done.stderr == "async-maps: error: cannot write to standard output: No space left on device\n"
    whole(Path("async-maps.sqlite"), Path("out"), {"a"})


def test_a_full_disk_of_the_manifests_of_parts_fails_no_map(
    stack: Path, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("plan", stack, "out", "--to", "plan", "--workers", "0") == 0
    capsys.readouterr()
    folder = disk("200k")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert invoke("run", "--plan", "plan", *QUICK) == 3
    assert re.fullmatch(
        rf"the manifest {folder}/async-maps-parts-.*/0000001.sqlite cannot be written: the disk is full: free some .*",
        error_message(capsys),
    )
    assert not list(Path("plan").rglob("done/*"))
    assert not list(folder.iterdir())
    filling = fill(folder)
    assert invoke("run", "--plan", "plan", *QUICK) == 3
    filling.unlink()
    disk("8m")
    assert invoke("run", "--plan", "plan", *QUICK) == 0


@pytest.mark.parametrize("record", ["names", "claims"])
def test_a_full_temporary_folder_is_named(tmp_path: Path, record: str) -> None:
    maps = [make_map(f"{n:0300}") for n in range(200)]
    if record == "names":
        with Manifest(tmp_path / "m.sqlite") as manifest:
            manifest.begin(DESTINATION)
            manifest._database.execute("PRAGMA temp.max_page_count = 2")
            with pytest.raises(ManifestError, match="the disk of temporary files is full: set TMPDIR to another"):
                manifest.plan(maps, SETTINGS, "changed")
        return
    with Claims(lambda map_: map_.name) as claims:
        claims._database.execute("PRAGMA max_page_count = 2")
        with pytest.raises(
            ManifestError, match=r"the temporary file of .* \(in TMPDIR\) cannot be written: the disk is full"
        ):
            claims.check(maps)
        with pytest.raises(
            ManifestError, match=r"the temporary file of .* \(in TMPDIR\) cannot be written: the disk is full"
        ):
            claims.load((map_.name, map_.name) for map_ in maps)


# Files that cannot be written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_unwritable_manifest_is_reported_before_any_upload(
    unprivileged: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(unprivileged)
    np.save("a.npy", np.eye(4))
    folder = unprivileged / "folder"
    folder.mkdir()
    manifest = folder / "m.sqlite"
    command = ("run", "a.npy", "out", "--manifest", manifest, *QUICK)
    write_run(manifest, [], (unprivileged / "out").as_uri())
    locked = manifest if what == "file" else folder
    mode = locked.stat().st_mode
    locked.chmod(0o555)
    assert invoke(*command) == 2
    assert error_message(capsys) == (
        f"the manifest {manifest} cannot be opened: no permission to write to the file or its folder, or "
        "the disk is read-only: choose another manifest file"
    )
    assert not Path("out").exists()
    locked.chmod(mode)
    assert invoke(*command) == 0
    whole(manifest, Path("out"), {"a"})


def test_an_unwritable_report_is_reported_before_any_upload(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(unprivileged)
    np.save("a.npy", np.eye(4))
    Path("folder").mkdir(mode=0o555)
    Path("closed").mkdir(mode=0)
    for report, reason in (
        ("folder", "it is a folder"),
        ("folder/report.json", "no permission"),
        ("closed/report.json", "no permission"),
        ("closed/closed/report.json", "the folder does not exist"),
    ):
        assert invoke("run", "a.npy", "out", *QUICK, "--report", report) == 2
        assert error_message(capsys) == f"cannot write the report to {report}: {reason}"
    assert not Path("out").exists()


def test_a_report_may_be_written_to_a_pipe(maps: Path) -> None:
    np.save(maps / "a.npy", np.eye(4))
    out, into = os.pipe()
    with open(out) as reader:
        with open(into, "w"):
            assert invoke("run", maps, "out", *QUICK, "--report", f"/dev/fd/{into}") == 0
        assert json.load(reader)["uploaded"] == 1


@pytest.mark.slow
def test_a_manifest_locked_by_another_program_is_reported(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", np.eye(4))
    command = ("run", maps, "out", *QUICK)
    assert invoke(*command) == 0
    np.save(maps / "b.npy", np.eye(4))
    with closing(sqlite3.connect("async-maps.sqlite", isolation_level=None)) as other:
        for begin in ("BEGIN IMMEDIATE", "BEGIN; SELECT * FROM maps"):
            other.executescript(begin)
            assert invoke(*command) == 3
            assert error_message(capsys) == (
                "the manifest async-maps.sqlite cannot be opened: another program has locked it: wait until that has "
                "ended, and run the same command again"
            )
            other.execute("ROLLBACK")
    assert invoke(*command) == 0
    whole(Path("async-maps.sqlite"), Path("out"), {"a", "b"})


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_manifest_deleted_during_a_run_is_reported(tmp_path: Path, fate: str) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        path.unlink()
        if fate == "replaced":
            path.touch()
        with pytest.raises(ManifestError, match=rf"^the manifest {path} was moved, deleted or replaced while"):
            manifest.write([receipt_for(make_map("b"))], SETTINGS)


# Damaged files -------------------------------------------------------------------------------------------------------


def _header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)


def _page_size(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x01\x00\x03")


def _middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 2 * 4096))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE maps (name)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def _without_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE maps")


def _text(path: Path) -> None:
    path.write_text("[settings]\npng = 'rgba'\n" * 100)


_MOVE = "move it away, and run again: all maps are uploaded again, to the same locators"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_header, "it is not an SQLite file, or is damaged: choose another manifest file, or move it away"),
        (_page_size, "it is not an SQLite file, or is damaged: choose another manifest file, or move it away"),
        (_middle, rf"it is damaged \(.*\): {_MOVE}"),
        (_cut, rf"it is damaged \(database disk image is malformed\): {_MOVE}"),
        (
            _without_tables,
            r"its tables are not those of a manifest \(no such table: maps\): choose another .* move it away",
        ),
        (_text, "it is not an SQLite file, or is damaged: choose another manifest file, or move it away"),
        (_foreign, "m.sqlite is an SQLite file, but not a manifest: choose another manifest file"),
        (
            _newer,
            (
                f"m.sqlite has manifest schema 99, but this version of async-maps reads schema {VERSION}: "
                "choose another manifest file"
            ),
        ),
    ],
    ids=lambda case: case.__name__.strip("_") if callable(case) else "",
)
def test_a_damaged_manifest_is_reported_before_any_upload(
    damage: Callable[[Path], None], reason: str, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", np.eye(4))
    manifest = Path("m.sqlite")
    write_run(manifest, [receipt_for(make_map(name)) for name in sorted(IN_STACK)], Path("out").absolute().as_uri())
    damage(manifest)
    before = manifest.read_bytes()
    command = ("run", maps, "out", "--manifest", manifest, *QUICK)
    assert invoke(*command) == 2
    assert re.fullmatch(rf"(the manifest m.sqlite cannot be (opened|read|written): )?{reason}", error_message(capsys))
    for reading in ((*command, "--dry-run"), ("export", manifest, "locators.csv")):
        assert invoke(*reading) == 2
        error_message(capsys)
    assert {path.name for path in Path().iterdir()} == {"maps", manifest.name}
    if damage in {_header, _text, _foreign, _newer}:
        assert manifest.read_bytes() == before
    manifest.rename("away")
    assert invoke(*command) == 0
    whole(manifest, Path("out"), {"a"})


@pytest.mark.parametrize("torn", ["cut", "tail", "head"])
def test_rows_lost_in_a_torn_log_are_uploaded_again(torn: str, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f"stack/{index:06}" for index in range(400)}
    np.save(maps / "stack.npy", np.random.default_rng(1).random((400, 6, 6)))
    command = ("run", maps, "out", "--manifest", "m.sqlite", *QUICK)
    assert invoke(*command) == 0
    # As after a kill: half of the rows are in the file, the other half in the log.
    program = (
        "import os\n"
        "from async_maps.manifest.manifest import Manifest\n"
        "database = Manifest('m.sqlite')._database\n"
        "database.execute('CREATE TEMP TABLE kept AS SELECT * FROM maps')\n"
        "database.execute('DELETE FROM maps')\n"
        "database.execute(\"INSERT INTO maps SELECT * FROM kept WHERE name < 'stack/000200'\")\n"
        "database.execute('PRAGMA wal_checkpoint(TRUNCATE)')\n"
        "database.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "for part in range(20, 40):\n"
        "    database.execute('INSERT INTO maps SELECT * FROM kept WHERE name LIKE ?', [f'stack/000{part}%'])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    log = Path("m.sqlite-wal")
    size = log.stat().st_size
    if torn == "cut":
        os.truncate(log, size // 2 + 100)
    else:
        with log.open("r+b") as file:
            file.seek(0 if torn == "head" else size // 2)
            file.write(np.random.default_rng(1).bytes(size // 4))
    capsys.readouterr()
    assert invoke(*command) == 0
    match = re.match(r"(\d+) uploaded, (\d+) skipped, 0 failed", capsys.readouterr().out)
    assert match is not None
    assert int(match[2]) == 200 if torn == "head" else 200 < int(match[2]) < 400
    whole(Path("m.sqlite"), Path("out"), names)


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_damage_is_a_manifest_error_or_harmless(tmp_path: Path, rounds: int) -> None:
    path, table = tmp_path / "m.sqlite", tmp_path / "table"
    maps = [make_map(f"{n:04}") for n in range(300)]
    write_run(path, [*(receipt_for(map_) for map_ in maps[:200]), *(failure_for(map_) for map_ in maps[200:220])])
    sound = path.read_bytes()
    rng = random.Random(rounds)  # noqa: S311  # not cryptography
    whole = Coverage()
    whole.begin("/maps", every)

    def run() -> None:
        with Manifest(path) as manifest:
            manifest.begin(DESTINATION)
            manifest.follow(whole)
            manifest.let_locators_move()
            plan = manifest.plan(maps, SETTINGS, "changed")
            manifest.write([receipt_for(map_) for map_ in plan.todo], SETTINGS)
            list(manifest.claims())
            manifest.note_listed([], [])
            manifest.find_stale()
            for rows in [*(rows for rows, _ in manifest.stale()), *manifest.stale_failed(), *manifest.superseded()]:
                manifest.forget(rows)

    def export() -> None:
        for suffix in (".csv", ".parquet"):
            export_manifest(path, table.with_suffix(suffix), rows="all")

    messages: list[str] = []
    for _ in range(rounds):
        damaged = bytearray(sound)
        start = rng.randrange(rng.choice([200, len(sound)]))
        damaged[start : start + rng.choice([1, 8, 4096])] = rng.randbytes(rng.choice([1, 8, 4096]))
        path.write_bytes(damaged[: rng.randrange(len(sound)) if rng.random() < 0.2 else len(sound)])
        for work in (export, run):
            try:
                work()
            except ManifestError as error:
                messages.append(str(error))
        for beside in tmp_path.glob("m.sqlite-*"):
            assert beside.suffix != ".sqlite-lock"
            beside.unlink()
    assert len(messages) > rounds // 2
    assert all(sentence.isprintable() for sentence in messages)
