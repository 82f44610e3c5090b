"""The statistics of all lanes together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from async_maps.stages.meters import StageStatistics
from async_maps.stages.rate_limiter import Pace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_NAMES = ("fetch", "colorize", "encode", "upload")
_NOTHING = StageStatistics(0, 0.0, 0, 0.0)
_FULL = 0.9
"""How full a queue is if the stage behind it is the slowest."""
_NO_PACE = Pace(0, None, 0, "")


@dataclass(frozen=True)
class State:
    """What a lane has told of its stages last; its counts include those of its earlier processes.

    Attributes:
        stages: each stage by its name.
        pace: how its uploads go.
        waiting_since: the local time since which no store has answered it; empty if they do.
        life: changes with each sign of life.
        is_stuck: whether the store accepts none of its maps now, so that it waits for what others find.
        before: what its earlier processes have done.
    """

    stages: dict[str, StageStatistics] = field(default_factory=dict)
    pace: Pace = _NO_PACE
    waiting_since: str = ""
    life: object = ()
    is_stuck: bool = False
    before: State | None = None

    @property
    def waits_for(self) -> str:
        """What its maps wait for, as in :class:`~async_maps.stages.meters.LaneStatistics`."""
        if self.waiting_since or self.is_stuck:
            return "store"
        if self.pace.rate is not None:
            return "rate"
        return next((name for name in reversed(_NAMES) if name in self.stages and self.stages[name].queue >= _FULL), "")

    @property
    def has_worked(self) -> bool:
        """Whether a map has passed one of its stages."""
        return any(stage.maps for stage in self.stages.values())

    def now(self, told: Sequence[Any]) -> State:
        """Return the state that the process has told, with what earlier ones have done."""
        stages, pace, waiting_since, life, is_stuck = told
        named = {name: StageStatistics(*stage) for name, stage in stages.items()}
        found = State(named, Pace(*pace), waiting_since, life, is_stuck)
        before = self.before
        if before is None:
            return found
        added = {name: _sum([found.stages[name], before.stages[name]]) for name in found.stages if before.stages}
        retries, reason = found.pace.retries + before.pace.retries, found.pace.retry_reason or before.pace.retry_reason
        pace = found.pace._replace(retries=retries, retry_reason=reason)
        return replace(found, stages=added or found.stages, pace=pace, before=before)

    def ended(self, stored: int = 0) -> State:
        """Return the state after the end of the process, with the workers and the limit that the next one will have.

        A process that was killed has not told all that it did. The maps that it has ``stored`` have passed all stages
        but the first.
        """
        ended = {
            name: replace(stage, queue=0.0, maps=max(stage.maps, 0 if name == "fetch" else stored))
            for name, stage in self.stages.items()
        }
        done = State(ended, self.pace._replace(rate=None), "", self.life)
        return replace(done, before=done.without_workers())

    def without_workers(self) -> State:
        """Return what a process has done, without what it does."""
        idle = {name: StageStatistics(0, stage.busy_s, stage.maps, 0.0) for name, stage in self.stages.items()}
        return State(idle, self.pace._replace(limit=0, rate=None), "", self.life)


def add_stages(parts: Iterable[dict[str, StageStatistics]]) -> dict[str, StageStatistics]:
    """Return the statistics of several sets of stages together; how full a queue is, is the mean."""
    found = [part for part in parts if part]
    return {name: _sum([part[name] for part in found]) for name in _NAMES}


def add_paces(paces: Sequence[Pace], rates: Sequence[float | None]) -> Pace:
    """Return how the uploads of several lanes go together.

    ``rates`` are those of the lanes that have maps. Their sum is known only if all of them delay uploads.
    """
    known = [rate for rate in rates if rate is not None]
    rate = sum(known) if known and len(known) == len(rates) else None
    reason = next((pace.retry_reason for pace in paces if pace.retry_reason), "")
    return Pace(sum(pace.limit for pace in paces), rate, sum(pace.retries for pace in paces), reason)


def _sum(stages: Sequence[StageStatistics]) -> StageStatistics:
    if not stages:
        return _NOTHING
    running = [stage.queue for stage in stages if stage.workers]
    return StageStatistics(
        sum(stage.workers for stage in stages),
        sum(stage.busy_s for stage in stages),
        sum(stage.maps for stage in stages),
        sum(running) / max(1, len(running)),
    )
