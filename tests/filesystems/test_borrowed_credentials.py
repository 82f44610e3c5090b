"""Credentials that a child process borrows from its parent, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.credentials import ReadOnlyCredentials

from async_maps.filesystems.clock import Clock
from async_maps.filesystems.credentials import (
    BorrowedCredentials,
    CredentialsError,
    Found,
    SharedCredentials,
    lend_credentials,
)

pytestmark = pytest.mark.fast
HOUR = 3600.0


class Parent:
    """A process that finds credentials, and a child that borrows them; ``errors`` come first."""

    def __init__(self) -> None:
        self.now = 0.0
        self.found = 0
        self.errors: list[CredentialsError] = []
        self.shared = SharedCredentials(self.find, Clock(lambda: self.now), lambda: self.now)
        self.asked: list[tuple[str, bool]] = []
        self.child = BorrowedCredentials(self.ask, Clock(lambda: self.now), lambda: self.now)

    def find(self, _: bool) -> Found:
        if self.errors:
            raise self.errors.pop(0)
        self.found += 1
        return Found(ReadOnlyCredentials(f"key-{self.found}", "secret", "token", None), self.now + HOUR, "iam-role")

    def ask(self, in_use: str, is_refused: bool) -> list[Any]:
        self.asked.append((in_use, is_refused))
        return lend_credentials(self.shared, in_use, is_refused)


def test_a_child_renews_when_its_parent_does() -> None:
    parent = Parent()
    assert parent.child.get().access_key == "key-1"
    parent.now = HOUR - 1
    assert parent.child.get().access_key == parent.shared.get().access_key == "key-2"
    assert (parent.found, parent.asked) == (2, [("", False), ("key-1", False)])


def test_refused_credentials_are_replaced_once_for_all_children() -> None:
    parent = Parent()
    other = BorrowedCredentials(parent.ask, Clock(lambda: parent.now), lambda: parent.now)
    assert parent.child.get() == other.get()
    parent.now = 60.0
    assert parent.child.replace("key-1")
    assert other.replace("key-1")
    assert parent.child.get().access_key == other.get().access_key == "key-2"
    assert parent.found == 2


def test_the_reason_of_the_parent_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    parent = Parent()
    parent.child.get()
    parent.now, parent.errors = HOUR, [CredentialsError("STS is busy", may_pass=True, retry=True)]
    with pytest.raises(CredentialsError) as caught:
        parent.child.get()
    assert str(caught.value) == "the AWS credentials could not be renewed: STS is busy"
    assert (caught.value.may_pass, caught.value.retry) == (True, True)
    assert len(caplog.records) == 1, "only the parent says it"
    parent.now += 1
    assert parent.child.get().access_key == "key-2"
