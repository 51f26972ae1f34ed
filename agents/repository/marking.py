"""Sets of chunk names for marking: tens of millions in bounded memory, without an object for each.

A name is a keyed digest, so its first eight bytes stand for it: two names that share them are taken for one, which can only keep
garbage, never lose anything, and of ten million names happens once in 10^5 collections. Names are spread over 256 parts by their
first byte and kept as 64-bit numbers; what exceeds the limit goes to an unnamed temporary file. `settle` sorts part by part.
Memory: 8 bytes a name up to the limit; beyond it, sorted numbers are read through the page cache.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from agents.repository.content import NAME_SIZE

PARTS: Final = 256
LIMIT_BYTES: Final = 64 * 1024 * 1024
_NAME = struct.Struct(">Q24x")
assert _NAME.size == NAME_SIZE


class Names:
    """Add names, then `settle`, then ask. `folder`: where temporary files go (default: the system's)."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes // 8
        self._parts: list[array[int]] = [array("Q") for _ in range(PARTS)]
        self._adders = [part.append for part in self._parts]
        self._held = 0
        self._spill: IO[bytes] | None = None
        self._spilled: list[list[tuple[int, int]]] = [[] for _ in range(PARTS)]  # (offset, bytes) of each part
        self._map: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._sorted: Sequence[int] | None = None
        self._starts: list[int] = []

    def add(self, packed: bytes | memoryview) -> None:
        """Names of 32 bytes each, joined."""
        add = self._adders
        for key in _keys(packed):
            add[key >> 56](key)
        self._held += len(packed) // NAME_SIZE
        if self._held > self._limit:
            self._spill_parts()

    def settle(self) -> int:
        """Sort; how many different names there are. Nothing can be added any more."""
        if self._sorted is not None:
            return self._starts[-1]
        with contextlib.ExitStack() as stack:
            out = None if self._spill is None else stack.enter_context(tempfile.TemporaryFile(dir=self._folder))
            joined: array[int] = array("Q")
            count = 0
            for number in range(PARTS):
                keys = sorted(set(self._part(number)))
                if not keys:
                    self._starts.extend([count] * PARTS)
                    continue
                self._parts[number] = array("Q")
                at = 0
                for small in range(PARTS):
                    self._starts.append(count + at)
                    at = bisect_left(keys, (number << 8 | small) + 1 << 48, at)
                count += len(keys)
                if out is None:
                    joined.extend(keys)
                else:
                    out.write(array("Q", keys).tobytes())
            self._starts.append(count)
            if out is not None and count:
                out.flush()
                self._map = mmap.mmap(out.fileno(), 0, access=mmap.ACCESS_READ)
                self._view = memoryview(self._map).cast("Q")
        self._sorted = joined if self._view is None else self._view
        self._drop_spill()
        return count

    def among(self, packed: bytes | memoryview) -> bytearray:
        """For each of the names in `packed`, joined: 1 when it was added, 0 when not."""
        assert self._sorted is not None, "not settled"
        held, starts, out = self._sorted, self._starts, bytearray()
        say = out.append
        for key in _keys(packed):
            small = key >> 48
            end = starts[small + 1]
            at = bisect_left(held, key, starts[small], end)
            say(at < end and held[at] == key)
        return out

    def shared(self, other: Names) -> int:
        """How many of these names are among the other ones. Both are settled."""
        assert self._sorted is not None
        step = 1 << 16
        total = self._starts[-1]
        return sum(
            sum(other.among(b"".join(_NAME.pack(key) for key in self._sorted[at : min(at + step, total)])))
            for at in range(0, total, step)
        )

    def __contains__(self, name: bytes) -> bool:
        return bool(self.among(name)[0])

    def __len__(self) -> int:
        return self.settle()

    def close(self) -> None:
        """Let go of files. May be called twice."""
        self._sorted = None
        if self._view is not None:
            self._view.release()
            self._view = None
        if self._map is not None:
            self._map.close()
            self._map = None
        self._drop_spill()

    def _drop_spill(self) -> None:
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _part(self, number: int) -> list[int]:
        keys = self._parts[number].tolist()
        for offset, size in self._spilled[number]:
            assert self._spill is not None
            self._spill.seek(offset)
            piece: array[int] = array("Q")
            piece.frombytes(self._spill.read(size))
            keys += piece.tolist()
        return keys

    def _spill_parts(self) -> None:
        if self._spill is None:
            self._spill = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - `close` closes it
        offset = self._spill.seek(0, 2)
        for number, part in enumerate(self._parts):
            data = part.tobytes()
            if data:
                self._spill.write(data)
                self._spilled[number].append((offset, len(data)))
                offset += len(data)
            del part[:]
        self._held = 0


def _keys(packed: bytes | memoryview) -> array[int]:
    """The first eight bytes of each of these names, as numbers that sort as they do."""
    words: array[int] = array("Q")
    words.frombytes(packed)
    found = words[:: NAME_SIZE // words.itemsize]
    if sys.byteorder == "little":
        found.byteswap()
    return found
