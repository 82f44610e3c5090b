"""A store that says in the middle of a run that the token has expired; another program may have written a new one."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.filesystems.s3 import S3Filesystem
from tests.support.maps import random_map
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.odd_server import Asked

__all__ = ["odd_server"]


class Tokens:
    """The credentials file of a user, whose tokens expire.

    Attributes:
        expired: the tokens that the store refuses.
    """

    def __init__(self, file: Path, server: OddServer) -> None:
        self.expired: set[str] = set()
        self._file = file
        self._server = server
        self._answer = server.answer
        server.answer = self.answer  # type: ignore[method-assign]
        self.write("old")

    def write(self, token: str) -> None:
        keys = "aws_access_key_id = id-{0}\naws_secret_access_key = secret\naws_session_token = {0}\n"
        self._file.write_text(f"[default]\n{keys.format(token)}")

    def answer(self, asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if asked.headers["x-amz-security-token"] in self.expired:
            return 400, {}, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
        return self._answer(asked, body)

    def sent(self, token: str) -> int:
        """Return the number of requests with a token."""
        return sum(asked.headers["x-amz-security-token"] == token for asked in self._server.asked)


@pytest.fixture
def tokens(odd_server: OddServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.chdir(tmp_path)
    return Tokens(tmp_path / "credentials", odd_server)


@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_a_new_token_in_the_file_continues_the_run(client: str, tokens: Tokens, odd_server: OddServer) -> None:
    settings = am.Settings.model_validate({"workers": 0, "concurrency": 8, "s3": {"client": client}})
    async with am.Pipeline("s3://bucket/x", settings=settings) as pipeline:
        await pipeline.put("first", random_map(1))
        tokens.expired.add("old")
        tokens.write("new")
        outcomes = [outcome async for outcome in pipeline.stream((f"m{i}", random_map(i)) for i in range(40))]
    assert all(isinstance(outcome, am.Receipt) for outcome in outcomes)
    assert len(odd_server.objects) == 41
    # Only what was under way was sent in vain: once directly, once by the SDK.
    assert tokens.sent("old") <= 3 + 2 * 8


async def test_an_expired_token_without_another_ends_the_run(tokens: Tokens) -> None:
    async def source() -> object:
        for i in range(40):
            if i == 20:
                tokens.expired.add("old")
            yield f"m{i}", random_map(i)

    with pytest.raises(am.StoreError, match="the session token has expired") as failed:
        async with am.Pipeline("s3://bucket/x", settings=am.Settings(workers=0)) as pipeline:
            await pipeline.run(source(), manifest="m.sqlite")  # type: ignore[arg-type]
    assert failed.value.report.failed == 0


def test_reads_and_lists_use_a_new_token(tokens: Tokens, odd_server: OddServer) -> None:
    odd_server.objects["/bucket/a"] = b"data", {"ETag": '"tag"'}
    with closing(S3Filesystem()) as filesystem:
        for token in ("second", "third", "fourth"):
            assert [found.key for found in filesystem.objects("bucket", "")] == ["a"]
            tokens.expired.add({"second": "old", "third": "second", "fourth": "third"}[token])
            tokens.write(token)
            # The answer to a HEAD says no code.
            assert filesystem.find("s3://bucket/a") is not None
            assert filesystem.open("s3://bucket/a").read() == b"data"
