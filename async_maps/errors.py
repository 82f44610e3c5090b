"""The errors of this package, as a tree.

::

    AsyncMapsError
    ├── InputValidationError (also ValueError)   an array that is no activation map
    ├── SettingsError (also ValueError)          a setting, flag or file that makes no sense
    ├── SourceError                              a source that is not there or holds no maps
    ├── ManifestError                            a manifest that cannot be read, written or used here
    ├── StoreError                               the store refuses or cannot be reached: the run ends
    │   └── ObjectError                          the store refuses one object: that map fails, the run goes on
    │       ├── TransientError                   ... now; it may take it later
    │       └── ExistsError                      ... because there is one of that key
    ├── MapFailedError                           raised by ``Pipeline.put``: carries the ``Failure``
    ├── TooManyFailuresError                     a run that passed ``max_failures``
    ├── PipelineClosedError                      the pipeline is closed, or was closed under the caller
    ├── PipelineFullError                        ``Pipeline.put_nowait`` finds no room at this moment
    ├── WorkerError                              a worker process could not start or died
    ├── ServerError                              the demo's S3 server did not start (in :mod:`async_maps.demo.seaweed`)
    └── MissingExtraError                        an optional dependency that is not installed

One map's failure is data, a :class:`~async_maps.outcomes.Failure`; an error ends a call or a run.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from async_maps.outcomes import Failure


class AsyncMapsError(Exception):
    """The root: ``except AsyncMapsError`` catches everything that this package raises on purpose.

    Attributes:
        report: what was done before the error: the :class:`~async_maps.Report` of a run, the
            :class:`~async_maps.Verification` of a verification or repair, else None.
    """

    report: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and unpickled without a call of __init__, whose arguments a subclass chooses.
        return _rebuilt, (type(self), self.args), self.__dict__


class InputValidationError(AsyncMapsError, ValueError):
    """An array that is no activation map; the message names the cause and the first bad index."""


class SettingsError(AsyncMapsError, ValueError):
    """A setting, argument, flag or file that cannot be used; the message names it, the value and what is expected."""


class SourceError(AsyncMapsError):
    """A source that does not exist, cannot be listed or holds no activation map."""


class ManifestError(AsyncMapsError):
    """A manifest that cannot be opened, belongs to something else, or can no longer be written."""


class StoreError(AsyncMapsError):
    """The store refuses all objects or cannot be reached: no bucket, wrong credentials, no connection."""


class ObjectError(StoreError):
    """The store refuses one object, and may take others."""


class TransientError(ObjectError):
    """The store cannot take an object now; the upload is retried.

    Args:
        message: what happened, in one sentence.

    Attributes:
        slow_down: whether the store asks for fewer requests.
    """

    def __init__(self, message: str, *, slow_down: bool = False) -> None:
        super().__init__(message)
        self.slow_down = slow_down


class ExistsError(ObjectError):
    """An object of that key exists already, and is not replaced.

    Args:
        message: what happened, in one sentence.

    Attributes:
        same: whether that object has the bytes that were to be stored.
        etag: the store's tag of that object, without quotes; None if the store gives none.
    """

    def __init__(self, message: str, *, same: bool, etag: str | None) -> None:
        super().__init__(message)
        self.same = same
        self.etag = etag


class MapFailedError(AsyncMapsError):
    """The map that the caller waits for failed; raised by ``Pipeline.put``.

    Attributes:
        failure: the name, source, stage and reason.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class TooManyFailuresError(AsyncMapsError):
    """A run stopped because more maps failed than ``max_failures`` allows."""


class PipelineClosedError(AsyncMapsError):
    """The pipeline is not open, or was closed before the map was uploaded."""


class PipelineFullError(AsyncMapsError):
    """The pipeline has no room for another map now; the message names what is full."""


class WorkerError(AsyncMapsError):
    """A worker process could not be started, or died."""


class MissingExtraError(AsyncMapsError):
    """An optional dependency is not installed; the message names the extra to install.

    Args:
        what: the feature that needs it, as the subject of a sentence.
        extra: the name of the extra.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install '.[{extra}]' where this package was cloned")


@contextmanager
def require_extra(what: str, extra: str) -> Iterator[None]:
    """Import an optional dependency in the ``with`` block, or raise a MissingExtraError of these arguments."""
    try:
        yield
    except ImportError:
        raise MissingExtraError(what, extra) from None


def translate_os_error(error: Exception) -> str:
    """Return one sentence for an error of a file, without its path; of another error, its own message."""
    if isinstance(error, FileNotFoundError):
        return "the file is not there: it was moved or deleted, or a symbolic link leads nowhere"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a symbolic link that leads back to itself"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


def _rebuilt(kind: type[AsyncMapsError], arguments: tuple[Any, ...]) -> AsyncMapsError:
    return kind.__new__(kind, *arguments)
