"""Complete programs to run, read and copy (extra ``examples``). The package does not import them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cyclopts

from async_maps.errors import AsyncMapsError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def libraries(module: str, extra: str = "examples") -> Iterator[None]:
    """Import the libraries of an example in the ``with`` block.

    Args:
        module: the ``__name__`` of the example: if it is the program that runs, an error ends it with one line.
        extra: the extra that installs the libraries.

    Raises:
        MissingExtraError: a library is not installed.
        AsyncMapsError: a library cannot be imported, such as a torchvision beside a PyTorch that is not its own.
    """
    with exit_on_error(module):
        try:
            yield
        except ModuleNotFoundError:
            raise MissingExtraError("this example", extra) from None
        except (ImportError, OSError, RuntimeError) as error:
            raise AsyncMapsError(f"a library of this example cannot be imported: {error}") from error


@contextmanager
def exit_on_error(module: str = "__main__") -> Iterator[None]:
    """Print an error of this package as one line and exit with 1, if ``module`` is the program that runs."""
    try:
        yield
    except AsyncMapsError as error:
        if module != "__main__":
            raise
        sys.exit(f"error: {error}")


def run_program(main: Callable[..., int]) -> None:
    """Call the main function of an example with the arguments of the command line, and exit with its result."""
    with exit_on_error():
        cyclopts.run(main)
