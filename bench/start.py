"""How long does the command take to answer, and to the first PUT, with and without compiled kernels?

Each row is a whole process. The sink takes the time when the first PUT is complete; the command ends a little later. A
cold cache is an empty folder for numba, as on a machine where the command has never run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import sink
from bench.data import write_maps
from bench.measure import parser, run_command, run_process
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.measure import Figures, Usage

_SIZE = 512
_COLUMNS = {"": "", "wall s": ".2f", "CPU s": ".2f", "first PUT s": ".2f", "peak MB": ",.0f", "rounds": ""}


class _Launcher:
    """Starts the command for one map.

    Args:
        place: a folder for the map, the manifest and numba's caches.
        server: the sink that gets the overlay.
    """

    def __init__(self, place: Path, server: sink.Sink) -> None:
        self._place = place
        self._server = server
        self._cache = place
        write_maps(place / "maps", 1, _SIZE)

    def cold(self) -> Figures:
        """Run with an empty cache of kernels."""
        self._cache = Path(tempfile.mkdtemp(dir=self._place))
        return self.warm()

    def warm(self) -> Figures:
        """Run with the kernels that the last cold start compiled."""
        environment = {**self._server.environment(), "NUMBA_CACHE_DIR": str(self._cache)}
        usage = run_command(self._place / "maps", self._place / "start.sqlite", environment=environment)
        return {**_figures(usage), "first PUT s": self._server.counts()["last_put"] - usage.started}


def _python(*arguments: str) -> Figures:
    return _figures(run_process(*arguments))


def _figures(usage: Usage) -> Figures:
    return {"wall s": usage.wall_s, "CPU s": usage.cpu_s, "peak MB": usage.peak_bytes / 1e6}


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench start``."""
    options = parser("start", __doc__).parse_args(arguments)
    bench = Bench("start", options.quick)
    rounds, cold_rounds = (1, 1) if options.quick else (4, 1)
    one_map = f"async-maps run, one map of {_SIZE}x{_SIZE}"
    contenders: dict[str, Callable[[_Launcher], Figures]] = {
        f"{one_map}, cold cache": _Launcher.cold,
        f"{one_map}, warm cache": _Launcher.warm,
        "async-maps --help": lambda _: _python("-m", "async_maps", "--help"),
        'python -c "import numpy, cv2, boto3"': lambda _: _python("-c", "import numpy, cv2, boto3"),
    }
    table = bench.table("Whole processes, from launch", _COLUMNS)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as place, sink.serve() as server:
        launcher = _Launcher(Path(place), server)
        for turn in range(rounds):
            for name, launch in contenders.items():
                if launch is _Launcher.cold and turn >= cold_rounds:
                    continue
                for figure, value in launch(launcher).items():
                    found[name].setdefault(figure, []).append(value)
    for name, figures in found.items():
        table.add(**{"": name, **figures, "rounds": len(figures["wall s"])})
    bench.publish()
