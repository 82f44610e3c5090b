"""Saves the progress of a run in its manifest, so that another process can tell how far it is."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, get_args

from anyio import CancelScope

from async_maps.concurrency.tasks import OrderlyTask
from async_maps.errors import ManifestError, PipelineClosedError
from async_maps.manifest.manifest import Select
from async_maps.manifest.samples import LastRun, Sample
from async_maps.sources import place_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from async_maps.manifest.prune import Selection
    from async_maps.manifest.recorder import Recorder
    from async_maps.report import Report
    from async_maps.stages.meters import Statistics

_INTERVAL_S = 5.0


@asynccontextmanager
async def sampled(
    recorder: Recorder | None,
    selection: Selection,
    report: Report,
    statistics: Callable[[], Statistics],
    total: Callable[[], int | None],
) -> AsyncIterator[None]:
    """Save the progress inside the ``with`` block: at its start, every 5 seconds, and how it ends.

    Repairs and runs without a manifest are not sampled.
    """
    if recorder is None or selection.mode not in get_args(Select):
        yield
        return
    run = LastRun(_now(), place_of(selection.source), selection.mode, selection.limit)
    earlier, earlier_at = statistics(), monotonic()

    async def save() -> None:
        nonlocal earlier, earlier_at
        now, now_at = statistics(), monotonic()
        stages = {
            name: {
                "busy": _share(stage.busy_s - earlier.stages[name].busy_s, (now_at - earlier_at) * stage.workers),
                "queue": round(stage.queue, 3),
                "workers": stage.workers,
            }
            for name, stage in now.stages.items()
        }
        if now.upload_rate is not None:
            stages["upload"]["rate"] = round(now.upload_rate, 1)
        earlier, earlier_at = now, now_at
        seen = report.seen
        count = seen if run.complete and report.limit is None else total()
        sample = Sample(
            run.started_at, _now(), count, max(seen + now.in_flight, report.surveyed), report.surveyed,
            report.uploaded, report.skipped, report.failed, now.retries, now.upload_limit, stages,
        )  # fmt: skip
        # What the run itself writes to the manifest raises the same error.
        with suppress(ManifestError):
            await recorder.keep_sample(run, sample)

    async def save_regularly() -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await save()

    await save()
    saving = OrderlyTask(save_regularly)
    try:
        yield
        run = run._replace(complete=not report.drained)
    except Exception as error:
        if not isinstance(error, PipelineClosedError):
            run = run._replace(error={"kind": type(error).__name__, "message": str(error)})
        raise
    finally:
        await saving.cancel()
        run = run._replace(ended_at=_now())
        with CancelScope(shield=True):
            await save()


def _share(part: float, whole: float) -> float:
    return round(min(1.0, part / whole), 3) if whole > 0 else 0.0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
