"""Measurements: contenders in turn, whole processes with their children, memory.

A contender in a separate process runs as a whole (:func:`run_process`) or waits for its turns (:func:`by_turns`, with
:func:`take_turns` on its side). With turns, its start is not measured and the rounds of all contenders are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

Figures = dict[str, float]

BUCKET = "bench"
"""The bucket on all servers."""

_SAMPLE_S = 0.05
_TURN_MS = 3.0
_USER_TIME, _CHILD_SYSTEM_TIME = 11, 14
"""The fields utime, stime, cutime and cstime after the name in /proc/PID/stat; see proc(5)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that a process and its children used.

    Attributes:
        wall_s: seconds from before its start until its end.
        cpu_s: user and system time, including its children's.
        peak_bytes: the peak of their memory (PSS) together; 0 if the system does not tell.
        output: its standard output.
        started: the time of its start on the monotonic clock.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str
    started: float


def parser(name: str, question: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(prog=f"python -m bench {name}", description=question)
    options.add_argument(
        "--quick", action="store_true", help="a few seconds to see that it works; do not quote its figures"
    )
    return options


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the milliseconds of a call in each round, for contenders in turn; by a clock of seconds.

    A turn begins with a call that is not counted, because the other contenders have replaced the CPU caches. Then it
    makes as many calls as fit into a few milliseconds, at least one. Their median is the turn's figure.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, work in contenders.items():
                times[name].append(_turn(work, clock))
    finally:
        if collecting:
            gc.enable()
    return times


def mean_of(contests: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of several contests for each round."""
    return [sum(figures) / len(figures) for figures in zip(*contests, strict=True)]


def ratio_of(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of two contenders for each round."""
    return [first / second for first, second in zip(above, below, strict=True)]


@dataclass(frozen=True, slots=True)
class Code:
    """A folder with async_maps and bench, and an interpreter that has their requirements."""

    folder: Path
    python: str


def run_process(*arguments: str, environment: Mapping[str, str] | None = None, code: Code | None = None) -> Usage:
    """Run ``python ARGUMENTS`` to its end.

    Args:
        arguments: the arguments of Python.
        environment: further environment variables.
        code: what runs; None for this interpreter in the current folder.

    Raises:
        RuntimeError: the process failed.
    """
    started = time.monotonic()
    process = _launch(arguments, environment, code)
    with watched(process.pid) as peak:
        output = _pipe(process.stdout).read()
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}: {output[-2000:]}")
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, peak[0], output, started)


def run_command(
    source: Path | str,
    manifest: Path,
    *flags: str,
    environment: Mapping[str, str],
    resume: bool = False,
    code: Code | None = None,
) -> Usage:
    """Run ``async-maps run SOURCE s3://bench/run FLAGS`` to its end.

    Args:
        source: the maps.
        manifest: the manifest; an existing file is deleted first unless ``resume`` is set.
        flags: the flags of the command.
        environment: the environment variables of the server.
        resume: keep the manifest and continue from it.
        code: the code of the command; None for that in the current folder.

    Raises:
        RuntimeError: the command failed.
    """
    if not resume:
        manifest.unlink(missing_ok=True)
    command = ("run", str(source), f"s3://{BUCKET}/run", "--manifest", str(manifest), "--progress", "none")
    return run_process("-m", "async_maps", *command, *flags, environment=environment, code=code)


def by_turns(
    contenders: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Run processes that call :func:`take_turns` one after the other, round by round.

    Args:
        contenders: the arguments of Python for each contender.
        rounds: the number of turns of each contender.
        environment: the environment variables of all contenders.

    Returns:
        the figures of all rounds for each contender.

    Raises:
        RuntimeError: a contender failed.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_waiting(arguments, environment)) for name, arguments in contenders.items()
        }
        for name, process in started.items():
            _answer(name, process)
        for turn in range(rounds):
            for name in order(started, turn):
                process = started[name]
                print("go", file=_pipe(process.stdin), flush=True)
                for figure, value in _answer(name, process).items():
                    found[name].setdefault(figure, []).append(value)
    return found


def order(contenders: Iterable[str], turn: int) -> list[str]:
    """Return the order of a round: every second one is reversed, so that none always runs after the same other."""
    names = list(contenders)
    return names[::-1] if turn % 2 else names


async def take_turns(turn: Callable[[], Awaitable[Figures]]) -> None:
    """Measure a turn for each line of standard input, as the contender's side of :func:`by_turns`."""
    print(json.dumps({}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await turn()), flush=True)


def cpu_s() -> float:
    """Return the CPU seconds of this process and all its descendants, running or ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() + ended.ru_utime + ended.ru_stime
    for process in family(os.getpid())[1:]:
        with suppress(OSError):  # it has ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[_USER_TIME : _CHILD_SYSTEM_TIME + 1])) / os.sysconf("SC_CLK_TCK")
    return seconds


def memory(pid: int) -> int:
    """Return the memory (PSS) of a process and its descendants in bytes; 0 if the system does not tell."""
    total = 0
    for process in family(pid):
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _turn(work: Callable[[], object], clock: Callable[[], float]) -> float:
    work()
    times: list[float] = []
    until = clock() + _TURN_MS / 1000
    while not times or clock() < until:
        start = clock()
        work()
        times.append(1000 * (clock() - start))
    return median(times)


def _launch(
    arguments: Sequence[str], environment: Mapping[str, str] | None, code: Code | None = None
) -> subprocess.Popen[str]:
    # Without the user's AWS account, and with compiled modules like those of an installed package.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return subprocess.Popen(
        [code.python if code else sys.executable, *arguments], cwd=code.folder if code else None, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**kept, **nowhere, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
    )  # fmt: skip


@contextmanager
def _waiting(arguments: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[subprocess.Popen[str]]:
    process = _launch(arguments, environment)
    try:
        yield process
    finally:
        process.communicate()  # closes its input, which ends it


def _answer(name: str, process: subprocess.Popen[str]) -> Figures:
    line = _pipe(process.stdout).readline()
    if not line:
        raise RuntimeError(f"{name} has ended before its turn")
    figures: Figures = json.loads(line)
    return figures


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # noqa: S101  # for mypy: it is a pipe
    return stream


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Yield a list with the peak memory of a process and its descendants during the context, in bytes."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            peak[0] = max(peak[0], memory(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join()


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for process in found:
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                with suppress(OSError):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found
