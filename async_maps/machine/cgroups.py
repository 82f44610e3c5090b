"""The limits of Linux control groups (containers, Slurm, systemd), versions 1 and 2.

Each function reads files below a root folder, so that a test can lay out the tree of any machine. What is missing or
cannot be parsed is no limit.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")

_DEFAULT_PERIOD_US = 100_000
_UNLIMITED = 2**60
"""Version 1 writes a number near 2**63 if there is no limit of memory."""


class _Mount(NamedTuple):
    root: PurePosixPath
    point: PurePosixPath
    version: int
    controllers: frozenset[str]


class _Files(NamedTuple):
    folder: Path
    version: int

    def read(self, name: str) -> list[str]:
        """Return the words of a file; an empty list if it cannot be read."""
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace").split()
        except OSError:
            return []

    def number(self, name: str) -> int | None:
        """Return the number in a file; None for ``max``, for another text, or without the file."""
        words = self.read(name)
        return int(words[0]) if words and re.fullmatch(r"-?\d+", words[0]) else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the number of cores whose time this process may use, by the smallest quota above it; None without one."""
    quotas = []
    for group in _groups("cpu", root):
        if group.version == 2:
            words = [*group.read("cpu.max"), str(_DEFAULT_PERIOD_US)]
            quota, period = (int(word) if word.isdecimal() else None for word in words[:2]) if words[1:] else (None, 0)
        else:
            quota, period = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the number of bytes that this process and its group may use, by the smallest limit above it, or None."""
    limits = [
        limit
        for group in _groups("memory", root)
        for name in (("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",))
        if (limit := group.number(name)) is not None and 0 < limit < _UNLIMITED
    ]
    return min(limits, default=None)


def pids_limit(root: Path = ROOT) -> tuple[int, int | None] | None:
    """Return the smallest limit of processes and threads above this process, and how many exist; None without one."""
    limits = [
        (limit, group.number("pids.current"))
        for group in _groups("pids", root)
        if (limit := group.number("pids.max")) is not None
    ]
    return min(limits, key=lambda limit: limit[0], default=None)


def _groups(controller: str, root: Path) -> list[_Files]:
    """Return the folders of this process's group and of all groups above it that are mounted."""
    path, version = _own_path(controller, root)
    for mount in reversed(_mounts(root)):
        if path is not None and mount.version == version and (version == 2 or controller in mount.controllers):
            below = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
            # A path that leads out of a namespace of groups is not mounted: the mount is the nearest group.
            parts = () if ".." in below.parts else below.parts
            places = [mount.point.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
            return [_Files(root.joinpath(*place.parts[1:]), version) for place in places]
    return []


def _own_path(controller: str, root: Path) -> tuple[PurePosixPath | None, int]:
    unified = None
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return PurePosixPath(path), 1
        if not controllers and path:
            unified = PurePosixPath(path)
    return unified, 2


def _mounts(root: Path) -> list[_Mount]:
    mounts = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(words) > 4 and len(kind) > 2 and kind[0] in {"cgroup", "cgroup2"}:
            version = 2 if kind[0] == "cgroup2" else 1
            options = frozenset(kind[2].split(","))
            mounts.append(_Mount(_unescaped(words[3]), _unescaped(words[4]), version, options))
    return mounts


def _unescaped(path: str) -> PurePosixPath:
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
