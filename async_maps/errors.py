"""The errors of this package, as a tree.

::

    AsyncMapsError
    ├── InputValidationError (also ValueError)   the array is not an activation map
    ├── SettingsError (also ValueError)          a setting, option or settings file is invalid
    ├── SourceError                              the source does not exist, or contains no maps
    ├── ManifestError                            the manifest cannot be read, written or used here
    ├── PlanError                                a plan cannot be used, or not by this version
    ├── StoreError                               the store refuses all objects or cannot be reached; the run ends
    │   └── ObjectError                          the store refuses one object; that map fails, the run continues
    │       ├── TransientError                   the refusal may be temporary
    │       └── ExistsError                      an object with that key exists
    ├── MapFailedError                           raised by ``Pipeline.put``; has the ``Failure``
    ├── TooManyFailuresError                     a run exceeded ``max_failures``
    ├── PipelineClosedError                      the pipeline is not open, or was closed during the call
    ├── PipelineFullError                        ``put_nowait`` or ``reserve`` found no room
    ├── WorkerError                              a worker process could not start, or died
    ├── ShortageError                            the machine has no thread, process, file, memory or disk space left
    ├── ServerError                              the demo's S3 server did not start (:mod:`async_maps.demo.seaweed`)
    └── MissingExtraError                        an optional dependency is not installed

The failure of one map is data, a :class:`~async_maps.outcomes.Failure`; an error ends a call or a run.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_maps.machine.shortage import describe_shortage, is_out_of_files
from async_maps.masking import mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from async_maps.outcomes import Failure

_MAY_PASS = {
    errno.EAGAIN, errno.EBUSY, errno.EDQUOT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO, errno.ENETDOWN,
    errno.ENETUNREACH, errno.ENFILE, errno.ENODEV, errno.ENXIO,
    errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC, errno.ENOTCONN, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip
"""Errors of the operating system after which the same call may succeed later, besides those of connections."""


WHOLE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO}
"""Errors of the operating system that every file of a disk meets."""

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class AsyncMapsError(Exception):
    """The base class of all errors that this package raises on purpose.

    Args:
        message: what happened and what to do, in one sentence.
        may_pass: whether the same call may succeed later without a change by the user.

    Attributes:
        report: the progress before the error: the :class:`~async_maps.Report` of a run, or the
            :class:`~async_maps.Verification` of a verification or repair; else None.
    """

    report: Any = None

    def __init__(self, message: str = "", *, may_pass: bool = False) -> None:
        super().__init__(mask(message))
        self._may_pass = may_pass

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed later without a change by the user: the store is down, the disk is full.

        The cause (``__cause__``) decides, too: a connection that is refused, a disk without space.
        """
        cause = self.__cause__
        if isinstance(cause, AsyncMapsError):
            return self._may_pass or cause.may_pass
        is_temporary = isinstance(cause, OSError) and cause.errno in _MAY_PASS
        return self._may_pass or is_temporary or isinstance(cause, ConnectionError | TimeoutError)

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have other arguments of __init__: copy and unpickle without calling it.
        return _rebuilt, (type(self), self.args), self.__dict__


class InputValidationError(AsyncMapsError, ValueError):
    """An array is not an activation map; the message names the cause and the first bad index."""


class SettingsError(AsyncMapsError, ValueError):
    """A setting, argument, option or settings file is invalid; the message has its name, value and the valid values."""


class SourceError(AsyncMapsError):
    """A source does not exist, cannot be listed, or contains no activation map."""


class ManifestError(AsyncMapsError):
    """A manifest cannot be opened or written, or belongs to another destination."""


class PlanError(AsyncMapsError):
    """The plan cannot be read, or not be used here: it does not exist, or another version has made it."""


class StoreError(AsyncMapsError):
    """The store refuses all objects or cannot be reached: no bucket, wrong credentials, no connection."""


class ObjectError(StoreError):
    """The store refuses one object, and may accept others."""


class TransientError(ObjectError):
    """The store cannot accept an object now; the upload is retried.

    Args:
        message: what happened, in one sentence.

    Attributes:
        slow_down: whether the store asks for fewer requests.
        timed_out: whether the store did not answer in time, so that fewer uploads should run concurrently.
    """

    def __init__(self, message: str, *, slow_down: bool = False, timed_out: bool = False) -> None:
        super().__init__(message, may_pass=True)
        self.slow_down = slow_down
        self.timed_out = timed_out


class ExistsError(ObjectError):
    """An object with that key exists, and is not replaced.

    Args:
        message: what happened, in one sentence.

    Attributes:
        same: whether that object has the same bytes.
        etag: the store's tag of that object, without quotes; None if the store has none.
    """

    def __init__(self, message: str, *, same: bool, etag: str | None) -> None:
        super().__init__(message)
        self.same = same
        self.etag = etag


class MapFailedError(AsyncMapsError):
    """The map failed; raised by ``Pipeline.put``.

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
    """The pipeline has no room for another map now; the message names what is full.

    Args:
        message: what happened, in one sentence.

    Attributes:
        retry_after_s: the seconds after which the maps of the pipeline will be done at the measured throughput.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerError(AsyncMapsError):
    """A worker process could not be started, or died."""


class ShortageError(AsyncMapsError):
    """The machine has no thread, process, file, memory or disk space left; the message names the limit to raise."""


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
    """Turn an ImportError in the ``with`` block into a MissingExtraError with these arguments."""
    try:
        yield
    except ImportError:
        raise MissingExtraError(what, extra) from None


@contextmanager
def naming_shortages() -> Iterator[None]:
    """Turn an error in the ``with`` block that a shortage of the machine caused into a ShortageError."""
    try:
        yield
    except Exception as error:
        named = name_shortage(error)
        if named is error:
            raise
        raise named from error


def name_shortage(error: BaseException) -> BaseException:
    """Return a ShortageError for an error that a shortage of the machine caused, and that is not ours; else itself."""
    sentence = None if isinstance(error, AsyncMapsError) else describe_shortage(error)
    return error if sentence is None else ShortageError(sentence)


def shortage_of_files(error: BaseException) -> ShortageError | None:
    """Return the error that ends the run if no file can be opened anymore, which says nothing about a map; else None.

    That may be what the decoder process reports.
    """
    if isinstance(error, ShortageError):
        return error
    return ShortageError(describe_shortage(error) or str(error)) if is_out_of_files(error) else None


def translate_os_error(error: Exception) -> str:
    """Return one sentence for an operating system error, without the path; for other errors, their own message."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist: it was moved or deleted, or it is a broken symbolic link"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a symbolic link points back to itself"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {system_reason(error)}"
    return str(error)


def system_reason(error: OSError) -> str:
    """Return the system's words for an error; the limit to raise if no file can be opened or no memory is left."""
    return (describe_shortage(error) if error.errno in _SHORTAGES else None) or error.strerror or str(error)


def _rebuilt(kind: type[AsyncMapsError], arguments: tuple[Any, ...]) -> AsyncMapsError:
    return kind.__new__(kind, *arguments)
