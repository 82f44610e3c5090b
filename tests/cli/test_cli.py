"""The command: its output, its effects and its exit codes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.cli import run as run_command
from async_maps.cli.console import messages, print_report
from async_maps.manifest.manifest import Manifest
from async_maps.render.ranges import ValueRange
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.manifest.prune import Selection

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def wrong_uses() -> Iterator[Any]:
    def case(name: str, arguments: str, said: str, **environment: str) -> Any:
        return pytest.param(arguments, said, environment, id=name)

    yield case("no folder", "run nowhere out", "no such file or folder: nowhere")
    yield case("no maps", "run empty out", "contains no activation maps")
    yield case("no map", "run bad.toml out", "is not a file of activation maps")
    yield case("no name", "run nameless.csv out", "the table needs the columns name and path; found id, path")
    yield case("one name twice", "run twice.csv out", "the name 'a' is in line 2 and in line 3; give")
    yield case("no range there", "run maps out --range from:relative.sqlite", "its run used range per-map; run it")
    yield case("bad flag", "run maps out --bogus", "--bogus")
    yield case("bad value", "run maps out --workers many", "workers: input should be a valid integer")
    yield case("bad choice", "run maps out --png gif", "png: input should be 'palette', 'rgba', 'compact' or 'gray'")
    yield case("gray and clear", "run maps out --png gray --invalid transparent", "png gray has no transparent pixels")
    yield case("bad colormap", "run maps out --colormap virdis", "unknown colormap 'virdis'; similar names: viridis")
    yield case("a hyphen first", "run maps out --range -2,2", "write a value that begins with a hyphen as --range=-2,2")
    yield case(
        "glob without quotes", "run maps/a.npy maps/b.npy out x", "DESTINATION; a glob must be in quotes, such as"
    )
    yield case("bad percentile", "run maps out --range percentile:1,120", "percentiles must lie in 0 to 100")
    yield case("no other run", "run maps out --range from:none.sqlite", "no such manifest: none.sqlite")
    yield case("bad key", "run maps out --key {no}.png", "unknown field {no}; known: name, digest, stem")
    yield case("keys alike", "run maps out --key {parent}.png", "gives all maps of a folder the same key")
    yield case("bad alpha", "run maps out --alpha 2", "alpha: expected auto, fade, opaque or a number from 0 to 1")
    yield case("bad key in TOML", "run maps out --config bad.toml", "bad.toml: collormap is not a setting")
    yield case("no TOML", "run maps out --config=none.toml", "cannot read none.toml")
    yield case("bad environment", "run maps out", "ASYNC_MAPS_CONCURRENCY: input", ASYNC_MAPS_CONCURRENCY="lots")
    yield case(
        "bad part", "run maps out --s3.max-attempts 0", "error: --s3.max-attempts: input should be greater than 0"
    )
    yield case(
        "bad part in environment", "run maps out", "error: ASYNC_MAPS_S3_GIVE_UP_S: input", ASYNC_MAPS_S3_GIVE_UP_S="-1"
    )
    yield case("both select flags", "run maps out --overwrite --retry-failed", "exclude each other")
    yield case("no manifest", "export none.sqlite x.csv", "no such manifest: none.sqlite")
    yield case(
        "no column", "export relative.sqlite x.csv --columns name,color", "columns: unknown 'color'; known: name, "
    )
    yield case("no form", "export relative.sqlite x.csv --as excel", "excel")
    yield case("too many hours", "export relative.sqlite x.csv --presign 169", "expected 1 to 168 hours, found 169")
    yield case("foreign manifest", "run maps out --manifest bad.toml", "bad.toml")
    yield case("unknown scheme", "run maps ftp://bucket/x", "unknown address")
    yield case("no folder for the report", "run maps out --report none/r.json", "the folder does not exist")
    yield case("nothing", "run", "SOURCE")
    yield case("no scenes", "demo --scenes 0", "--scenes")
    yield case("a folder served", "demo --local --serve", "--local and --serve exclude each other")


@pytest.mark.parametrize(("arguments", "said", "environment"), list(wrong_uses()))
def test_wrong_use_exits_with_2_and_one_message(
    arguments: str, said: str, environment: dict[str, str], maps: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(maps / "a.npy", random_map(1))
    Path("empty").mkdir()
    Path("bad.toml").write_text('collormap = "jet"\n')
    Path("nameless.csv").write_text("id,path\n1,maps/a.npy\n")
    Path("twice.csv").write_text("name,path\na,maps/a.npy\na,maps/b.npy\n")
    with Manifest("relative.sqlite") as manifest:
        manifest.keep_range(ValueRange("per-map"), "per-map")
    for name, value in ({"ASYNC_MAPS_WORKERS": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    assert invoke(*arguments.split()) == 2
    assert said in only_error(capsys.readouterr())


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_failed_maps_of_a_mistyped_manifest_are_refused(
    options: list[str], maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", random_map(1))
    before = sorted(Path().rglob("*"))
    assert invoke("run", maps, "out", "--retry-failed", "--manifest", "typo.sqlite", *options) == 2
    assert "no such manifest: typo.sqlite: failed maps are known only from" in only_error(capsys.readouterr())
    assert sorted(Path().rglob("*")) == before


@pytest.mark.runs
def test_flags_override_the_environment_and_that_the_file(
    maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", random_map(1))
    Path("s.toml").write_text('png = "rgba"\nworkers = 0\nalpha = 0.5\nrange = [0, 2]\n[files]\nfsync = true\n')
    seen: list[am.Settings] = []
    original = run_command._run

    def noted(selection: Selection, *arguments: Any, **options: Any) -> int:
        seen.append(selection.settings)
        return original(selection, *arguments, **options)

    monkeypatch.setattr(run_command, "_run", noted)
    monkeypatch.setenv("ASYNC_MAPS_ALPHA", "auto")
    monkeypatch.setenv("ASYNC_MAPS_CONCURRENCY", "3")
    monkeypatch.setenv("ASYNC_MAPS_S3_TAGGING_PROJECT", "maps")
    assert (
        invoke(
            "run", maps, "out", "--config", "s.toml", "--png", "palette", "--s3.metadata.team", "xai", "--range=-2,2"
        )
        == 0
    )
    (settings,) = seen
    assert settings.model_dump(exclude_defaults=True) == {
        "workers": 0, "concurrency": 3, "range": "-2.0,2.0",
        "files": {"fsync": True}, "s3": {"metadata": {"team": "xai"}, "tagging": {"project": "maps"}},
    }  # fmt: skip
    capsys.readouterr()


@pytest.mark.runs
def test_a_dry_run_counts_and_writes_nothing(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        np.save(maps / f"{i}.npy", random_map(i))
    assert invoke("run", maps, "out", "--dry-run", "--report", "r.json") == 0
    assert capsys.readouterr().out == (
        "12 maps listed: 12 would be done, 0 skipped as unchanged, 0 would fail by name or header; the values of "
        f"12 maps are not read yet; destination {(maps.parent / 'out').as_uri()}\n"
    )
    assert not Path("out").exists()
    assert not Path("async-maps.sqlite").exists()
    assert json.loads(Path("r.json").read_text())["planned"] == 12


@pytest.mark.runs
def test_retry_failed_and_overwrite_select_maps(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "good.npy", random_map(1))
    np.save(maps / "bad.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0) == 1
    np.save(maps / "bad.npy", random_map(2))
    np.save(maps / "new.npy", random_map(3))
    capsys.readouterr()
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0, "--retry-failed") == 0
    assert "1 uploaded, 2 skipped, 0 failed" in capsys.readouterr().out
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0, "--overwrite") == 0
    assert "3 uploaded, 0 skipped, 0 failed" in capsys.readouterr().out


def test_retry_failed_with_other_settings_says_that_overlays_differ(
    maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "good.npy", random_map(1))
    np.save(maps / "high.npy", np.full((4, 4), 1.5))
    command = ("run", maps, "out", "--progress", "none", "--workers", 0)
    assert invoke(*command) == 1
    assert invoke(*command, "--retry-failed") == 1
    assert "other settings" not in capsys.readouterr().err
    assert invoke(*command, "--retry-failed", "--range", "0,2") == 0
    assert capsys.readouterr().err.count("overlays that were made with other settings, such as the range") == 1
    assert invoke(*command, "--range", "0,2") == 0
    assert "other settings" not in capsys.readouterr().err


@pytest.mark.runs
def test_failures_are_listed_by_reason_with_the_command_that_lists_all(
    maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        np.save(maps / f"out-{i}.npy", np.full((3, 4), 2.0 + i))
    for i in range(2):
        (maps / f"empty-{i}.npy").touch()
    (maps / "text.npy").write_text("not an array")
    manifest = Path("a folder/m.sqlite")
    manifest.parent.mkdir()
    arguments = ("run", maps, "out", "--manifest", manifest, "--workers", 0)
    assert invoke(*arguments, "--progress", "none") == 1
    command = f"async-maps export '{manifest.absolute()}' failures.csv --failed"
    text_reason = "expected an .npy file: the magic string is not correct; expected b'\\x93NUMPY', got b'not an'"
    value = "every value must lie in [0, 1]; found {} at index (0, 0) (NaN or out of range: 12 of 12 values); "
    advice = "for other values, set range to per-map, symmetric or LO,HI"
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("async-maps: ") for line in said] == [
        "4 maps failed at colorize, such as:",
        f"  out-0 ({maps}/out-0.npy): colorize: {value.format('2.0')}{advice}",
        f"  out-1 ({maps}/out-1.npy): colorize: {value.format('3.0')}{advice}",
        "2 maps failed at read:",
        f"  empty-0 ({maps}/empty-0.npy): read: expected an .npy file, found an empty one",
        f"  empty-1 ({maps}/empty-1.npy): read: expected an .npy file, found an empty one",
        f"failed: text ({maps}/text.npy): read: {text_reason}",
        f"to list the 7 failures: {command}",
    ]
    assert invoke(*shlex.split(command)[1:]) == 0
    assert len(Path("failures.csv").read_text().splitlines()) == 1 + 7
    capsys.readouterr()
    assert invoke(*arguments, "--progress", "json") == 1
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len([event for event in events if event["event"] == "failure"]) == 3
    assert [event["command"] for event in events if event["event"] == "notice"] == [command]
    assert [group["count"] for group in events[-1]["report"]["failure_groups"]] == [2, 4, 1]


@pytest.mark.runs
def test_many_reasons_are_listed_in_part(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = am.Report()
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"):
        report.count([am.Failure(str(n), str(n), None, "read", word) for n in range(2)])
    with messages():
        print_report(report, Path("m.sqlite"))
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        "async-maps: 4 more failed for other reasons",
        f"async-maps: to list the 24 failures: async-maps export {Path('m.sqlite').absolute()} failures.csv --failed",
    ]
    assert len(said) == 10 * 3 + 2


@pytest.mark.runs
def test_export_writes_the_locators(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", random_map(i))
    (maps / "bad.npy").touch()
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0) == 1
    assert invoke("export", "async-maps.sqlite", "locators.csv") == 0
    assert invoke("export", "async-maps.sqlite", "all.jsonl", "--all") == 0
    assert "5 rows in locators.csv" in capsys.readouterr().out
    rows = Path("locators.csv").read_text().splitlines()
    assert rows[1].startswith(f"0,{Path('out').absolute().as_uri()}/0.png,done,")
    assert len(rows) == 6
    assert [json.loads(line)["status"] for line in Path("all.jsonl").read_text().splitlines()].count("failed") == 1


@pytest.mark.runs
@pytest.mark.parametrize("kind", ["log", "json", "bar", "auto"])
def test_progress_and_the_slowest_stage_are_printed(kind: str, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(30):
        np.save(maps / f"{i}.npy", random_map(i))
    assert invoke("run", maps, "out", "--progress", kind, "--workers", 0) == 0
    out, err = capsys.readouterr()
    assert re.search(r"slowest stage: (colorize|encode|upload), busy \d+% of the time", out)
    if kind == "json":
        (last,) = (event for event in map(json.loads, err.splitlines()) if event["event"] == "progress")
        assert (last["uploaded"], last["failed"], set(last["queues"])) == (30, 0, {"colorize", "encode", "upload"})
    else:
        assert "30 of 30 maps" in err
        assert "maps/s" in err
    # Without a terminal nothing controls one.
    assert "\x1b" not in out + err
    assert "\r" not in out + err


@pytest.mark.runs
def test_failures_without_a_name_are_retried(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "good.npy", random_map(1))
    (maps / "link.npy").symlink_to(maps / "target")
    (maps / "damaged.npz").write_bytes(b"PK")
    (maps / "empty.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    command = ("run", maps, "out", "--progress", "none", "--workers", 0)
    assert invoke(*command) == 1
    np.save(maps / "target", random_map(2))
    (maps / "target.npy").rename(maps / "target")
    np.savez(maps / "damaged.npz", cam=random_map(3))
    assert invoke(*command, "--retry-failed") == 1
    assert "2 uploaded, 1 skipped, 1 failed" in capsys.readouterr().out
    (maps / "empty.npz").unlink()
    assert invoke(*command, "--retry-failed") == 0
    with Manifest("async-maps.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": 3}


@pytest.mark.runs
def test_a_variable_of_the_environment_cannot_overwrite(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(maps / "a.npy", random_map(1))
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0) == 0
    before = (Path("out") / "a.png").stat().st_mtime_ns
    monkeypatch.setenv("ASYNC_MAPS_OVERWRITE", "true")
    assert invoke("run", maps, "out", "--progress", "none", "--workers", 0) == 2
    assert (Path("out") / "a.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["export"], ["verify"], ["doctor"]])
def test_help_has_the_usage_and_key_facts(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Usage: async-maps" in text
    if command == ["run"]:
        for word in (
            "SOURCE",
            "s3://bucket/prefix",
            "--manifest",
            "--dry-run",
            "--png",
            "--concurrency",
            "ASYNC_MAPS_",
        ):
            assert word in text
    if command == ["export"]:
        # Lines of the frame separate the words.
        assert "treat it as a password" in " ".join(text.replace("│", " ").split())
    if not command:
        assert "come from the AWS environment" in text
    else:
        assert "Exit codes: 0 " in text
