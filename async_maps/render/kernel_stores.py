"""Where compiled kernels are kept: folders that nobody else can write, or memory that the workers of a run share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "NUMBA_CACHE_DIR"

_LOCK_TIMEOUT_S = 60.0
_HEAD = struct.Struct(">II32s")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(Exception):
    """Somebody else owns a file or folder, or can write it."""


class Store(Protocol):
    """Keeps compiled kernels by name."""

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name; None without it, or if it is not ours."""

    def write(self, name: str, data: bytes) -> None:
        """Keep data; raise OSError if that fails."""

    def locked(self) -> Any:
        """Return a context manager that keeps other processes from compiling the same."""


class Folder:
    """A folder of files, one for each kernel and CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None without it.

        Raises:
            UntrustedError: somebody else owns it or can write it.
        """
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            if problem := _distrust(os.fstat(descriptor), path):
                raise UntrustedError(problem)
            digest = file.read(32)
            data = file.read()
        return data if hashlib.sha256(data).digest() == digest else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        temporary = self.folder / f".{name}.{uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                # Not by the umask: others may read what root compiled for an image, and nobody else may write it.
                os.fchmod(file.fileno(), 0o644)
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock on the folder; go on without it after a time, because anybody who can read it can hold it."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        try:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
                except OSError:  # a disk without locks
                    break
            yield
        finally:
            os.close(descriptor)


class Memory:
    """Records in an inherited file in memory; a record that a process did not finish is overwritten."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def _records(self) -> Iterator[tuple[int, str, bytes]]:
        position = 0
        content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        while len(head := content[position : position + _HEAD.size]) == _HEAD.size:
            name_size, size, digest = _HEAD.unpack(head)
            position += _HEAD.size
            name, data = content[position : position + name_size], content[position + name_size :][:size]
            position += name_size + size
            if hashlib.sha256(data).digest() != digest:
                return
            yield position, name.decode(), data

    def read(self, name: str) -> bytes | None:
        """Return the data of a record."""
        return next((data for _, found, data in self._records() if found == name), None)

    def write(self, name: str, data: bytes) -> None:
        """Append a record."""
        end = max((position for position, _, _ in self._records()), default=0)
        text = name.encode()
        os.ftruncate(self._descriptor, end)
        os.pwrite(self._descriptor, _HEAD.pack(len(text), len(data), hashlib.sha256(data).digest()) + text + data, end)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock, which ends with its process."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


class Places(NamedTuple):
    """The folders to read, the one to write, and what is wrong with the others."""

    readable: tuple[Folder, ...]
    writable: Folder | None
    refused: str
    unwritable: str

    @classmethod
    def find(cls) -> Places:
        """Look at the folder of ``NUMBA_CACHE_DIR``, the one beside this module, and the user's cache."""
        readable, writable, problems, refused = [], None, [], ""
        for folder, base in _candidates():
            try:
                if base is not None and base.exists():
                    _check_base(base)
                if writable is None:
                    _create(folder, base)
                state = folder.lstat()
                if problem := _distrust(state, folder):
                    raise UntrustedError(problem)
            except FileNotFoundError:
                problems.append(f"{folder} cannot be created")
                continue
            except NotADirectoryError:
                problems.append(f"{folder} is below a file")
                continue
            except OSError as error:
                problems.append(f"{folder}: {error.strerror}")
                continue
            except UntrustedError as error:
                problems.append(str(error))
                refused = refused or str(error)
                continue
            readable.append(Folder(folder))
            if writable is None and _is_writable(folder):
                writable = Folder(folder)
            elif writable is None:
                problems.append(f"{folder} cannot be written")
        return cls(tuple(readable), writable, refused, "; ".join(problems))


def _candidates() -> Iterator[tuple[Path, Path | None]]:
    """Yield each folder, and the folder above it if that must be safe, too."""
    if given := os.environ.get(VARIABLE):
        expanded = os.path.expanduser(given)
        if os.path.isabs(expanded) or not given.startswith("~"):  # "~" without a home folder
            base = Path(os.path.abspath(expanded))
            yield base / "async-maps", base
    # Who can write the folder of this module can change its code as well.
    yield Path(__file__).parent / "__pycache__" / "kernels", None
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(user):
        yield Path(user) / "async-maps", None


def _create(folder: Path, base: Path | None) -> None:
    for each in filter(None, (base, folder)):
        with suppress(OSError):
            if not each.exists():
                each.mkdir(parents=True)
                # Not by the umask: see Folder.write.
                each.chmod(0o755)


def _distrust(state: os.stat_result, path: Path) -> str:
    """Return why a file or folder must not be trusted; empty if it may."""
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        return f"{path} is neither a file nor a folder"
    if state.st_uid not in {0, os.geteuid()}:
        return f"{path} belongs to another user (uid {state.st_uid})"
    if state.st_mode & _OTHERS:
        return f"{path} can be written by other users (mode {stat.S_IMODE(state.st_mode):04o}): chmod go-w {path}"
    return ""


def _check_base(base: Path) -> None:
    state = base.stat()
    # In a sticky folder such as /tmp nobody can replace our folder.
    if not state.st_mode & stat.S_ISVTX and (problem := _distrust(state, base)):
        raise UntrustedError(problem)


def _is_writable(folder: Path) -> bool:
    probe = folder / f".{uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
