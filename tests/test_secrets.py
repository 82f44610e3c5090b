"""Secret keys, session tokens and signatures are in no file, message or log that we write, at debug level too.

botocore's own debug loggers print session tokens, signed strings and signatures if a user switches them on. We never
switch a logger on, and our loggers print none of these. The secret key is in no log at all.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from tests.support.maps import random_map
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.demo.seaweed import S3Server

TOKEN = "A-SESSION-TOKEN/TO-BE+RECOGNISED=="
WRONG_KEY = "A/SECRET+KEY/TO-BE-RECOGNISED"
_SIGNATURE = re.compile(r"Signature=|AWS4-HMAC-SHA256")

# The command with every logger at debug level, and a log of each record with its logger.
_PROGRAM = """
import json, logging, sys

class Lines(logging.Handler):
    def emit(self, record):
        with open("log.jsonl", "a") as file:
            file.write(json.dumps([record.name, self.format(record)]) + "\\n")

logging.basicConfig(level=logging.DEBUG, handlers=[Lines()])
from async_maps.cli.app import main
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


@pytest.fixture
def few(maps: Path) -> Path:
    """A folder with 12 good maps and a bad one."""
    for i in range(12):
        np.save(maps / f"{i}.npy", random_map(i))
    np.save(maps / "bad.npy", np.full((3, 3), 7.0))
    return maps


def command(*arguments: object) -> int:
    """Run the command in a process that writes its output to files. Returns its exit code."""
    with open("out", "a") as out, open("err", "a") as err:
        line = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
        return subprocess.run(line, stdout=out, stderr=err, check=False).returncode


def assert_no_secret(*secrets: str, keys: tuple[str, ...], without: Path) -> None:
    """Check that no secret and no key is in any file in the folder, except below ``without``."""
    left = [path for path in Path().rglob("*") if path.is_file() and without not in path.absolute().parents]
    assert {"out", "err", "log.jsonl"} <= {path.name for path in left}
    lines = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert any(logger.startswith("botocore") for logger, _ in lines), "nothing was logged at debug level"
    ours = [f"{logger}: {text}" for logger, text in lines if not re.match(r"(aio)?(botocore|boto3)\b", logger)]
    texts = {path.name: path.read_bytes().decode(errors="replace") for path in left if path.name != "log.jsonl"}
    for name, text in (texts | {"the log": "\n".join(ours)}).items():
        for secret in (*secrets, *keys):
            assert secret not in text, name
        assert not _SIGNATURE.search(text), name
    everything = "\n".join(text for _, text in lines)
    for key in keys:
        assert key not in everything, "not even botocore says the secret key"


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, *, expired_after: int = 10**9) -> Iterator[list[str]]:
    """Run a server that accepts ``expired_after`` objects and then answers that the token has expired, as AWS does.

    Yields:
        the signatures that it received.
    """
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization, token = self.headers["Authorization"], self.headers["X-Amz-Security-Token"]
            assert token == TOKEN
            seen.append(authorization.partition("Signature=")[2])
            expired = self.command == "PUT" and len(seen) > expired_after
            body = (
                "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>"
                f"<Token-0>{TOKEN}</Token-0><StringToSign>{authorization}</StringToSign></Error>"
            ).encode() * expired
            self.send_response_only(400 if expired else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-amz-checksum-crc32", self.headers.get("x-amz-checksum-crc32", ""))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = do_GET = answer  # noqa: N815  # the names that http.server wants

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        try:
            yield seen
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize("client", ["direct", pytest.param("sdk", marks=pytest.mark.slow)])
def test_a_run_writes_no_secret(
    client: str, s3: S3Server, bucket: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        run = ("run", few, f"s3://{bucket}/x", "--workers", 1, "--progress", "json", "--report", "report.json")
        assert command(*run, "--s3.client", client) == 1  # one map is bad
        for suffix in ("csv", "jsonl", "parquet"):
            am.export_manifest("async-maps.sqlite", f"table.{suffix}", rows="all")
    assert json.loads(Path("report.json").read_text())["uploaded"] == 12
    signatures = [authorization.partition("Signature=")[2] for authorization in proxy.authorizations]
    assert len(signatures) > 12
    assert_no_secret(*signatures, keys=(s3.secret_key,), without=few)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("wrong key", "the secret key is wrong", marks=pytest.mark.slow),
        pytest.param("no bucket", "the bucket does not exist", marks=pytest.mark.slow),
        pytest.param("unknown token", "refused with", marks=pytest.mark.slow),
        pytest.param("nobody there", "127.0.0.1:9", marks=pytest.mark.slow),
    ],
)
def test_a_refused_run_writes_no_secret(
    fault: str, said: str, s3: S3Server, bucket: str, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "wrong key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_KEY)
    elif fault == "unknown token":
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    elif fault == "nobody there":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    destination = "s3://no-such-bucket/x" if fault == "no bucket" else f"s3://{bucket}/x"
    assert command("run", few, destination, "--workers", 0, "--report", "report.json", "--s3.max-attempts", 1) != 0
    assert said in Path("err").read_text()
    assert_no_secret(TOKEN, keys=(s3.secret_key, WRONG_KEY), without=few)


@pytest.mark.parametrize("expired_after", [pytest.param(n, marks=pytest.mark.slow) for n in (0, 5, 10**9)])
def test_a_valid_or_expired_session_token_is_not_written(
    expired_after: int, few: Path, monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    with answering(monkeypatch, expired_after=expired_after) as signatures:
        run = ("run", few, "s3://bucket/x", "--workers", 0, "--concurrency", 2, "--report", "report.json")
        code = command(*run)
    err = Path("err").read_text()
    assert code != 0  # one map is bad, or the token
    assert ("the session token has expired" in err) == (expired_after < 100)
    assert signatures
    assert_no_secret(TOKEN, *signatures, keys=(s3.secret_key,), without=few)


async def test_no_object_shows_a_secret_in_its_repr(s3: S3Server, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    settings = am.Settings(workers=0)

    async def run() -> None:
        async with am.Pipeline("s3://bucket/x", settings=settings) as pipeline:
            # The second put is a direct one.
            for name in ("a", "b"):
                await pipeline.put(name, random_map(1))
            for thing in [pipeline, *gc.get_objects()]:
                if str(type(thing).__module__).startswith("async_maps."):
                    shown.extend((repr(thing), str(thing)))
            await pipeline.run(few)

    with answering(monkeypatch, expired_after=6), pytest.raises(am.StoreError) as failed:
        await run()
    error: BaseException | None = failed.value
    while error is not None:
        shown += [repr(error), str(error)]
        error = error.__cause__ or error.__context__
    shown += [settings.model_dump_json(), repr(s3)]
    for kind in ("Pipeline", "S3Store", "Signer", "Plan", "Settings", "DirectSession", "StoreError"):
        assert any(kind in text for text in shown), kind
    for text in shown:
        assert s3.secret_key not in text
        assert TOKEN not in text
        assert not _SIGNATURE.search(text)
