"""Where files and streams are cut into chunks: by what is in them, so that an insertion changes the chunks around it
and no others.

FastCDC from the library `pyfastcdc` (docs/adr/0018). The cuts decide what is found again, never what is restored:
chunks are listed with their lengths. So another release of the library, or other sizes, cost space once and nothing
else. The seed comes from the repository's key: the lengths of chunks would tell an onlooker which known file an
encrypted repository holds. Knows no chunks' names and no repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from blake3 import blake3
from pyfastcdc import FastCDC

SMALLEST: Final = 64 << 10
AVERAGE: Final = 256 << 10  # what the cuts aim at, behind the smallest size
LARGEST: Final = 1 << 20

_BUFFER: Final = 8 << 20

_CONTEXT: Final = "holdfast 1 chunk cuts"

Read = Callable[[int], bytes]


def seed_of(key: bytes) -> int:
    """Where a repository cuts: 63 bits from a key of its own."""
    return int.from_bytes(blake3(key, derive_key_context=_CONTEXT).digest(8), "little") >> 1


def chunks(read: Read, seed: int = 0) -> Iterator[bytes]:
    """What `read(size)` gives until it gives nothing, in chunks of 64 KiB to 1 MiB (the last may be smaller). Holds
    about 10 MiB.

    The same content is cut in the same places however `read` hands it over. Raises what `read` raises.
    """
    cutter = FastCDC(AVERAGE, min_size=SMALLEST, max_size=LARGEST, normalized_chunking=2, seed=seed)
    held = b""
    while True:
        held, ended = _filled(held, read)
        at = 0
        for chunk in cutter.cut_buf(held):
            # Where the buffer ends is no place to cut, unless everything does.
            if not ended and chunk.offset + chunk.length == len(held):
                break
            yield held[chunk.offset : chunk.offset + chunk.length]
            at = chunk.offset + chunk.length
        if ended:
            return
        held = held[at:]


def _filled(held: bytes, read: Read) -> tuple[bytes, bool]:
    """The buffer with as much more as it takes, and whether there is no more."""
    parts = [held]
    size = len(held)
    while size < _BUFFER:
        part = read(_BUFFER - size)
        if not part:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"".join(parts), False
