"""Mistakes on the command line and in the environment: the answer names the mistake and what to write instead."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.cli.commands import app
from async_maps.settings import setting_names
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from typing import Any

# Not among the fast tests: for each mistake the parser assembles the options of several commands.
pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "SOURCE and DESTINATION are missing: async-maps run SOURCE DESTINATION"),
        ("run maps", "DESTINATION is missing: async-maps run SOURCE DESTINATION"),
        ("run maps out --part 1/2", "--part needs --plan: async-maps run --plan PLAN --part I/N"),
        ("run maps out --plan plan", "unexpected 'maps': --plan has a source and a destination; leave them out"),
        ("run --plan plan --limit 3 --overwrite", "--limit and --overwrite cannot be used with --plan"),
        ("run --plan plan --manifest m.sqlite", "--manifest cannot be used with --plan: a share runs whole parts"),
        ("run --plan plan --part 3/2", "part '3/2': expected 1/2 to 2/2"),
        ("run maps out --engine ray", "--engine needs --plan: async-maps run --plan PLAN --engine ray"),
        ("run maps out --address auto", "--address needs --plan: async-maps run --plan PLAN --engine ray --address"),
        ("run --plan plan --address auto", "address 'auto': only the engine ray has one"),
        ("plan maps out", "--to is missing: async-maps plan --help explains it"),
        ("export --all", "MANIFEST and FILE are missing: async-maps export MANIFEST FILE"),
        ("verify", "MANIFEST is missing: async-maps verify MANIFEST"),
        ("doctor --quick", "DESTINATION is missing: async-maps doctor DESTINATION"),
        ("run maps out --png", "--png needs a value"),
        (
            "run maps out --s3.metadata model=a",
            "--s3.metadata: expected a value for each name, as --s3.metadata.NAME, found 'model=a'",
        ),
        ("run maps out --range -2,2", "write a value that begins with a hyphen as --range=-2,2"),
        ("run maps out more", "unexpected 'more': async-maps run SOURCE DESTINATION"),
        ("demo more", "unexpected 'more': async-maps demo"),
        ("run maps out --png rgba --png gray", "--png is given more than once"),
        ("run maps out --s3.endpoint-url http://localhost", "set AWS_ENDPOINT_URL"),
        ("run maps out --endpoint-url=http://localhost", "set AWS_ENDPOINT_URL"),
        ("doctor out --s3.region eu-west-1", "set AWS_DEFAULT_REGION"),
        ("run maps out --profile prod", "set AWS_PROFILE"),
        ("run maps out --s3.secret-access-key x", "set AWS_SECRET_ACCESS_KEY"),
        ("run maps out --presign 3", "--presign is an option of async-maps export, not of async-maps run"),
        ("run maps out --verbos", "did you mean --verbose?"),
        ("run maps out --retry_faild", "did you mean --retry-failed?"),
        ("ran maps out", "unknown command 'ran'; did you mean run?"),
        ("maps/ out", "to upload maps: async-maps run SOURCE DESTINATION"),
        ("--quiet", "options come after the command"),
        (
            "run maps out --queue-bytes 64XB",
            "--queue-bytes: input should be auto, a number of bytes, or a size such as 64MB",
        ),
        ("run maps out -v -q", "--verbose and --quiet exclude each other"),
        ("run maps out --config endpoint.toml", "s3.endpoint_url is not a setting; set AWS_ENDPOINT_URL"),
        ("run maps out --manifest --overwrite", "--manifest needs a value"),
        ("run maps out --report -", "--report reads and writes no standard stream: pass a path"),
        ("run maps -", "the destination cannot be standard output; expected s3://bucket/prefix, gs://"),
        ("run maps out --manifest=", "the name of the manifest is empty"),
        ("run maps out --queue-bytes 0.5", "--queue-bytes: input should be greater than 0, found '0.5'"),
        (
            "export m.sqlite x.csv --config typo.toml",
            "--config is an option of async-maps run, plan, verify and doctor",
        ),
        ("run maps out --key --config nope.toml", "--key needs a value"),
        ("run maps out --config typo.toml", "collormap is not a setting; did you mean colormap?"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    arguments: str, message: str, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("endpoint.toml").write_text("[s3]\nendpoint_url = 'http://localhost'\n")
    Path("typo.toml").write_text("collormap = 'jet'\n")
    assert invoke(*shlex.split(arguments)) == 2
    assert message in only_error(capsys.readouterr())


@pytest.mark.parametrize(
    ("command", "option"), [("run maps out", "--overwrite"), ("verify x.sqlite", "--delete-foreign")]
)
def test_no_suggestion_is_destructive(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    mistyped = {option[:i] + option[i + 1 :] for i in range(3, len(option), 3)} | {
        option[:-4],
        option.replace("--", "--no-"),
    }
    for typed in mistyped:
        assert invoke(*command.split(), typed) == 2
        assert option not in only_error(capsys.readouterr()).replace(typed, "")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ASYNC_MAPS_PNG", "x", "ASYNC_MAPS_PNG: input should be 'palette', 'rgba', 'compact' or 'gray', found 'x'"),
        ("ASYNC_MAPS_COLORMAP", "virdis", "ASYNC_MAPS_COLORMAP: unknown colormap 'virdis'"),
        ("ASYNC_MAPS_ALPHA", "7", "ASYNC_MAPS_ALPHA: expected auto, fade, opaque or a number from 0 to 1, found '7'"),
        ("ASYNC_MAPS_S3_MAX_ATTEMPTS", "0", "ASYNC_MAPS_S3_MAX_ATTEMPTS: input should be greater than 0, found '0'"),
        ("ASYNC_MAPS_PNGG", "rgba", "ASYNC_MAPS_PNGG is not a setting: did you mean ASYNC_MAPS_PNG?"),
        ("ASYNC_MAPS_S3_GIVEUP_S", "9", "did you mean ASYNC_MAPS_S3_GIVE_UP_S?"),
        ("ASYNC_MAPS_MANIFESTS", "x", "did you mean ASYNC_MAPS_MANIFEST?"),
        ("ASYNC_MAPS_S3_ENDPOINT_URL", "http://localhost", "is not a setting: set AWS_ENDPOINT_URL"),
        ("ASYNC_MAPS_OVERWRITE", "true", "it can only be given as an option, --overwrite"),
        ("ASYNC_MAPS_png", "rgba", "did you mean ASYNC_MAPS_PNG?"),
        ("ASYNC_MAPS_S3", "x", "ASYNC_MAPS_S3 is not a setting"),
        ("ASYNC_MAPS_ZZZ", "1", "ASYNC_MAPS_ZZZ is not a setting: unset it"),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, value: str, message: str, maps: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    assert invoke("run", maps, "out") == 2
    assert message in only_error(capsys.readouterr())


@pytest.mark.parametrize("command", ["verify x.sqlite", "doctor out"])
def test_every_command_with_settings_checks_the_variables(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASYNC_MAPS_PNGG", "rgba")
    assert invoke(*command.split()) == 2
    assert "did you mean ASYNC_MAPS_PNG?" in only_error(capsys.readouterr())


def test_an_option_hides_a_wrong_variable_of_the_same_setting(
    maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", random_map(1))
    monkeypatch.setenv("ASYNC_MAPS_PNG", "x")
    assert invoke("run", maps, "out", "--png", "gif") == 2
    assert "--png: input should be" in only_error(capsys.readouterr())
    assert invoke("run", maps, "out", "--png", "rgba", "--workers", 0) == 0


def test_variables_of_a_kubernetes_service_are_ignored(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(maps / "a.npy", random_map(1))
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"ASYNC_MAPS_{name}", "x")
    assert invoke("run", maps, "out", "--workers", 0) == 0


def test_the_manifest_comes_from_the_environment(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(maps / "a.npy", random_map(1))
    monkeypatch.setenv("ASYNC_MAPS_MANIFEST", "night.sqlite")
    assert invoke("run", maps, "out", "--workers", 0) == 0
    assert Path("night.sqlite").exists()
    assert invoke("run", maps, "out", "--workers", 0, "--manifest", "day.sqlite") == 0
    assert Path("day.sqlite").exists()


@pytest.mark.parametrize(
    ("size", "expected"),
    [("64MB", 64_000_000), ("1GiB", 2**30), ("1.5 KiB", 1536), ("512k", 512_000), ("4096", 4096), (4096, 4096)],
)
def test_sizes_have_units(size: Any, expected: int) -> None:
    settings = am.Settings(queue_bytes=size, chunk_bytes=size)
    assert (settings.queue_bytes, settings.chunk_bytes) == (expected, expected)
    assert type(settings.queue_bytes) is int


@pytest.mark.parametrize("size", ["", "MB", "64XB", "-1MB", "0", "0B", "1e3", "nanMB", "9" * 400 + ".5MB", -1])
def test_what_is_not_a_size_is_refused(size: Any) -> None:
    with pytest.raises(am.SettingsError, match="queue_bytes: input should be"):
        am.Settings(queue_bytes=size)


def test_quiet_prints_the_result_only(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "good.npy", random_map(1))
    np.save(maps / "bad.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", "--workers", 0, "--quiet", "--progress", "log") == 1
    out, err = capsys.readouterr()
    assert "1 uploaded, 0 skipped, 1 failed" in out
    assert err == ""
    for arguments in ("--quiet", "--progress", "json"), ("--quiet", "--dry-run"):
        invoke("run", maps, "out", "--workers", 0, *arguments)
        assert capsys.readouterr().err == ""
    assert invoke("run", maps, "out", "--bogus", "-q") == 2
    assert "--bogus" in only_error(capsys.readouterr())


def test_verbose_prints_each_failure(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", "--workers", 0, "--verbose", "--progress", "log") == 1
    err = capsys.readouterr().err
    assert len(re.findall(r"(?m)^async-maps: failed: \d \(", err)) == 5
    assert invoke("run", maps, "out", "--workers", 0, "--progress", "none", "--retry-failed") == 1
    assert "async-maps: failed: " not in capsys.readouterr().err


def test_help_is_printed_before_a_configuration_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("run", "--help", "--config", "nope.toml") == 0
    assert "SOURCE" in capsys.readouterr().out


def test_control_characters_are_escaped_without_a_terminal(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_text('"k\\u001b[31m" = 1\n')
    for arguments in (["no\x1b[31m.npy", "out"], [maps, "out", "--config", "s.toml"], [maps, "out", "--b\x1b[0m"]):
        assert invoke("run", *arguments) == 2
        assert "\\x1b[" in only_error(capsys.readouterr())


def test_help_has_groups_in_the_order_of_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("run", "--help") == 0
    text = capsys.readouterr().out
    groups = re.findall(r"^╭─ (.*?) ─", text, re.MULTILINE)
    assert groups == [
        "Arguments",
        "What to do",
        "What is a map",
        "What is printed",
        "How it looks",
        "Speed",
        "S3",
        "Many machines",
        "Advanced",
    ]
    assert "\x1b" not in text
    for name in setting_names():
        assert "--" + name.replace("_", "-") in text


@pytest.mark.parametrize("command", ["run", "plan", "status", "commit", "export", "verify", "doctor", "demo"])
def test_help_has_two_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(command, "--help") == 0
    examples = re.findall(rf"^ *(async-maps {command}\b.*?) *$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("zsh", marks=pytest.mark.long), pytest.param("fish", marks=pytest.mark.long)]
)
def test_completion_knows_the_options(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(app.generate_completion(shell=shell))  # type: ignore[arg-type]
    assert "retry-failed" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)
