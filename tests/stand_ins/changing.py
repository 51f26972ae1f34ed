"""A disk image and a file tree that change from day to day, and what they were on every day: stand-ins for what is backed up.

Both are real files. What they were is remembered by means of their own (digests of blocks and of files, by BLAKE2), not by
anything of Holdfast's, so that restored ones can be compared with it.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PAGE = 4096


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class Image:
    """A sparse disk image of `size` bytes. `day` changes it and tells which bytes, as a hypervisor's tracking would."""

    def __init__(self, path: Path, size: int, block: int, rng: random.Random, *, first: int, daily: int) -> None:
        self.path = path
        self.size = size
        self._block = block
        self._rng = rng
        self._first = first
        self._daily = daily
        self._was: dict[int, tuple[list[int], list[bytes]]] = {}  # block → days on which it changed, digests since then
        with path.open("wb") as file:
            file.truncate(size)

    def day(self, day: int) -> list[tuple[int, int]]:
        """Change the image; (offset, length) of what was written or trimmed, ascending and apart."""
        touched: dict[int, bytes | None] = {}
        blocks = self.size // self._block
        with self.path.open("r+b", buffering=0) as file:
            for _ in range(self._first if not self._was else self._daily):
                block = self._rng.randrange(blocks)
                # Every other change is of a few pages, and most of what is written compresses.
                pages = self._block // _PAGE if not self._was or self._rng.random() < 0.5 else self._rng.randrange(1, 4)
                at = block * self._block + self._rng.randrange(self._block // _PAGE - pages + 1) * _PAGE
                os.pwrite(file.fileno(), self._content(pages * _PAGE), at)
                touched[at] = None
            if self._was and self._rng.random() < 0.3:  # something is trimmed away
                block = self._rng.choice(sorted(self._was))
                os.pwrite(file.fileno(), bytes(self._block), block * self._block)
                touched[block * self._block] = None
            changed = sorted({at // self._block for at in touched})
            for block in changed:
                days, digests = self._was.setdefault(block, ([], []))
                digest = _digest(os.pread(file.fileno(), self._block, block * self._block))
                days.append(day)
                digests.append(digest)
        return [(block * self._block, self._block) for block in changed]

    def _content(self, size: int) -> bytes:
        if self._rng.random() < 0.2:
            return self._rng.randbytes(size)
        line = b"%016x " % self._rng.getrandbits(64)
        return (line * (size // len(line) + 1))[:size]

    def check(self, path: Path, day: int) -> None:
        """Assert that `path` holds what the image did at the end of that day."""
        assert path.stat().st_size == self.size
        zero = _digest(bytes(self._block))
        wrong = []
        seen = set()
        with path.open("rb", buffering=0) as file:
            for block in _data_blocks(file.fileno(), self.size, self._block):
                seen.add(block)
                if _digest(os.pread(file.fileno(), self._block, block * self._block)) != self._then(block, day, zero):
                    wrong.append(block)
        wrong += [b for b in self._was if b not in seen and self._then(b, day, zero) != zero]
        assert not wrong, f"{len(wrong)} blocks are not what they were on day {day}, first {wrong[:5]}"

    def _then(self, block: int, day: int, zero: bytes) -> bytes:
        days, digests = self._was.get(block, ([], []))
        at = bisect_right(days, day)
        return digests[at - 1] if at else zero


def _data_blocks(descriptor: int, size: int, block: int) -> Iterator[int]:
    """Blocks of a file that are no holes, each once."""
    at, last = 0, -1
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        for number in range(max(start // block, last + 1), -(-end // block)):
            yield number
            last = number
        at = end


class Files:
    """A directory that changes: files written, appended to, renamed, removed; links, modes, times, names of any bytes."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self._rng = rng
        self._was: dict[int, dict[bytes, tuple[Any, ...]]] = {}
        self._made = 0
        root.mkdir()
        for _ in range(30):
            self._write(root)
        (root / "deep" / "er").mkdir(parents=True)
        os.symlink("deep/er", root / "link")
        os.mkdir(os.fsencode(root) + b"/\xff\xfe not text")
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
            os.pwrite(file.fileno(), b"middle", 600_000)

    def day(self, day: int) -> None:
        """Change it, and remember it."""
        files = sorted(p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink())
        for _ in range(3):
            self._write(self._rng.choice([self.root, self.root / "deep" / "er"]))
        one, other, third = self._rng.sample(files, 3)
        with one.open("ab") as file:
            file.write(self._rng.randbytes(self._rng.randrange(1, 5000)))
        if len(files) > 40:
            other.unlink()
            third.rename(third.with_name(f"moved-{day}"))
        one.chmod(self._rng.choice([0o600, 0o644, 0o755]))
        os.utime(one, ns=(day * 10**9, day * 86_400 * 10**9 + 123_456_789))
        if day % 10 == 0:
            twin = self.root / f"twin-{day}"
            os.link(one, twin)
        self._was[day] = scan(self.root)

    def _write(self, folder: Path) -> None:
        self._made += 1
        size = self._rng.choice([0, 17, 3_000, 60_000, 300_000])
        half = self._rng.randbytes(size // 2)
        (folder / f"file-{self._made}").write_bytes(half + half)

    def check(self, root: Path, day: int) -> None:
        """Assert that the tree at `root` is what this one was at the end of that day."""
        found, was = scan(root), self._was[day]
        assert found.keys() == was.keys()
        assert {n: (found[n], was[n]) for n in was if found[n] != was[n]} == {}


def scan(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What a tree holds, by path below `root`: kind, mode, times of change of files, content or target, which are one file."""
    out: dict[bytes, tuple[Any, ...]] = {}
    twins: dict[int, bytes] = {}
    base = os.fsencode(root)
    for folder, folders, names in os.walk(base):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            mode = stat.S_IMODE(found.st_mode)
            inner = os.path.relpath(path, base)
            if stat.S_ISLNK(found.st_mode):
                out[inner] = ("link", os.readlink(path))
            elif stat.S_ISDIR(found.st_mode):
                out[inner] = ("folder", mode)
            else:
                with open(path, "rb") as file:
                    digest = _digest(file.read())
                first = twins.setdefault(found.st_ino, inner) if found.st_nlink > 1 else inner
                out[inner] = ("file", mode, found.st_mtime_ns, found.st_size, digest, first)
    return out
