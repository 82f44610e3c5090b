"""The cache of compiled kernels: in a folder, or in memory that the workers of a run share.

It replaces numba's own cache, which reads only folders that it can write, loads pickles that any user may have put
there, and whose code runs on one CPU model only. A file here is used only if it and its folder belong to this user or
to root, and nobody else can write them. Code for the baseline CPU (``async-maps warm``) serves all CPUs that have its
instructions.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import sys
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.render.kernel_stores import Memory, Places, Store, UntrustedError

if TYPE_CHECKING:
    from collections.abc import Iterator


_BASELINES = {"x86_64": "x86-64-v3"}
"""The baseline CPU of an architecture. Its quantize kernel takes 20% longer than one for AVX-512, the others the same
time; "generic" code would take 3 times as long."""
_V3 = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
"""The features of x86-64-v3, as LLVM names them."""

_NOT_KEPT = (
    "compiled kernels cannot be kept in a cache folder or used from it, so each start may compile them (7 s of CPU "
    "time): {}. Set NUMBA_CACHE_DIR to a folder that only this user can write, or run `async-maps warm` when the image "
    "is built"
)

_shared: ContextVar[int | None] = ContextVar("kernels", default=None)


@contextmanager
def sharing(descriptor: int | None) -> Iterator[None]:
    """Share the kernels that are compiled in the ``with`` block with other processes, if no folder can keep them.

    Args:
        descriptor: a file in memory that those processes inherited; None to share with none.
    """
    token = _shared.set(descriptor)
    try:
        yield
    finally:
        _shared.reset(token)


def baseline_cpu() -> str:
    """Return LLVM's name of the oldest CPU that cached code may need."""
    return _BASELINES.get(platform.machine(), "generic")


class Loaded(NamedTuple):
    """How the kernels of a process were loaded.

    Attributes:
        compiled: the number of kernels that were compiled.
        found: the number of kernels that were found in a cache.
        folder: where compiled kernels are kept; empty if nowhere.
        problem: why a folder was refused, or why nothing can be kept; empty if all is well.
        kept: whether all these kernels are in a folder.
    """

    compiled: int
    found: int
    folder: str
    problem: str
    kept: bool = True

    @property
    def notice(self) -> str:
        """A sentence about the problem; empty if there is none."""
        if not self.problem:
            return ""
        if self.kept:
            where = f"; they are kept in {self.folder}" if self.folder else ""
            return f"a cache folder of compiled kernels is not used: {self.problem}{where}"
        return _NOT_KEPT.format(self.problem)


def loaded(modules: list[Any]) -> Loaded:
    """Count the kernels of imported modules."""
    caches = [cache for module in modules for each in vars(module).values() if (cache := cache_of(each)) is not None]
    compiled = sum(not cache.found for cache in set(caches))
    places = Places.find()
    folder = "" if places.writable is None else str(places.writable.folder)
    kept = all(cache.kept for cache in caches)
    refused = next((cache.refused for cache in caches if cache.refused), "") or places.refused
    problem = refused or ("" if kept else places.unwritable)
    return Loaded(compiled, len(set(caches)) - compiled, folder, problem, kept)


def cache_of(kernel: object) -> KernelCache | None:
    """Return the cache of a compiled kernel; None for another object."""
    cache = getattr(kernel, "_cache", None)
    return cache if isinstance(cache, KernelCache) else None


class KernelCache:
    """The cache of one kernel, with the methods of numba's own caches.

    numba calls ``load_overload`` before it compiles and ``save_overload`` afterwards. In between, the kernel is locked,
    so that one of several processes compiles it and the others load it. Use it in a ``with`` block, which ends the
    lock.
    """

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        places = Places.find()
        shared = _shared.get()
        memory = [] if shared is None or places.writable is not None else [Memory(shared)]
        self._stores: list[Store] = [*memory, *places.readable]
        self._target: Store | None = memory[0] if memory else places.writable
        self._identity = (
            function.__name__, hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).hexdigest(),
            sorted(options.items(), key=str), sys.version_info[:3], sys.implementation.cache_tag,
        )  # fmt: skip
        self._name = function.__name__
        self._lock: Any = None
        self.found = False
        self.kept = False
        self.refused = ""
        self.cache_path = None if places.writable is None else str(places.writable.folder)

    def __enter__(self) -> KernelCache:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Load a compiled kernel; None if there is none."""
        target.refresh()
        if (compiled := self._load(signature, target)) is None and self._target is not None:
            with suppress(OSError):
                self._lock = self._target.locked()
                self._lock.__enter__()
                compiled = self._load(signature, target)
        self.found = compiled is not None
        self.kept = self.kept or self.found
        return compiled

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled kernel, if possible."""
        from numba.core.serialize import dumps

        if self._target is None:
            return
        names = self._names(signature, compiled.codegen)
        with suppress(OSError):
            self._target.write(names[0], dumps(compiled._reduce()))
            self.kept = not isinstance(self._target, Memory)

    def _load(self, signature: Any, target: Any) -> Any:
        from numba.core.compiler import CompileResult

        for name in self._names(signature, target.codegen()):
            for store in self._stores:
                try:
                    if (data := store.read(name)) is not None:
                        kept = not isinstance(store, Memory)
                        compiled = CompileResult._rebuild(target, *pickle.loads(data))  # noqa: S301  # ours: see Folder.read
                        self.kept = kept
                        return compiled
                except UntrustedError as error:
                    self.refused = str(error)
        return None

    def _names(self, signature: Any, codegen: Any) -> list[str]:
        """Return the names of the file for this CPU, and of that for the baseline CPU if this one can run it."""
        import numba

        triple, cpu, features = codegen.magic_tuple()
        targets = [(triple, cpu, features)]
        if _runs_baseline():
            targets.append((triple, baseline_cpu(), ""))
        identity = (self._identity, str(signature), numba.__version__)
        digests = [hashlib.sha256(repr((*identity, target)).encode()).hexdigest()[:32] for target in targets]
        return [f"{self._name}-{digest}.kernel" for digest in dict.fromkeys(digests)]


def _runs_baseline() -> bool:
    from numba.core.codegen import get_host_cpu_features

    features = get_host_cpu_features().split(",")
    return baseline_cpu() == "generic" or all(f"+{feature}" in features for feature in _V3)
