"""``async-maps warm``."""

from __future__ import annotations

from async_maps.cli.console import answer, complain, set_verbosity
from async_maps.cli.options import Quiet, Verbose
from async_maps.errors import SettingsError, WorkerError
from async_maps.render.kernel_cache import baseline_cpu
from async_maps.render.kernel_stores import Places
from async_maps.render.warm import warm_cache
from async_maps.report.ending import DONE, SOME_FAILED


def warm(*, verbose: Verbose = False, quiet: Quiet = False) -> int:
    """Compile the kernels into the cache when an image is built, so that no container compiles them.

    ```
    RUN async-maps warm
    NUMBA_CACHE_DIR=/opt/kernels async-maps warm
    ```

    The cache is the folder NUMBA_CACHE_DIR, else a folder beside the installed package, else one in the home folder.
    Containers read it with the same NUMBA_CACHE_DIR. It may be read-only then, and belong to root.

    The code runs on all x86-64 CPUs since 2013 (x86-64-v3: AVX2), and on all ARM64 CPUs. Other CPUs compile their own.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    places = Places.find()
    try:
        if places.writable is None:
            problem = places.refused or places.unwritable
            raise SettingsError(
                f"the kernels cannot be kept: {problem}; set NUMBA_CACHE_DIR to a folder that only this user can write"
            )
        found = warm_cache()
    except (SettingsError, WorkerError) as error:
        complain(error)
        return SOME_FAILED
    count = found.compiled + found.found
    printed = answer(f"{count} kernels for {baseline_cpu()} are in {found.folder}, {found.compiled} compiled now")
    return DONE if printed else SOME_FAILED
