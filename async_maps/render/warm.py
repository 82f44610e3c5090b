"""Compiles all kernels into the cache, for a CPU that other machines have too."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from async_maps.errors import WorkerError, system_reason
from async_maps.render.kernel_cache import Loaded, baseline_cpu

_CODE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from async_maps.render import channel_kernels, deflate_kernels, kernels
from async_maps.render.kernel_cache import loaded
print(json.dumps(loaded([kernels, deflate_kernels, channel_kernels])))
"""


def warm_cache(cpu: str | None = None) -> Loaded:
    """Compile the kernels that are not in the cache yet, in another process.

    Args:
        cpu: LLVM's name of the CPU; the baseline of this architecture if None.

    Returns:
        How many kernels were compiled, and where they are kept.

    Raises:
        WorkerError: the process cannot be started, or fails.
    """
    # numba reads the CPU when it is imported. No features: those of the CPU, not of this machine.
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu or baseline_cpu(), "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path)]
    try:
        ended = subprocess.run(command, capture_output=True, check=False, env=environment)  # noqa: S603  # our own module
    except OSError as error:
        reason = f"no process can be started: {system_reason(error)}"
        raise WorkerError(f"the kernels cannot be compiled: {reason}") from error
    if ended.returncode:
        how = f"ended with status {ended.returncode}"
        if ended.returncode < 0:
            how = f"was killed by signal {-ended.returncode}"
        # The last line of a traceback is its error.
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        last = "".join(filter(str.isprintable, lines[-1] if lines else ""))[:200]
        raise WorkerError(f"the kernels cannot be compiled: the process {how}{f': {last}' if last else ''}")
    return Loaded(*json.loads(ended.stdout))
