"""Key runs: which steps wrote a key, as sorted lists of keyed hashes that reveal nothing of the keys.

    entry    HMAC64(table, key) 8 bytes · step, counted from the run's first 4 bytes, big-endian      (so entries sort)
    run      entries ascending, each once
    fan      for each first byte of a hash, 0..256: how many entries are below it (257 × u32, big-endian)

The hash is BLAKE2b with a key of its own purpose under the site key, cut to 64 bits: a MAC, so that nobody without the site
key can try keys out against a run. Two keys may share a hash: whoever looks a key up reads the steps and looks. Hashes are
uniform, so a run needs no other index than its fan: a key's entries lie in one slice of 1/256 of the run.

The indexer makes a run of each granule (`streams.events.GranuleKeys`). Readers merge them, `FAN_IN` neighbours at a time, as
often as `LEVELS` says. Which runs are merged depends on how many came before and on nothing else, so that whoever
reads the same events has the same runs. Pure.

    granules   0 … 15 | 16 … 31 | …        level 0, one run each
               0 ……… 255                    level 2, once sixteen of level 1 are there
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

Buffer = bytes | bytearray | memoryview

ENTRY: Final = 12
HASH: Final = 8
FAN_BYTES: Final = 257 * 4
FAN_IN: Final = 16
LEVELS: Final = 2
"""Runs of level 2 hold 256 granules: a million steps of one row each are 12 MB."""
PURPOSE: Final = "key index"

_STEP: Final = struct.Struct(">I")
_FAN: Final = struct.Struct(">257I")
Hasher = Callable[[bytes], bytes]


def hasher(secret: bytes, schema: str, table: str, columns: Sequence[str]) -> Hasher:
    """HMAC64 of keys of one table. `columns`: the names of its key columns, none for whole rows: another key is another
    index."""
    head = hashlib.blake2b(key=secret, digest_size=HASH)
    for name in (schema, table, str(len(columns)), *columns):
        raw = name.encode("utf-8", "surrogatepass")
        head.update(len(raw).to_bytes(4, "little") + raw)
    copy = head.copy

    def of(key: bytes) -> bytes:
        one = copy()
        one.update(key)
        return one.digest()

    return of


def run_of(entries: Iterable[bytes]) -> bytes:
    """A run from its entries in any order."""
    return b"".join(sorted(set(entries)))


def fan_of(run: Buffer) -> bytes:
    """The run's fan."""
    view = memoryview(run)
    heads = bytes(view[0::ENTRY])
    counts = [0] * 257
    at = 0
    for first in range(256):
        counts[first] = at
        at = bisect_left(heads, first + 1, at)
    counts[256] = at
    return _FAN.pack(*counts)


def bounds(fan: Buffer, first: int) -> tuple[int, int]:
    """`(from, to)` in entries: where hashes with this first byte stand."""
    start, end = struct.unpack_from(">2I", fan, first * 4)
    return int(start), int(end)


def steps_in(piece: Buffer, wanted: bytes) -> list[int]:
    """Steps (counted from the run's first) of one hash in a sorted piece of a run, ascending."""
    raw = bytes(piece)
    low, high = 0, len(raw) // ENTRY
    while low < high:
        middle = (low + high) // 2
        if raw[middle * ENTRY : middle * ENTRY + HASH] < wanted:
            low = middle + 1
        else:
            high = middle
    out = []
    at = low * ENTRY
    while raw[at : at + HASH] == wanted:
        out.append(_STEP.unpack_from(raw, at + HASH)[0])
        at += ENTRY
    return out


@dataclass(frozen=True, slots=True)
class Run:
    """Keys of steps `first..last` of a lineage; `granules`: of how many."""

    first: int
    last: int
    granules: int
    entries: bytes

    def steps(self, wanted: bytes, fan: bytes | None = None) -> Iterator[int]:
        """The ordinals of the steps that wrote a key with this hash, ascending."""
        start, end = bounds(fan or fan_of(self.entries), wanted[0])
        for step in steps_in(self.entries[start * ENTRY : end * ENTRY], wanted):
            yield self.first + step


def merge(runs: Sequence[Run]) -> Run:
    """One run of neighbours, ascending. Bucket by bucket, so that it costs no more memory than what goes in and comes out."""
    first = runs[0].first
    fans = [fan_of(run.entries) for run in runs]
    out: list[bytes] = []
    for head in range(256):
        bucket: list[bytes] = []
        for run, fan in zip(runs, fans, strict=True):
            start, end = bounds(fan, head)
            entries, move = run.entries, run.first - first
            for at in range(start * ENTRY, end * ENTRY, ENTRY):
                if move:
                    (step,) = _STEP.unpack_from(entries, at + HASH)
                    bucket.append(entries[at : at + HASH] + _STEP.pack(step + move))
                else:
                    bucket.append(entries[at : at + ENTRY])
        bucket.sort()
        out.append(b"".join(bucket))
    return Run(first, runs[-1].last, sum(run.granules for run in runs), b"".join(out))


def due(levels: Sequence[int]) -> int | None:
    """Given how many runs of each level there are that wait to be merged: the level of which `FAN_IN` are to be merged now."""
    return next((level for level, count in enumerate(levels[:LEVELS]) if count >= FAN_IN), None)
