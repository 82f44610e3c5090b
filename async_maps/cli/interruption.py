"""Signals that end a command: kept as state, because Python drops the exception of a signal in a finalizer."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_AGAIN_S = 0.05
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_signals() -> None:
    """Let signals wait until :func:`release_signals`: the imports of a command take most of its first second."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def release_signals() -> None:
    """Hear the signals that wait, and all later ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def signals_to_hear() -> list[signal.Signals]:
    """Return the signals that end a command: SIGTERM, and SIGINT and SIGHUP unless they are ignored.

    A shell ignores SIGINT for a command in the background, and ``nohup`` ignores SIGHUP.
    """
    others = (signal.SIGINT, signal.SIGHUP)
    return [signal.SIGTERM, *(number for number in others if signal.getsignal(number) is not signal.SIG_IGN)]


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore the handlers of signals at the end of the ``with`` block: a closed loop leaves others."""
    before = {number: signal.getsignal(number) for number in signals_to_hear()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruption:
    """The first signal that has asked the command to end.

    Attributes:
        number: the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._again: threading.Timer | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Turn signals into a KeyboardInterrupt in the ``with`` block, so that context managers are closed."""
        hook = sys.unraisablehook

        def repeat(unraisable: sys.UnraisableHookArgs) -> None:
            if self.number is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
                hook(unraisable)
                return
            # Not from here: this exception would be dropped, too.
            main = threading.main_thread().ident or 0
            self._again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM))
            self._again.daemon = True
            self._again.start()

        with handlers_restored():
            for number in signals_to_hear():
                signal.signal(number, self._hear)
            sys.unraisablehook = repeat
            try:
                yield
            finally:
                if self._again is not None:
                    self._again.cancel()
                sys.unraisablehook = hook

    def forgive(self, number: signal.Signals) -> None:
        """Forget this signal: it is the regular end of the command."""
        if self.number == number:
            self.number = None

    def _hear(self, number: int, _: object) -> None:
        if self.number is not None and number == signal.SIGHUP:
            # A terminal that closes sends it twice: also through its shell.
            return
        self.number = self.number or signal.Signals(number)
        raise KeyboardInterrupt


interruption: ContextVar[Interruption] = ContextVar("interruption")
"""That of the command that runs."""
