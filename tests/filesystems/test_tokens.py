"""Tokens are found once for all requests, and renewed before they expire."""

from __future__ import annotations

import asyncio

import pytest

from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services.tokens import Token, Tokens

pytestmark = [pytest.mark.fast]


class Source:
    """Finds tokens that last an hour; its time is that of the test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.found = 0
        self.error: CredentialsError | None = None
        self.tokens = Tokens(self.find, wall=lambda: self.now, timer=lambda: self.now)

    def find(self) -> Token:
        self.found += 1
        if self.error is not None:
            raise self.error
        return Token(f"token {self.found}", self.now + 3600)

    async def next_token(self) -> str:
        """Return the token that is found in a thread meanwhile."""
        before = await self.tokens.get()
        for _ in range(500):
            if (token := await self.tokens.get()) != before:
                return token
            await asyncio.sleep(0.01)
        raise AssertionError("no other token was found")


async def test_concurrent_requests_share_a_token() -> None:
    source = Source()
    assert set(await asyncio.gather(*(source.tokens.get() for _ in range(20)))) == {"token 1"}
    assert source.found == 1


async def test_a_token_is_renewed_before_it_expires_without_a_wait() -> None:
    source = Source()
    assert await source.tokens.get() == "token 1"
    source.now += 3400
    assert await source.tokens.get() == "token 1"
    assert await source.next_token() == "token 2"


async def test_an_expired_token_is_not_used() -> None:
    source = Source()
    await source.tokens.get()
    source.now += 3601
    assert await source.tokens.get() == "token 2"


async def test_a_refused_token_is_replaced_once() -> None:
    source = Source()
    token = await source.tokens.get()
    assert source.tokens.refuse(token)
    assert await source.tokens.get() == "token 2"
    assert source.tokens.refuse(token)  # by another request, which was sent before
    assert await source.tokens.get() == "token 2"


async def test_a_token_that_is_refused_to_many_requests_is_replaced_for_all() -> None:
    source = Source()
    token = await source.tokens.get()

    async def ask() -> str:
        assert source.tokens.refuse(token)
        return await source.tokens.get()

    assert set(await asyncio.gather(*(ask() for _ in range(20)))) == {"token 2"}
    assert source.found == 2
    assert source.tokens.refuse(token)  # an answer that comes late
    assert await source.tokens.get() == "token 2"


async def test_a_refused_token_that_is_found_again_is_no_other() -> None:
    same = Tokens(lambda: Token("same", 1e12))
    assert same.refuse(await same.get())
    assert not same.refuse(await same.get())


async def test_after_a_thousand_failed_renewals_a_token_may_be_found() -> None:
    source = Source()
    source.error = CredentialsError("no network", may_pass=True, retry=True)
    source.tokens._failures = 1100
    with pytest.raises(CredentialsError, match="no network"):
        await source.tokens.get()
    source.now, source.error = source.now + 31, None
    assert await source.tokens.get() == "token 2"


async def test_a_failed_renewal_keeps_a_valid_token_and_waits() -> None:
    source = Source()
    await source.tokens.get()
    source.now, source.error = source.now + 3400, CredentialsError("no network", may_pass=True, retry=True)
    for _ in range(5):
        assert await source.tokens.get() == "token 1"
        await asyncio.sleep(0.01)
    assert source.found == 2
    source.now, source.error = source.now + 100, None
    assert await source.next_token() == "token 3"


async def test_without_a_token_the_error_is_raised_each_time() -> None:
    source = Source()
    source.error = CredentialsError("no credentials")
    for _ in range(3):
        with pytest.raises(CredentialsError, match=r"^no credentials$") as raised:
            await source.tokens.get()
        assert not raised.value.may_pass
        cause: BaseException | None = raised.value
        for _ in range(3):
            cause = cause and cause.__cause__
        assert cause is None
    assert source.found == 1
    source.now, source.error = source.now + 2, None
    assert await source.tokens.get() == "token 2"
    source.now, source.error = source.now + 3601, CredentialsError("signed out")
    with pytest.raises(CredentialsError) as raised:
        await source.tokens.get()
    # It has worked: it may work again after a new sign-in.
    assert raised.value.may_pass


async def test_another_process_begins_with_the_token() -> None:
    source, other = Source(), Source()
    assert source.tokens.known() is None
    await source.tokens.get()
    known = source.tokens.known()
    assert known is not None
    other.tokens.begin(known)
    assert (await other.tokens.get(), other.found) == ("token 1", 0)
    other.now += 3601
    assert (await other.tokens.get(), other.found) == ("token 1", 1)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Token("secret", 0.0))
