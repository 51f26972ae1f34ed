"""The words and numbers of the repository's formats: kinds, codecs, places, limits. Bytes are read and written elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agents.repository.stores import Buffer

__all__ = ["Buffer", "Place"]

FORMAT: Final = 1

# What a chunk is. The kind is part of what its name is made from, so that no one kind can pass for another.
DATA: Final = 1
NODE: Final = 2
DELTA: Final = 3
DIRECTORY: Final = 4
MANIFEST: Final = 5
KINDS: Final = {DATA: "data", NODE: "node", DELTA: "delta", DIRECTORY: "directory", MANIFEST: "manifest"}

# What is in a pack: bytes of disks and files, or what describes them. Kept apart, so that reading trees reads no data.
DATA_PACK: Final = 1
META_PACK: Final = 2
PACK_KINDS: Final = {DATA_PACK: "data", META_PACK: "meta"}

# How a body is stored.
PLAIN: Final = 0
ZSTD: Final = 1

NAME_BYTES: Final = 32
PACK_ID_BYTES: Final = 16
SCOPE_BYTES: Final = 8
DIGEST_BYTES: Final = 16
TAG_BYTES: Final = 16

LARGEST_CHUNK: Final = 16 << 20
"""Bytes of a chunk, before compression. What a header may say before it is damage, and so what a reader holds at most."""
LARGEST_BODY: Final = LARGEST_CHUNK + TAG_BYTES
PACK_BYTES: Final = 64 << 20
"""A pack of this size is sealed; it is larger by one frame at most, and by its footer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk is: `offset` of its frame in pack `pack` (16 bytes, an id; never a file name), `stored` bytes of its body
    there, `raw` bytes of the chunk."""

    pack: bytes
    offset: int
    stored: int
    raw: int
    kind: int
    codec: int


def pack_kind(kind: int) -> int:
    """Which packs chunks of `kind` go to."""
    return DATA_PACK if kind == DATA else META_PACK
