"""When an object that cannot be read is to blame itself, by what else could be read."""

from __future__ import annotations

from collections import deque
from unittest.mock import Mock

import pytest

from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.verdict import Scope, Verdict
from async_maps.outcomes import Failure
from async_maps.settings import S3Settings
from async_maps.sources.hearing import Hearing

pytestmark = pytest.mark.fast
REFUSED = Verdict(Scope.CREDENTIALS, False, False, False, "refused with AccessDenied")
FAILURE = Failure("b", "s3://bucket/b.npy", None, "source", REFUSED.reason)


@pytest.fixture
def get() -> Mock:
    """Reads the control."""
    return Mock()


@pytest.fixture
def hearing(get: Mock) -> Hearing:
    return Hearing(Mock(**{"at.return_value": Mock(get=get, settings=S3Settings())}))


def judge(hearing: Hearing) -> list[Failure]:
    """Return the failures that are known after an object was refused."""
    assert not hearing.may_pass("s3://bucket/b.npy", REFUSED, 1)
    return [*hearing.hold(FAILURE, REFUSED)]


@pytest.mark.parametrize("path", ["s3://bucket/a.npy", "s3://bucket/a.zarr", "s3://bucket/dataset"])
def test_a_refused_object_is_to_blame_if_another_file_can_be_read(path: str, hearing: Hearing, get: Mock) -> None:
    hearing.could_read(path)
    assert judge(hearing) == [FAILURE]
    hearing.end()
    assert get.call_count == path.endswith(".npy"), "a folder is no object"


def test_a_refused_object_is_to_blame_if_the_control_was_deleted(hearing: Hearing, get: Mock) -> None:
    hearing.could_read("s3://bucket/a.npy")
    get.side_effect = FileNotFoundError
    assert judge(hearing) == [FAILURE]


def test_a_refused_object_is_not_to_blame_if_the_control_is_refused_too(hearing: Hearing, get: Mock) -> None:
    hearing.could_read("s3://bucket/a.npy")
    get.side_effect = InaccessibleError.of(REFUSED)
    with pytest.raises(UnavailableError, match="refused with AccessDenied"):
        judge(hearing)


def test_failures_are_held_back_until_a_file_can_be_read(hearing: Hearing) -> None:
    assert judge(hearing) == []
    with pytest.raises(UnavailableError, match="refused with AccessDenied"):
        hearing.end()
    hearing.could_read("s3://bucket/a.zarr")
    assert [*hearing.released()] == [FAILURE]
    hearing.end()


def test_a_source_of_which_nothing_can_be_read_is_not_asked_for_all_objects(hearing: Hearing) -> None:
    with pytest.raises(UnavailableError, match="refused with AccessDenied"):
        deque((judge(hearing) for _ in range(10**5)), 0)


def test_any_number_of_refused_objects_are_to_blame_if_another_file_can_be_read(hearing: Hearing) -> None:
    hearing.could_read("s3://bucket/a.npy")
    assert [judge(hearing) for _ in range(2000)] == [[FAILURE]] * 2000
