"""Paths on standard input, as at the end of a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps
from async_maps.sources.named import NamedFile
from async_maps.sources.stdin import _files
from tests.support.commands import COMMAND
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import read_rows
from tests.support.maps import npy, random_map
from tests.support.odd_server import OddServer, odd_server
from tests.support.s3 import upload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from tests.support.odd_server import Asked

__all__ = ["odd_server"]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(path: str, seed: int = 0) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.save(path, random_map(seed))
    return path


def arguments(*options: str) -> list[str]:
    return [*COMMAND, "run", "-", "out", "--workers", "0", "--progress", "log", *options]


def run(text: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(arguments(*options), input=text, capture_output=True, timeout=240, check=False)


def overlays() -> list[str]:
    return sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.png"))


@pytest.fixture
def slow_producer() -> Iterator[subprocess.Popen[bytes]]:
    """The command with an open pipe as its standard input."""
    with subprocess.Popen(
        arguments(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process
        process.kill()


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_each_line_is_a_file_named_by_its_path(tmp_path: Path) -> None:
    save("a.npy")
    save("deep/b c.npy")
    absolute = save(str(tmp_path / "elsewhere" / "é.npy"))
    np.savez("two.npz", x=random_map(0), y=random_map(1))
    done = run(f"a.npy\n./deep/b c.npy\r\n\n{absolute}\n.//two.npz".encode())
    assert done.returncode == 0, done.stderr
    inside = str(tmp_path).lstrip("/")
    assert overlays() == sorted(["a.png", "deep/b c.png", f"{inside}/elsewhere/é.png", "two/x.png", "two/y.png"])
    again = run(f"a.npy\r\n{absolute}\r\n".encode("utf-8-sig"))
    assert again.returncode == 0
    assert b"2 skipped" in again.stdout


def test_a_bad_line_fails_alone(tmp_path: Path) -> None:
    save("good.npy")
    save("up/x.npy")
    Path("folder").mkdir()
    done = run(
        b"gone.npy\nfolder\n../" + tmp_path.name.encode() + b"/up/x.npy\nnotes.txt\n\xff.npy\nnull\0.npy\ngood.npy\n"
    )
    assert done.returncode == 1
    assert overlays() == ["good.png"]
    failures = str([row for row in read_rows(Path("async-maps.sqlite")) if row["status"] == "failed"])
    for reason in (
        "the file does not exist", "found a folder", "'..' is not allowed", "notes.txt", "udcff", "has a null byte",
    ):  # fmt: skip
        assert reason in failures, reason


@pytest.mark.slow
def test_standard_input_may_be_a_file_empty_or_closed() -> None:
    save("a.npy")
    Path("list.txt").write_text("a.npy\n")
    with open("list.txt", "rb") as file:
        done = subprocess.run(arguments(), stdin=file, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert overlays() == ["a.png"]
    empty = subprocess.run(arguments(), stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False)
    assert empty.returncode == 2
    assert b"standard input contains no activation maps" in empty.stderr
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *arguments()], capture_output=True, timeout=240, check=False
    )
    assert closed.returncode == 2
    assert b"standard input is closed" in closed.stderr


@pytest.mark.slow
def test_a_very_long_line_is_refused() -> None:
    done = run(b"x" * 2**20)
    assert done.returncode == 2
    assert b"a line of more than" in done.stderr


def test_a_dry_run_reads_standard_input() -> None:
    save("a.npy")
    done = run(b"a.npy\ngone.npy\n", "--dry-run")
    assert done.returncode == 1
    assert b"2 maps listed: 1 would be done, 0 skipped as unchanged, 1 would fail by name or header" in done.stdout
    assert not Path("out").exists()


@pytest.mark.slow
def test_more_lines_than_a_pipe_holds_are_read() -> None:
    save("a.npy")
    count = 5000
    done = run(b"".join(b"./gone/%060d.npy\n" % i for i in range(count)) + b"a.npy\n")
    assert done.returncode == 1
    assert b"5,000 failed" in done.stdout
    assert overlays() == ["a.png"]


def test_maps_are_uploaded_while_the_producer_still_writes(slow_producer: subprocess.Popen[bytes]) -> None:
    assert slow_producer.stdin is not None
    for name in ("first", "second"):
        slow_producer.stdin.write(save(f"{name}.npy").encode() + b"\n")
        slow_producer.stdin.flush()
        wait_for(f"out/{name}.png")
    slow_producer.stdin.write(save("third.npy").encode())
    slow_producer.stdin.close()
    assert slow_producer.wait(60) == 0
    assert overlays() == ["first.png", "second.png", "third.png"]


def test_one_interrupt_ends_a_run_whose_producer_hangs(slow_producer: subprocess.Popen[bytes]) -> None:
    assert slow_producer.stdin is not None
    slow_producer.stdin.write(save("first.npy").encode() + b"\nhalf a li")
    slow_producer.stdin.flush()
    wait_for("out/first.png")
    slow_producer.send_signal(signal.SIGINT)
    assert slow_producer.wait(60) == 130
    assert slow_producer.stderr is not None
    assert b"interrupted by SIGINT" in slow_producer.stderr.read()


@pytest.mark.slow
def test_paths_may_be_in_s3(bucket: str) -> None:
    upload(bucket, {"maps/a.npy": npy(), "maps/b.npy": npy()})
    save("here.npy")
    done = run(f"s3://{bucket}/maps/a.npy\nhere.npy\ns3://{bucket}/maps/b.npy\ns3://{bucket}/gone.npy\n".encode())
    assert done.returncode == 1
    assert overlays() == ["here.png", "maps/a.png", "maps/b.png"]


def refuse_gets(server: OddServer, path: str, status: int = 403, code: str = "AccessDenied") -> None:
    """Refuse the requests for all paths that start with one."""
    answer = server.answer
    refusal = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    def refuse(asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return (status, {}, refusal) if asked.path.startswith(path) else answer(asked, body)

    server.answer = refuse  # type: ignore[method-assign]


@pytest.mark.parametrize("order", ["abc", "bac", "acb", "xbac", "axbc"])
async def test_lines_that_come_one_by_one_share_what_could_be_read(
    order: str, odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object x does not exist, and b is refused."""
    odd_server.objects = {f"/bucket/{name}.npy": (npy(), {}) for name in "abc"}
    refuse_gets(odd_server, "/bucket/b.npy")

    async def lines() -> AsyncGenerator[list[bytes], None]:
        for name in order:
            yield [f"s3://bucket/{name}.npy".encode()]

    monkeypatch.setattr("async_maps.sources.batches.stdin_lines", lines)
    found = {entry.name: type(entry) async for batch in list_maps("-") for entry in batch}
    kinds = {"a": ActivationMap, "b": Failure, "c": ActivationMap, "x": Failure}
    assert found == {name: kinds[name] for name in order}


async def test_lines_of_which_none_can_be_read_blame_no_map(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_gets(odd_server, "/bucket/b.npy")

    async def lines() -> AsyncGenerator[list[bytes], None]:
        yield [b"s3://bucket/b.npy"]

    monkeypatch.setattr("async_maps.sources.batches.stdin_lines", lines)
    with pytest.raises(UnavailableError, match="refused with AccessDenied"):
        [batch async for batch in list_maps("-")]


@pytest.mark.parametrize("order", [["good", "gone", "good"], ["gone", "good", "gone"]])
async def test_a_bucket_that_does_not_exist_fails_its_lines_alone(
    order: list[str], odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.objects = {f"/good/{number}.npy": (npy(), {}) for number in range(3)}
    refuse_gets(odd_server, "/gone/", 404, "NoSuchBucket")

    async def lines() -> AsyncGenerator[list[bytes], None]:
        yield [f"s3://{bucket}/{number}.npy".encode() for number, bucket in enumerate(order)]

    monkeypatch.setattr("async_maps.sources.batches.stdin_lines", lines)
    found = {entry.name: type(entry) async for batch in list_maps("-") for entry in batch}
    kinds = {"good": ActivationMap, "gone": Failure}
    assert found == {str(number): kinds[bucket] for number, bucket in enumerate(order)}


async def test_lines_that_are_all_in_a_bucket_that_does_not_exist_end_the_run(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_gets(odd_server, "/gone/", 404, "NoSuchBucket")

    async def lines() -> AsyncGenerator[list[bytes], None]:
        for number in range(100):
            yield [f"s3://gone/{number}.npy".encode()]

    monkeypatch.setattr("async_maps.sources.batches.stdin_lines", lines)
    with pytest.raises(UnavailableError, match="the bucket does not exist") as caught:
        [batch async for batch in list_maps("-")]
    assert not caught.value.may_pass
    assert len(odd_server.asked) < 50


def test_a_path_in_s3_is_named_by_its_key() -> None:
    point = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap"
    lines = [f"{point}/a/b.npy", "s3://acme:maps/c.npy", "s3://bucket/d.npy", "s3://arn:aws:s3:::bucket/e.npy"]
    *files, refused = _files([line.encode() for line in lines])
    assert [(file.name, file.path) for file in files if isinstance(file, NamedFile)] == [
        ("a/b", lines[0]), ("c", lines[1]), ("d", lines[2]),
    ]  # fmt: skip
    assert isinstance(refused, Failure)
    assert "is the ARN of a bucket; expected s3://bucket/e.npy" in refused.reason


def test_open_source_refuses_standard_input() -> None:
    with pytest.raises(SourceError, match="only once"):
        open_source("-")
    with pytest.raises(SourceError, match="no such file"):
        open_source(os.path.join(".", "-"))


def test_a_limit_takes_the_first_lines() -> None:
    done = run("".join(f"{save(f'{number:02}.npy', number)}\n" for number in range(20)).encode(), "--limit", "3")
    assert done.returncode == 0
    assert overlays() == ["00.png", "01.png", "02.png"]
