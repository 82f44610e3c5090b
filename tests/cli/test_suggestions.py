"""Commands in messages can be copied: they have the flags that matter, and are quoted for a shell."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from tests.support.commands import invoke
from tests.support.maps import random_map

CONFIG = "my settings.toml"
FLAGS = ("--progress", "none", "--workers", 0)


@pytest.fixture
def config(maps: Path) -> str:
    """A file with settings; also makes a map."""
    np.save(maps / "a.npy", random_map(1))
    Path(CONFIG).write_text("[s3]\nmax_attempts = 1\n")
    return CONFIG


def commands_in(text: str) -> list[list[str]]:
    """Return the suggested commands, as a shell splits them."""
    found = (line.partition(": async-maps ") for line in text.splitlines())
    return [shlex.split(command) for _, suggested, command in found if suggested]


def test_the_doctor_gets_the_flags_of_the_run(
    config: str, maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("ASYNC_MAPS_S3_READ_TIMEOUT_S", "7")
    given = ("--s3.client=sdk", "--config", config, "--s3.metadata.project", "two words", "--colormap", "viridis")
    assert invoke("run", maps, "s3://bucket/my maps", *FLAGS, *given) == 3
    (doctor,) = commands_in(capsys.readouterr().err)
    assert doctor[:2] == ["doctor", "s3://bucket/my maps"]
    options = list(zip(doctor[2::2], doctor[3::2], strict=True))
    assert sorted(options) == [
        ("--config", config), ("--s3.client", "sdk"), ("--s3.metadata.project", "two words"),
    ]  # fmt: skip
    # The command can be run, and finds the problem.
    assert invoke(*doctor) == 1
    assert "127.0.0.1:9" in capsys.readouterr().out


def test_the_repair_gets_the_flags_of_the_verification(
    config: str, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("run", maps, "out", *FLAGS, "--manifest", "a b.sqlite") == 0
    Path("out/a.png").unlink()
    Path("out/b.png").write_bytes(b"foreign")
    os.utime("out/b.png", (1, 1))
    verify = ("verify", "a b.sqlite", "--deep", "--config", config, "--same-destination", "no", "--concurrency", 3)
    assert invoke(*verify) == 1
    repair, delete = commands_in(capsys.readouterr().out)
    assert repair == ["verify", "a b.sqlite", "--deep", "--repair", "--config", config, "--same-destination", "no"]
    assert sorted(delete) == sorted([*repair, "--delete-foreign"])
    maps.rename("moved")
    assert invoke(*repair, "--source", "moved", "--workers", 0) == 1
    # Without the source, the next repair would not find the maps.
    assert commands_in(capsys.readouterr().out) == [
        [
            "verify",
            "a b.sqlite",
            "--deep",
            "--repair",
            "--source",
            str(Path("moved").absolute()),
            "--delete-foreign",
            *repair[4:],
        ]
    ]


def test_a_run_after_a_failed_repair_has_its_manifest_and_destination(
    config: str, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("run", maps, "my out", *FLAGS, "--manifest", "a b.sqlite") == 0
    Path("my out/a.png").unlink()
    maps.rename("moved")
    assert invoke("verify", "a b.sqlite", "--repair", "--config", config, "--workers", 0) == 1
    (run,) = commands_in(capsys.readouterr().out)
    assert run[:2] == ["run", "SOURCE"]
    assert run[3:] == ["--manifest", "a b.sqlite", "--retry-failed", "--config", config, "--workers", "0"]
    assert invoke("run", "moved", *run[2:]) == 0
    assert Path("my out/a.png").exists()


def test_a_program_has_no_options_of_a_command(config: str, maps: Path) -> None:
    assert invoke("run", maps, "out", *FLAGS, "--config", config) == 0
    Path("out/a.png").unlink()
    verification = am.verify_locators("async-maps.sqlite", settings=am.Settings(workers=0))
    assert verification.advice == ["to repair the broken overlays, run: async-maps verify async-maps.sqlite --repair"]


def test_nothing_to_verify_is_no_success(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "bad.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", *FLAGS) == 1
    capsys.readouterr()
    assert invoke("verify", "async-maps.sqlite") == 1
    assert capsys.readouterr().out.startswith("nothing to verify: async-maps.sqlite lists no overlay\n")
    assert not am.verify_locators("async-maps.sqlite").is_clean
