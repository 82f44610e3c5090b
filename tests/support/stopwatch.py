"""Time that a test may limit sharply, also on a busy machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Self

SLACK_S = 3.0
"""What closing may add to ``drain_timeout_s``: 1 s on an idle machine; the work itself takes longer on a slow one."""
_INTERVAL_S = 0.1


class Stopwatch:
    """Measures time, without that in which threads of this process and its children were ready to run and had no CPU.

    Linux counts this time for each thread, so on an idle machine this is the time of a clock. A thread samples it,
    because it cannot be read after the end of a thread.
    """

    def __init__(self) -> None:
        self._denied_ns: dict[str, tuple[int, int]] = {}
        self._ended = Event()
        self._thread = Thread(target=self._sample_until_ended, name="stopwatch")

    def __enter__(self) -> Self:
        self._sample()
        self._began_at = monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def elapsed_s(self) -> float:
        """The seconds since the beginning of the ``with`` block."""
        elapsed_s = monotonic() - self._began_at
        self._sample()
        return elapsed_s - sum(last - first for first, last in tuple(self._denied_ns.values())) / 1e9

    def _sample(self) -> None:
        waiting = [str(os.getpid())]
        while waiting:
            place = f"/proc/{waiting.pop()}/task"
            with suppress(OSError):
                for task in os.listdir(place):
                    with suppress(OSError):
                        waiting += Path(f"{place}/{task}/children").read_text().split()
                        denied = int(Path(f"{place}/{task}/schedstat").read_text().split()[1])
                        # A thread that started later has waited since.
                        first = 0 if self._thread.ident else denied
                        self._denied_ns[task] = (self._denied_ns.get(task, (first, 0))[0], denied)

    def _sample_until_ended(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._sample()
