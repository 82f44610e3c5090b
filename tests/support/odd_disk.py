"""A disk with the oddities of network shares and memory cards: a file system in memory, served to the kernel by FUSE.

Run it as a process: ``python -m tests.support.odd_disk FOLDER ODDITY...``. It mounts the folder, prints a line, and
serves until the folder is unmounted. The kernel's protocol is described in ``linux/fuse.h``; this needs root.

Oddities: ``ignores-case``, ``ignores-ascii-case`` and ``ignores-form`` (Unicode NFC and NFD are the same name),
``no-links``, ``no-locks``, ``no-shared-memory``, ``read-only``, ``full=BYTES`` and ``vanishes=FILES`` (EIO after that
number of files), ``forbids=CHARACTERS`` (in names).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import string
import struct
import subprocess
import sys
import time
import unicodedata
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADER, _ANSWER, _ATTRIBUTES = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ"), struct.Struct("<6Q10I")
_MOST_BYTES = 2**17
_ROOT, _DIRECT_IO = 1, 1
_POSIX_LOCKS, _FLOCK_LOCKS, _BIG_WRITES = 1 << 1, 1 << 10, 1 << 5
_SET_MODE, _SET_SIZE = 1, 8
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Node:
    """A file, or a folder: its children by name as the disk compares them, each with the name as written."""

    def __init__(self, number: int, mode: int) -> None:
        self.number, self.mode, self.links, self.changed = number, mode, 1, time.time()
        self.data = bytearray()
        self.children: dict[str, tuple[bytes, Node]] = {}


class OddDisk:
    """Answers the kernel's requests."""

    def __init__(self, oddities: list[str]) -> None:
        self._oddities = dict(text.partition("=")[::2] for text in oddities)
        self._numbers = count(_ROOT)
        self._nodes: dict[int, Node] = {}
        self._new(stat.S_IFDIR | 0o755)
        self._files = 0

    def serve(self, device: int) -> None:
        """Answer requests until the disk is unmounted."""
        while True:
            try:
                request = os.read(device, _MOST_BYTES + 2**12)
            except OSError as error:
                if error.errno in {errno.EINTR, errno.ENOENT, errno.EAGAIN}:
                    continue
                return  # ENODEV: unmounted
            _, operation, unique, number, *_ = _HEADER.unpack_from(request)
            try:
                name = _OPERATIONS.get(operation)
                if name is None:
                    raise OSError(errno.ENOSYS, "")
                self._refuse(name)
                body = getattr(self, name)(number, request[_HEADER.size :])
                code = 0
            except OSError as error:
                body, code = b"", -(error.errno or errno.EIO)
            if body is not None:
                os.write(device, _ANSWER.pack(_ANSWER.size + len(body), code, unique) + body)

    def _refuse(self, name: str) -> None:
        vanishes = int(self._oddities.get("vanishes", "0"))
        if vanishes and self._files > vanishes and name not in {"forget", "initialize", "destroy", "release"}:
            raise OSError(errno.EIO, "")
        if "read-only" in self._oddities and name in {"create", "write", "make_folder", "rename", "unlink", "set"}:
            raise OSError(errno.EROFS, "")

    def _new(self, mode: int) -> Node:
        node = Node(next(self._numbers), mode)
        self._nodes[node.number] = node
        return node

    def _name(self, raw: bytes) -> str:
        name = raw.decode("utf-8", "surrogateescape")
        if set(name) & set(self._oddities.get("forbids", "")):
            raise OSError(errno.EINVAL, "")
        if "ignores-form" in self._oddities:
            name = unicodedata.normalize("NFD", name)
        if "ignores-ascii-case" in self._oddities:
            name = name.translate(_ASCII_LOWER)
        return name.casefold() if "ignores-case" in self._oddities else name

    def _child(self, number: int, raw: bytes) -> Node:
        found = self._nodes[number].children.get(self._name(raw))
        if found is None:
            raise OSError(errno.ENOENT, "")
        return found[1]

    def _attributes(self, node: Node) -> bytes:
        whole, part = int(node.changed), int(node.changed % 1 * 1e9)
        size = len(node.data)
        return _ATTRIBUTES.pack(
            node.number, size, size // 512 + 1, whole, whole, whole, part, part, part,
            node.mode, node.links, 0, 0, 0, 4096, 0,
        )  # fmt: skip

    def _entry(self, node: Node) -> bytes:
        return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + self._attributes(node)

    def initialize(self, _: int, body: bytes) -> bytes:
        _, _, readahead, offered = struct.unpack_from("<4I", body)
        flags = _BIG_WRITES | (_POSIX_LOCKS | _FLOCK_LOCKS if "no-locks" in self._oddities else 0)
        return struct.pack("<4I2H2I2HI7I", 7, 31, readahead, flags & offered, 12, 9, _MOST_BYTES, 1, 32, 0, 0, *[0] * 7)

    def look_up(self, number: int, body: bytes) -> bytes:
        return self._entry(self._child(number, body.rstrip(b"\0")))

    def forget(self, *_: object) -> None:
        """No answer."""

    def get(self, number: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(self._nodes[number])

    def set(self, number: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        node = self._nodes[number]
        if valid & _SET_SIZE:
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        if valid & _SET_MODE:
            (mode,) = struct.unpack_from("<I", body, 68)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.changed = time.time()
        return self.get(number, b"")

    def _add(self, number: int, raw: bytes, node: Node) -> Node:
        self._nodes[number].children[self._name(raw)] = raw, node
        return node

    def make_folder(self, number: int, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<II", body)
        raw = body[8:].rstrip(b"\0")
        if self._name(raw) in self._nodes[number].children:
            raise OSError(errno.EEXIST, "")
        return self._entry(self._add(number, raw, self._new(stat.S_IFDIR | mode)))

    def create(self, number: int, body: bytes) -> bytes:
        flags, mode, _, _ = struct.unpack_from("<4I", body)
        raw = body[16:].rstrip(b"\0")
        found = self._nodes[number].children.get(self._name(raw))
        if found is not None and flags & os.O_EXCL:
            raise OSError(errno.EEXIST, "")
        self._files += found is None
        node = found[1] if found else self._add(number, raw, self._new(stat.S_IFREG | mode))
        if flags & os.O_TRUNC:
            node.data.clear()
        return self._entry(node) + self._opened()

    def _opened(self) -> bytes:
        return struct.pack("<QII", 0, _DIRECT_IO if "no-shared-memory" in self._oddities else 0, 0)

    def open(self, number: int, body: bytes) -> bytes:
        (flags, _) = struct.unpack_from("<II", body)
        if flags & os.O_TRUNC:
            self._nodes[number].data.clear()
        return self._opened()

    def read(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self._nodes[number].data[offset : offset + size])

    def write(self, number: int, body: bytes) -> bytes:
        _, offset, size, _, _, _, _ = struct.unpack_from("<QQIIQII", body)
        data, node = body[40 : 40 + size], self._nodes[number]
        most = int(self._oddities.get("full", "0"))
        if (
            most
            and offset + size > len(node.data)
            and sum(len(each.data) for each in self._nodes.values()) + size > most
        ):
            raise OSError(errno.ENOSPC, "")
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + size] = data
        node.changed = time.time()
        return struct.pack("<II", size, 0)

    def unlink(self, number: int, body: bytes) -> bytes:
        raw = body.rstrip(b"\0")
        self._child(number, raw).links -= 1
        del self._nodes[number].children[self._name(raw)]
        return b""

    def remove_folder(self, number: int, body: bytes) -> bytes:
        if self._child(number, body.rstrip(b"\0")).children:
            raise OSError(errno.ENOTEMPTY, "")
        return self.unlink(number, body)

    def link(self, number: int, body: bytes) -> bytes:
        if "no-links" in self._oddities:
            raise OSError(errno.EPERM, "")
        (old,) = struct.unpack_from("<Q", body)
        raw, node = body[8:].rstrip(b"\0"), self._nodes[old]
        if self._name(raw) in self._nodes[number].children:
            raise OSError(errno.EEXIST, "")
        node.links += 1
        return self._entry(self._add(number, raw, node))

    def rename(self, number: int, body: bytes, *, skip: int = 8, flags: int = 0) -> bytes:
        (folder,) = struct.unpack_from("<Q", body)
        old, new = body[skip:].rstrip(b"\0").split(b"\0")
        if flags:
            raise OSError(errno.EINVAL, "")
        node = self._child(number, old)
        del self._nodes[number].children[self._name(old)]
        self._add(folder, new, node)
        return b""

    def rename_with_flags(self, number: int, body: bytes) -> bytes:
        return self.rename(number, body, skip=16, flags=struct.unpack_from("<QI", body)[1])

    def open_folder(self, *_: object) -> bytes:
        return struct.pack("<QII", 0, 0, 0)

    def read_folder(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for index, (raw, node) in enumerate(list(self._nodes[number].children.values())[offset:], offset + 1):
            entry = struct.pack("<QQII", node.number, index, len(raw), stat.S_IFMT(node.mode) >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def status_of_disk(self, *_: object) -> bytes:
        free = int(self._oddities.get("full", "0")) // 4096 or 2**20
        return struct.pack("<5Q10I", free, free, free, 2**20, 2**20, 4096, 255, 4096, *[0] * 7)

    def nothing(self, *_: object) -> bytes:
        return b""

    release = flush = destroy = nothing

    def lock(self, *_: object) -> bytes:
        raise OSError(errno.ENOLCK, "")


_OPERATIONS = {
    1: "look_up", 2: "forget", 3: "get", 4: "set", 9: "make_folder", 10: "unlink", 11: "remove_folder", 12: "rename",
    13: "link", 14: "open", 15: "read", 16: "write", 17: "status_of_disk", 18: "release", 20: "nothing", 25: "flush",
    26: "initialize", 27: "open_folder", 28: "read_folder", 29: "nothing", 30: "nothing", 31: "lock", 32: "lock",
    33: "lock", 35: "create", 36: "forget", 38: "destroy", 42: "forget", 45: "rename_with_flags",
}  # fmt: skip


@contextmanager
def odd_disk(folder: Path, *oddities: str) -> Iterator[Path]:
    """Mount an odd disk at a new folder; skip the test where that is not allowed."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.odd_disk", str(folder), *oddities]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        if not server.stdout.readline():
            pytest.skip(f"mounting a disk takes root and FUSE: {server.stderr.read().decode().splitlines()[-1]}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> None:
    """Mount and serve."""
    folder, *oddities = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"odd-disk", os.fsencode(folder), b"fuse", 0, options):
        sys.exit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)  # noqa: T201  # the parent waits for it
    OddDisk(oddities).serve(device)


if __name__ == "__main__":
    main()
