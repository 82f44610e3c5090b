"""The plans of ``python -m bench scale``: do ``plan``, ``commit`` and ``status`` take more memory for more rows?

The source is a table of paths that all lead to one map, whose state is read for each row. One part is run. The
manifests of all others are copies of its manifest with another number: ``commit`` and ``status`` read footers only.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.measure import run_process

if TYPE_CHECKING:
    from bench.measure import Usage
    from bench.tables import Bench

_COUNTS, _QUICK_COUNTS = (100_000, 1_000_000), (200,)
_PARTS = 10
"""The parts of the smaller plan; the parts of the larger one have as many rows."""
_FOOTER = b"async-maps-part"
_COLUMNS = {
    "rows": ",", "parts": ",", "plan s": ".1f", "plan CPU us/row": ".1f", "plan peak MB": ",.0f",
    "list bytes/row": ".1f", "status s": ".2f", "status peak MB": ",.0f", "commit s": ".2f", "commit peak MB": ",.0f",
}  # fmt: skip


def add_table(bench: Bench) -> None:
    """Measure plans, and print the table."""
    counts = _QUICK_COUNTS if bench.quick else _COUNTS
    size = counts[0] // _PARTS
    table = bench.table(f"Plans in a folder, of a table of paths, {size:,} rows a part", _COLUMNS)
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder:
            table.add(**_measured(Path(folder), count, size))
    bench.publish()


def _measured(folder: Path, count: int, size: int) -> dict[str, Any]:
    np.save(folder / "map.npy", np.zeros((8, 8), np.float32))
    with (folder / "maps.csv").open("w") as rows:
        rows.write("name,path\n")
        rows.writelines(f"{number // 1000:04}/{number:07},{folder / 'map.npy'}\n" for number in range(count))
    place = folder / "plan"
    planned = _run("plan", folder / "maps.csv", folder / "overlays", "--to", place, "--part-size", size, "--quiet")
    document = json.loads((place / "plan.json").read_text())
    lists = [*(place / document["id"] / "parts").iterdir()]
    _write_manifests(place / document["id"], document["parts"], folder / "map.npy", size)
    status, committed = (_run(command, place, "--quiet") for command in ("status", "commit"))
    return {
        "rows": count,
        "parts": document["parts"],
        "plan s": planned.wall_s,
        "plan CPU us/row": 1e6 * planned.cpu_s / count,
        "plan peak MB": planned.peak_bytes / 1e6,
        "list bytes/row": sum(file.stat().st_size for file in lists) / count,
        "status s": status.wall_s,
        "status peak MB": status.peak_bytes / 1e6,
        "commit s": committed.wall_s,
        "commit peak MB": committed.peak_bytes / 1e6,
    }


def _run(*arguments: object) -> Usage:
    return run_process("-m", "async_maps", *map(str, arguments))


def _write_manifests(place: Path, parts: int, file: Path, size: int) -> None:
    """Run a plan of one part, and write its manifest for each part of another plan."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name:
        folder = Path(name)
        rows = "".join(f"{number:07},{file}\n" for number in range(size))
        (folder / "maps.csv").write_text(f"name,path\n{rows}")
        _run("plan", folder / "maps.csv", folder / "overlays", "--to", folder / "plan", "--part-size", size, "--quiet")
        _run("run", "--plan", folder / "plan", "--progress", "none", "--quiet")
        (manifest,) = folder.glob("plan/*/done/*")
        table, found = pq.read_table(manifest), pq.read_metadata(manifest).metadata
    footer = json.loads(found[_FOOTER])
    (place / "done").mkdir()
    for part in range(1, parts + 1):
        told = json.dumps(footer | {"plan": place.name, "part": part, "digest": f"{part:064x}"})
        data = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_FOOTER: told.encode()}), data, compression="zstd")
        (place / "done" / f"{part:07}.0.parquet").write_bytes(data.getvalue())
