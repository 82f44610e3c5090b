"""The whole job, from files to a real S3 (SeaweedFS on loopback): ours, and the scripts that people have.

Each contender is a process of its own. Its CPU time includes its children's and not the server's; its wall time begins
before the interpreter and ends after it. The Kolena example takes seconds a map: it gets a few maps, and its figures
are per map all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from async_maps import seaweed
from bench.data import write_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FEW = 2
_THREADS = 16


def ours(folder: Path, bucket: str, *options: str) -> None:
    """The command."""
    from async_maps.cli import main

    main(["run", str(folder), f"s3://{bucket}/ours", "--progress", "none", "--manifest", f"{folder}.sqlite", *options])


def opencv_boto3(folder: Path, bucket: str) -> None:
    """OpenCV's jet and PNG encoder, boto3's upload_fileobj, in threads."""
    import boto3
    import cv2

    client = boto3.client("s3")
    alpha = (255 / (1 + np.exp((127.5 - np.arange(256)) / 8))).astype(np.uint8)

    def one(path: Path) -> None:
        intensity = np.rint(np.load(path) * 255).astype(np.uint8)
        image = cv2.cvtColor(cv2.applyColorMap(intensity, cv2.COLORMAP_JET), cv2.COLOR_BGR2BGRA)
        image[..., 3] = alpha[intensity]
        png = cv2.imencode(".png", image)[1].tobytes()
        client.upload_fileobj(io.BytesIO(png), bucket, f"opencv/{path.stem}.png")

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(one, sorted(folder.glob("*.npy"))))


def kolena_example(folder: Path, bucket: str) -> None:
    """The tutorial's steps 1 and 2, one map after the other."""
    import boto3
    from kolena.workflow.visualization import colorize_activation_map, encode_png

    client = boto3.client("s3")
    for path in sorted(folder.glob("*.npy"))[:_FEW]:
        png = encode_png(colorize_activation_map(np.load(path)), mode="RGBA")
        client.upload_fileobj(png, bucket, f"kolena/{path.stem}.png")


CONTENDERS: dict[str, Callable[[Path, str], None]] = {
    "async_maps": lambda folder, bucket: ours(folder, bucket, "--overwrite"),
    "async_maps --png rgba": lambda folder, bucket: ours(folder, bucket, "--overwrite", "--png", "rgba"),
    "async_maps --workers 0": lambda folder, bucket: ours(folder, bucket, "--overwrite", "--workers", "0"),
    f"OpenCV + boto3, {_THREADS} threads": opencv_boto3,
    "Kolena's example": kolena_example,
}
if find_spec("kolena") is None:
    # Its client has no release for Python 3.13 yet.
    del CONTENDERS["Kolena's example"]


def measure(name: str, folder: Path, bucket: str, count: int) -> dict[str, float]:
    """One run of a contender: seconds of wall and CPU per map."""
    maps = _FEW if name == "Kolena's example" else count
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bench.job", "--run", name, str(folder), bucket],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} failed")
    wall = time.perf_counter() - started
    return {"wall_s": wall / maps, "cpu_s": (usage.ru_utime + usage.ru_stime) / maps}


def main(arguments: Sequence[str]) -> None:
    """Run every contender by turns and print their medians."""
    parser = argparse.ArgumentParser(prog="python -m bench job", description=__doc__)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512, help="side of the square maps, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    options = parser.parse_args(arguments)

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with (
        tempfile.TemporaryDirectory(prefix="async-maps-bench-") as scratch,
        seaweed.serve(Path(scratch) / "server") as server,
        seaweed.in_environment(server),
    ):
        asyncio.run(seaweed.create_bucket(server, "bench"))
        folder = Path(scratch) / "maps"
        write_maps(folder, options.maps, options.size)
        warm_up = Path(scratch) / "warm-up"
        write_maps(warm_up, _FEW, 32)
        for name in CONTENDERS:
            measure(name, warm_up, "bench", _FEW)
        for _ in range(options.rounds):
            for name in CONTENDERS:
                runs[name].append(measure(name, folder, "bench", options.maps))
    _report(runs, options)


def _report(runs: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    base = statistics.median(run["wall_s"] for run in runs["async_maps"])
    rows = []
    for name, measured in runs.items():
        wall = statistics.median(run["wall_s"] for run in measured)
        cpu = statistics.median(run["cpu_s"] for run in measured)
        rows.append({
            "name": name, "maps_per_s": 1 / wall, "cpu_ms_per_map": cpu * 1e3, "times_our_wall": wall / base,
            "spread": [min(1 / run["wall_s"] for run in measured), max(1 / run["wall_s"] for run in measured)],
        })  # fmt: skip
    print(f"{options.maps} maps of {options.size}x{options.size} float32, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{'':30}{'maps/s':>10}{'CPU ms/map':>12}{'x our time':>12}")
    for row in rows:
        print(f"{row['name']:30}{row['maps_per_s']:10.1f}{row['cpu_ms_per_map']:12.2f}{row['times_our_wall']:12.1f}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = ("async-maps", "numpy", "numba", "isal", "aioboto3", "boto3", "opencv-python-headless", "pillow")
    document = {
        "bench": "job", "maps": options.maps, "size": options.size, "rounds": options.rounds, "rows": rows,
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "commit": commit, "versions": {package: version(package) for package in packages},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "job.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    _, _, chosen, place, target = sys.argv
    CONTENDERS[chosen](Path(place), target)
