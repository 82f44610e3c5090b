"""What a lane and its parent tell each other about maps, as plain tuples for :mod:`async_maps.concurrency.messages`.

Both identify a map by its number. The parent keeps its name and its source, so an outcome does not repeat them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps import errors
from async_maps.errors import AsyncMapsError, StoreError
from async_maps.outcomes import Failure, MapStatistics, Receipt
from async_maps.render.ranges import ValueRange
from async_maps.sources.activation_map import ActivationMap, ArrayHeader
from async_maps.stores.promises import BrokenPromiseError

if TYPE_CHECKING:
    from typing import Any

    from async_maps.outcomes import Outcome

_BYTE = np.dtype(np.uint8)


class Hello(NamedTuple):
    """The first message to a lane.

    Attributes:
        settings: those of the whole pipeline, as plain values.
        parts: the number of lanes that share its sizes and rates.
        destination: the start of all locators.
        credentials: those of the parent, see :func:`async_maps.filesystems.credentials.known_credentials`.
        kernels: the inherited file in memory through which all processes share compiled kernels.
        level: the level of the log messages that the parent handles.
        token: that of the parent's store, see :meth:`async_maps.filesystems.services.tokens.Tokens.known`; None if it
            has none.
    """

    settings: dict[str, Any]
    parts: int
    destination: str
    credentials: list[Any] | None
    kernels: int
    level: int
    token: list[Any] | None


def pack_map(number: int, map_: ActivationMap, value_range: ValueRange) -> tuple[Any, ...]:
    """Return what a lane needs to know of a map in a file."""
    shape = None if map_.header is None else tuple(map_.header.shape)
    spans = value_range.kind, value_range.low, value_range.high
    place = map_.path, map_.part, map_.max_bytes, map_.index
    return number, map_.name, map_.key, *place, shape, map_.maybe_at, spans


def unpack_map(packed: tuple[Any, ...]) -> tuple[int, ActivationMap, ValueRange]:
    """Return the number, the map and its value range. Of its header, only the shape is known."""
    number, name, key, path, part, max_bytes, index, shape, maybe_at, spans = packed
    map_ = ActivationMap(name, name, None, max_bytes, path, part, index=index, maybe_at=maybe_at, key=key)
    map_.header = None if shape is None else ArrayHeader(shape, _BYTE)
    return number, map_, ValueRange(*spans)


def pack_outcome(number: int, outcome: Outcome | AsyncMapsError) -> tuple[Any, ...]:
    """Return the outcome of a map, or the error that ends the whole run."""
    if isinstance(outcome, Receipt):
        return (
            number, outcome.locator, outcome.size, outcome.width, outcome.height, outcome.etag,
            outcome.stored_at.timestamp(), tuple(outcome.statistics), outcome.crc32,
        )  # fmt: skip
    if isinstance(outcome, Failure):
        return number, outcome.stage, outcome.reason, outcome.maybe_stored
    return number, pack_error(outcome)


def unpack_outcome(packed: tuple[Any, ...], map_: ActivationMap) -> Outcome | AsyncMapsError:
    """Return what :func:`pack_outcome` was called with."""
    if len(packed) == 2:
        return unpack_error(packed[1])
    if len(packed) == 4:
        _, stage, reason, maybe_stored = packed
        return map_.failure(stage, reason, maybe_stored=maybe_stored)
    _, locator, size, width, height, etag, stored_at, statistics, crc32 = packed
    return Receipt(
        map_.name, locator, map_.source, map_.fingerprint, size, width, height, etag,
        datetime.fromtimestamp(stored_at, UTC), MapStatistics(*statistics), crc32, map_.file,
    )  # fmt: skip


def pack_error(error: AsyncMapsError) -> tuple[str, str, bool]:
    """Return the kind, the message, and whether it may pass."""
    return type(error).__name__, str(error), error.may_pass


def unpack_error(packed: tuple[str, str, bool]) -> AsyncMapsError:
    """Return an error like the one that was packed; of a kind that only stores know, a StoreError."""
    name, message, may_pass = packed
    kind = BrokenPromiseError if name == BrokenPromiseError.__name__ else getattr(errors, name, StoreError)
    error: AsyncMapsError = kind.__new__(kind)  # subclasses have other arguments of __init__
    AsyncMapsError.__init__(error, message, may_pass=may_pass)
    return error
