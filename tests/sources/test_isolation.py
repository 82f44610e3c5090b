"""What a reader hears from the process that decodes files, if another reader replaces that process meanwhile."""

from __future__ import annotations

import subprocess
from contextlib import closing
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from async_maps.sources.isolation import DecoderProcess, Line, SuspectError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

pytestmark = pytest.mark.fast


class Child(DecoderProcess):
    """Has one connection, and the test is at its other end.

    Attributes:
        is_replaced_by_requests: whether each request finds another process.
    """

    def __init__(self) -> None:
        super().__init__()
        ours, self.end = Pipe()
        self.is_replaced_by_requests = False
        self.connection = Mock(wraps=ours)
        self.connection.send_bytes = self.send
        self._ours, self._connected = ours, 0

    def connect(self) -> tuple[int, Connection]:
        self._connected += 1
        assert self._connected == 1, "the answer of another process is awaited, which was asked nothing"
        return self.generation, self.connection

    def send(self, request: bytes) -> None:
        self._ours.send_bytes(request)
        if self.is_replaced_by_requests:
            self.replace()

    def replace(self) -> None:
        self.generation += 1
        self.end.close()
        self._process = Mock(spec=subprocess.Popen)
        self._process.wait.side_effect = subprocess.TimeoutExpired("the next process, which runs", 5.0)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    with closing(child._ours), closing(child.end):
        yield child


def suspected(line: Line, *arguments: Any) -> None:
    with pytest.raises(SuspectError, match="the process that decodes it was stopped"):
        line.receive_into(*arguments) if arguments else line.ask(["read"])


def test_a_question_to_a_process_that_is_replaced_gets_no_answer(child: Child) -> None:
    child.is_replaced_by_requests = True
    suspected(Line(child))
    assert not child.is_suspect, "the next process has done nothing"


def test_the_values_of_a_process_that_is_replaced_do_not_come(child: Child) -> None:
    line = Line(child)
    child.end.send_bytes(b"[[3], '|u1']".replace(b"'", b'"'))
    assert line.ask(["read"]) == [[3], "|u1"]
    child.replace()
    suspected(line, memoryview(bytearray(3)))
