"""How it is measured: contenders by turns, whole processes with their children, memory.

A contender that is a process of its own runs whole (:func:`run_process`), or waits for its turns (:func:`by_turns`,
and :func:`take_turns` on its side), so that starting it is not measured and rounds of all of them can be interleaved.
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
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

Figures = dict[str, float]

BUCKET = "bench"
"""The bucket of all servers."""

_SAMPLE_S = 0.05
_TURN_MS = 3.0
_USER_TIME, _CHILD_SYSTEM_TIME = 11, 14
"""Where they stand behind the name in /proc/PID/stat: utime, stime, cutime and cstime; see proc(5)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children took.

    Attributes:
        wall_s: from before its start until it had ended.
        cpu_s: user and system time, its children's included.
        peak_bytes: the most memory (PSS) all of them held at once; 0 where the system does not tell.
        output: what it wrote to its standard output.
        started: when it was started, on the monotonic clock.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str
    started: float


def parser(name: str, question: str | None) -> argparse.ArgumentParser:
    """The options that every bench has."""
    options = argparse.ArgumentParser(prog=f"python -m bench {name}", description=question)
    options.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs; no figures to quote")
    return options


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a call, the contenders by turns.

    A turn begins with a call that is not counted, as the others have had the caches meanwhile, then has as many as fit
    into a few milliseconds, at least one; their median is the turn's figure.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, work in contenders.items():
                times[name].append(_turn(work))
    finally:
        if collecting:
            gc.enable()
    return times


def mean_of(contests: Sequence[Sequence[float]]) -> list[float]:
    """Round by round, the mean of several contests."""
    return [sum(figures) / len(figures) for figures in zip(*contests, strict=True)]


def ratio_of(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, one divided by the other."""
    return [first / second for first, second in zip(above, below, strict=True)]


def run_process(*arguments: str, environment: Mapping[str, str] | None = None) -> Usage:
    """Run ``python ARGUMENTS`` to its end.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    process = _launch(arguments, environment)
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
    folder: Path, manifest: Path, *flags: str, environment: Mapping[str, str], resume: bool = False
) -> Usage:
    """Run ``async-maps run FOLDER s3://bench/run FLAGS`` to its end.

    Args:
        folder: of the maps.
        manifest: a new one, in place of what was there, unless the run is to resume.
        flags: of the command.
        environment: leads to the server.
        resume: go on from the manifest.

    Raises:
        RuntimeError: it failed.
    """
    if not resume:
        manifest.unlink(missing_ok=True)
    command = ("run", str(folder), f"s3://{BUCKET}/run", "--manifest", str(manifest), "--progress", "none")
    return run_process("-m", "async_maps", *command, *flags, environment=environment)


def by_turns(
    contenders: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Let processes that :func:`take_turns` have theirs, one after the other, round by round.

    Args:
        contenders: the arguments of Python for each.
        rounds: how many turns each has.
        environment: of all of them.

    Returns:
        for each contender, the figures of all rounds.

    Raises:
        RuntimeError: one of them failed.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_waiting(arguments, environment)) for name, arguments in contenders.items()
        }
        for name, process in started.items():
            _answer(name, process)
        for _ in range(rounds):
            for name, process in started.items():
                print("go", file=_pipe(process.stdin), flush=True)
                for figure, value in _answer(name, process).items():
                    found[name].setdefault(figure, []).append(value)
    return found


async def take_turns(turn: Callable[[], Awaitable[Figures]]) -> None:
    """The contender's side of :func:`by_turns`: measure when it is told to, until its input ends."""
    print(json.dumps({}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await turn()), flush=True)


def cpu_s() -> float:
    """Seconds of CPU time that this process and all below it have taken, those that still run and those that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() + ended.ru_utime + ended.ru_stime
    for process in _family(os.getpid())[1:]:
        with suppress(OSError):  # it has ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[_USER_TIME : _CHILD_SYSTEM_TIME + 1])) / os.sysconf("SC_CLK_TCK")
    return seconds


def memory(pid: int) -> int:
    """Bytes (PSS) that a process and all below it hold, what they share counted once; 0 where nobody tells."""
    total = 0
    for process in _family(pid):
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _turn(work: Callable[[], object]) -> float:
    work()
    times: list[float] = []
    until = time.perf_counter() + _TURN_MS / 1000
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def _launch(arguments: Sequence[str], environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    # No account of the user's; and modules compiled once, as an installed package has them.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**kept, **nowhere, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
    )  # fmt: skip


@contextmanager
def _waiting(arguments: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[subprocess.Popen[str]]:
    process = _launch(arguments, environment)
    try:
        yield process
    finally:
        process.communicate()  # the end of its input ends it


def _answer(name: str, process: subprocess.Popen[str]) -> Figures:
    line = _pipe(process.stdout).readline()
    if not line:
        raise RuntimeError(f"{name} has ended before its turn")
    figures: Figures = json.loads(line)
    return figures


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # noqa: S101  # a pipe, as asked for
    return stream


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """The peak of the memory of a process and all below it, in bytes, while the context lasts."""
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


def _family(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                with suppress(OSError):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found
