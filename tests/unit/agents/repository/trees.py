"""A directory with one of everything that a file system has, and all of a directory that a restore brings back."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
from pathlib import Path

OLD_NS = 1_600_000_000_123_456_789  # times that are old enough to prove something


def settled(path: Path) -> None:
    """Make a file's times old. Its ctime stays young, so say that the clock is."""
    os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything of a tree that a restore brings back."""
    out: dict[bytes, tuple[object, ...]] = {}
    links: dict[tuple[int, int], bytes] = {}

    def add(path: bytes, below: bytes) -> None:
        found = os.lstat(path)
        what: object = None
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                what = file.read()
            if found.st_nlink > 1:
                what = (what, links.setdefault((found.st_dev, found.st_ino), below))
        elif stat.S_ISLNK(found.st_mode):
            what = os.readlink(path)
        attributes = {}
        if not stat.S_ISLNK(found.st_mode):
            with contextlib.suppress(OSError):
                attributes = {n: os.getxattr(path, n) for n in os.listxattr(path)}
        out[below] = (
            stat.S_IFMT(found.st_mode),
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
        )
        out[below] += (what, found.st_rdev if stat.S_ISCHR(found.st_mode) else 0, tuple(sorted(attributes.items())))
        if stat.S_ISDIR(found.st_mode):
            for name in sorted(os.listdir(path)):
                add(path + b"/" + name, below + b"/" + name)

    add(os.fsencode(root), b"")
    return out


def zoo(root: Path) -> None:
    """One of everything."""
    rng = random.Random(5)
    root.mkdir()
    (root / "empty").touch()
    (root / "small").write_bytes(b"hello")
    (root / "middling").write_bytes(rng.randbytes(300_000))
    (root / "large").write_bytes(rng.randbytes(5_000_000))
    (root / "zeros").write_bytes(bytes(3_000_000))
    (root / "read-only").write_bytes(b"mine")
    (root / "read-only").chmod(0o444)
    (root / "set-uid").write_bytes(b"#!/bin/sh\n")
    (root / "set-uid").chmod(0o4755)
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 26)
        for at in (0, 7_000_000, 1 << 25, (1 << 26) - 5000):
            file.seek(at)
            file.write(rng.randbytes(5000))
    with (root / "hole").open("wb") as file:
        file.truncate(1 << 23)
    (root / "folder").mkdir()
    (root / "folder" / "deeper").mkdir(mode=0o700)
    (root / "folder" / "deeper" / "file").write_bytes(b"deep")
    (root / "nothing in it").mkdir()
    os.link(root / "small", root / "folder" / "linked")
    os.link(root / "small", root / "also linked")
    (root / "to somewhere").symlink_to("../not/there")
    (root / "to folder").symlink_to("folder")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(root):
        listening.bind("socket")
    for name in (b"\xff\xfe not UTF-8", b"new\nline", b" ", b"-rf", b"\\", b"x" * 255, "é".encode(), b".hidden"):
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(name)
    with contextlib.suppress(OSError):  # not every file system has them
        os.setxattr(root / "small", "user.note", b"\x00\xff" * 10)
        os.setxattr(root / "read-only", "user.other", b"")
        os.setxattr(root / "folder", "user.on", b"a folder")
    if os.geteuid() == 0:
        os.chown(root / "middling", 1234, 4321)
        os.chown(root / "to folder", 1234, 4321, follow_symlinks=False)
        with contextlib.suppress(PermissionError):  # a container may make no devices
            os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    for path in sorted(root.rglob("*"), reverse=True):
        settled(path)
    settled(root)
