"""``python -m bench [NAME] [OPTIONS]`` runs one benchmark or all of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib import import_module

from bench.tables import machine, results

BENCHES = {
    "kernel": "intensities, statistics and colors of a map, against NumPy, OpenCV, matplotlib, Kolena and a copy",
    "channels": "channels reduced to one value per pixel, against NumPy",
    "formats": "reading a map from each file format, against the library of the format",
    "encode": "PNGs in time and bytes, against Pillow and OpenCV; in threads",
    "put": "CPU time of a PUT and PUTs per second, HTTP and TLS, against boto3, aioboto3, obstore, fast-s3 and s5cmd",
    "listing": "CPU time of a key in a listing of S3, against boto3, aioboto3 and obstore",
    "job": "the whole job from files or S3 to a store, against the usual scripts",
    "profile": "CPU time of the job by stage and thread, beside the same work without a pipeline",
    "scale": "time, memory and manifest of up to 200,000 maps, and resuming; lanes; plans of a million rows",
    "service": "callers of Pipeline.put: throughput, latency, stalls of the event loop",
    "latency": "small maps to a store that answers late",
    "view": "the viewer with a million rows, in the server and in Chromium",
    "start": "from launch to the help and to the first PUT",
}
OTHERS = {
    "compare": "runs the job or another bench on two revisions in turns, and prints their ratios",
    "colors": "draws the README's picture into a file",
    "kills": "kills lanes, runs, shares and the store of a job, and compares it with a run in one process",
    "paper": "computes time, limit and price of jobs of up to 10^9 maps on up to 64 machines",
    "soak": "changes, kills and restarts for minutes or days, and compares maps, manifest and bucket",
}
"""These are not part of all."""


def run_all(*, quick: bool) -> None:
    """Run every benchmark in its own process and write all tables to one file."""
    started = time.monotonic()
    for name in BENCHES:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "bench", name, *(["--quick"] if quick else [])], check=True)
        print(f"\n  {name}: {time.monotonic() - began:.0f} s", flush=True)
    folder = results(quick=quick)
    found = machine()
    where = found["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    parts = [
        f"{where['cores']} cores of {where['processor']}, {where['platform']}, Python {where['python']}.",
        f"Commit {found['commit']}, {time.strftime('%Y-%m-%d')}: {versions}.\n",
        *(f"### {name}\n\n{(folder / f'{name}.md').read_text()}" for name in BENCHES),
    ]
    (folder / "tables.md").write_text("\n".join(parts))
    print(f"\nall of them: {time.monotonic() - started:.0f} s; {folder / 'tables.md'} has the tables")


def main() -> None:
    """Run ``python -m bench``."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Run one benchmark, or all of them without a name. The results are written to bench/results/.",
        epilog="\n".join([*(f"  {name:9}{what}" for name, what in BENCHES.items()),
                          "not part of all:",
                          *(f"  {name:9}{what}" for name, what in OTHERS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", choices=[*BENCHES, *OTHERS], metavar="NAME", help="one of the names below")
    parser.add_argument(
        "--quick", action="store_true", help="a short run to see that it works; do not quote its figures"
    )
    if sys.argv[1:2] and sys.argv[1] in {*BENCHES, *OTHERS}:
        # Each benchmark parses its own options.
        import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
    else:
        run_all(quick=parser.parse_args().quick)


if __name__ == "__main__":
    main()
