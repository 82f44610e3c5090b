"""Signals that end a command: kept as state, because Python drops the exception of a signal in a finalizer."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

_AGAIN_S = 0.05


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
        """Turn SIGTERM and SIGINT into a KeyboardInterrupt in the ``with`` block, so that context managers are closed.

        SIGINT stays ignored where it is: a shell starts background processes so.
        """
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        before = {number: signal.signal(number, self._hear) for number in numbers}
        hook = sys.unraisablehook

        def repeat(unraisable: sys.UnraisableHookArgs) -> None:
            if self.number is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
                hook(unraisable)
                return
            # Not from here: this exception would be dropped, too.
            main = threading.main_thread().ident or 0
            self._again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, self.number))
            self._again.daemon = True
            self._again.start()

        sys.unraisablehook = repeat
        try:
            yield
        finally:
            if self._again is not None:
                self._again.cancel()
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    def forgive(self, number: signal.Signals) -> None:
        """Forget this signal: it is the regular end of the command."""
        if self.number == number:
            self.number = None

    def _hear(self, number: int, _: object) -> NoReturn:
        self.number = self.number or signal.Signals(number)
        raise KeyboardInterrupt


interruption: ContextVar[Interruption] = ContextVar("interruption")
"""That of the command that runs."""
