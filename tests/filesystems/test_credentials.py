"""When credentials are found, renewed, replaced and refused, in virtual time."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import Mock

import pytest
from anyio import fail_after, to_thread
from botocore.credentials import ReadOnlyCredentials

from async_maps.filesystems.clock import Clock
from async_maps.filesystems.credentials import NONE_FOUND, CredentialsError, Found, SharedCredentials
from async_maps.filesystems.sessions import AsyncCredentials, BlockingCredentials

pytestmark = pytest.mark.fast
HOUR = 3600.0
PASSING = CredentialsError("STS is busy", may_pass=True, retry=True)
REFUSED = CredentialsError("AssumeRole is refused with AccessDenied")


class Source:
    """Gives credentials that last for a time; ``errors`` come first."""

    def __init__(self, lasts_s: float | None = HOUR) -> None:
        self.now = 0.0
        self.lasts_s = lasts_s
        self.errors: list[CredentialsError] = []
        self.asked: list[bool] = []
        self.given = 0
        self.shared = SharedCredentials(self.find, Clock(lambda: self.now), lambda: self.now)

    def find(self, may_ask: bool) -> Found:
        self.asked.append(may_ask)
        if self.errors:
            raise self.errors.pop(0)
        self.given += 1
        frozen = ReadOnlyCredentials(f"key-{self.given}", "secret", "token", None)
        return Found(frozen, None if self.lasts_s is None else self.now + self.lasts_s, "iam-role")

    def key(self) -> str:
        return str(self.shared.get().access_key)


def test_credentials_are_renewed_before_they_expire() -> None:
    source = Source()
    for source.now, key in ((0, "key-1"), (2699, "key-1"), (2701, "key-2"), (2701 + 2699, "key-2")):
        assert source.key() == key
    assert source.asked == [True, False], "a person is asked at the start only"


def test_credentials_of_a_short_life_are_not_renewed_at_every_request() -> None:
    source = Source(lasts_s=60.0)
    for second in range(600):
        source.now = float(second)
        source.key()
    assert len(source.asked) == 20


def test_credentials_without_an_expiry_are_found_once() -> None:
    source = Source(lasts_s=None)
    for source.now in (0.0, 1e6, 1e9):
        assert source.key() == "key-1"
    assert len(source.asked) == 1


def test_a_failed_renewal_keeps_valid_credentials(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    source.key()
    source.errors = [REFUSED] * 1000
    for second in range(2701, 3600):
        source.now = float(second)
        assert source.key() == "key-1"
    assert len(source.asked) < 40
    (record,) = caplog.records
    assert record.getMessage().startswith("the AWS credentials could not be renewed: AssumeRole is refused")


@pytest.mark.parametrize("error", [PASSING, REFUSED, CredentialsError(NONE_FOUND)], ids=["busy", "refused", "gone"])
def test_expired_credentials_that_cannot_be_renewed_may_pass(error: CredentialsError) -> None:
    source = Source()
    source.key()
    source.now, source.errors = HOUR, [error] * 100
    for _ in range(100):
        with pytest.raises(CredentialsError, match="could not be renewed") as caught:
            source.key()
        assert caught.value.may_pass
        assert caught.value.retry == (error is not REFUSED)
        assert "AWS_PROFILE" not in str(caught.value)
    assert len(source.asked) == 2, "not once a request"
    source.errors = []
    source.now += 60
    assert source.key() == "key-2"


def test_an_error_at_the_start_keeps_its_words() -> None:
    source = Source()
    source.errors = [REFUSED]
    with pytest.raises(CredentialsError, match="AssumeRole is refused") as caught:
        source.key()
    assert str(caught.value) == str(REFUSED)
    assert not caught.value.may_pass


def test_refused_credentials_are_replaced_once_for_all_requests() -> None:
    source = Source(lasts_s=None)
    assert source.key() == "key-1"
    assert [source.shared.replace("key-1") for _ in range(32)] == [True] * 32
    assert (source.key(), len(source.asked)) == ("key-2", 2)


def test_credentials_that_stay_the_same_are_not_asked_for_again() -> None:
    source = Source(lasts_s=None)
    assert source.key() == "key-1"
    source.given = 0
    assert [source.shared.replace("key-1") for _ in range(32)] == [False] * 32
    assert len(source.asked) == 2


def test_refused_credentials_are_replaced_after_a_renewal_that_failed() -> None:
    source = Source()
    assert source.key() == "key-1"
    source.errors = [PASSING]
    for _ in range(32):
        with pytest.raises(CredentialsError, match="could not be renewed: STS is busy") as caught:
            source.shared.replace("key-1")
        assert caught.value.retry
    assert len(source.asked) == 2, "not once a request"
    source.now += 1
    assert source.shared.replace("key-1")
    assert source.key() == "key-2"


async def test_requests_of_a_loop_share_one_renewal() -> None:
    source = Source()
    credentials = AsyncCredentials(source.shared)
    for source.now in (0.0, HOUR, 2 * HOUR):
        found = await asyncio.gather(*(credentials.get_frozen_credentials() for _ in range(300)))
        assert len(set(found)) == 1
    assert len(source.asked) == 3


async def test_requests_that_wait_for_credentials_leave_threads_to_others() -> None:
    source, go = Source(lasts_s=None), threading.Event()
    assert source.key() == "key-1"

    def find(may_ask: bool) -> Found:
        assert go.wait(60)
        return source.find(may_ask)

    source.shared._find = find
    credentials = AsyncCredentials(source.shared)
    refused = Mock(status_code=400, headers={}), {"Error": {"Code": "ExpiredToken"}}
    requests = [{"context": {"async_maps": {"access_key": "key-1"}}} for _ in range(64)]
    waiting = [asyncio.create_task(credentials.sign_again(request, refused)) for request in requests]
    await asyncio.sleep(0)
    try:
        with fail_after(5):
            assert await to_thread.run_sync(lambda: "another") == "another"
    finally:
        go.set()
        assert await asyncio.gather(*waiting) == [0.0] * 64
    assert len(source.asked) == 2


async def test_a_cancelled_request_does_not_cancel_the_renewal_of_others() -> None:
    source, began, go = Source(lasts_s=None), threading.Event(), threading.Event()

    def find(may_ask: bool) -> Found:
        began.set()
        assert go.wait(60)
        return source.find(may_ask)

    credentials = AsyncCredentials(SharedCredentials(find))
    tasks = [asyncio.create_task(credentials.get_frozen_credentials()) for _ in range(3)]
    await asyncio.to_thread(began.wait, 60)
    tasks[0].cancel()
    go.set()
    cancelled, *found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [getattr(one, "access_key", one) for one in found] == ["key-1", "key-1"]


def test_threads_wait_for_a_renewal_that_may_succeed() -> None:
    source = Source()
    source.key()
    source.now, source.errors = HOUR, [PASSING] * 3

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            source.now += timeout or 0.0
            return self.is_set()

    closed = Closed()
    assert BlockingCredentials(source.shared, 300.0, closed).get_frozen_credentials().access_key == "key-2"
    source.now, source.errors = 3 * HOUR, [PASSING] * 3
    closed.set()
    with pytest.raises(CredentialsError, match="STS is busy"):
        BlockingCredentials(source.shared, 300.0, closed).get_frozen_credentials()


def test_no_secret_is_in_a_repr() -> None:
    source = Source()
    source.key()
    assert "secret" not in repr(source.shared.found)
    assert "token" not in repr(source.shared.found)
