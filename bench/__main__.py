"""``python -m bench NAME [OPTIONS]``."""

from __future__ import annotations

import sys

from bench import colors, job, kernels

BENCHES = {"job": job.main, "kernels": kernels.main, "colors": colors.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        sys.exit(f"usage: python -m bench {{{','.join(BENCHES)}}} [--help]")
    BENCHES[sys.argv[1]](sys.argv[2:])
