"""The nodes of a disk's tree: bytes to slots and back. What trees are is told in `agents.repository.tree`.

A node (integers little-endian):

    u8 version (1) · u8 level · u8 flags · u8 0 · u64 bitmap · tags · names

Entry i of a node of level l stands for blocks [i·64^l, (i+1)·64^l) after the node's first; bit i of the bitmap says
that there is one. Flag 1: every entry is a chunk, and there are no tags; else one u8 tag for each bit set
(`agents.repository.extents`). `names` has 32 bytes for each entry that is a chunk: of data at level 0, of a node of
the level below elsewhere. A tag other than "chunk" above level 0 speaks of all the blocks below.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from agents.repository.content import NAME_SIZE
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, ZERO, is_entry

FAN_OUT: Final = 64
LEVELS: Final = 11  # 64^11 blocks are more than 2^63
DAMAGED: Final = "tree-damaged"

_VERSION: Final = 1
_FULL: Final = 1

_header = struct.Struct("<BBBxQ")
HEADER_SIZE: Final = _header.size
_ALL_SET: Final = (1 << 64) - 1
_FULL_SIZE: Final = _header.size + FAN_OUT * NAME_SIZE
full_headers: Final = [
    _header.pack(_VERSION, level, _FULL, _ALL_SET) for level in range(LEVELS)
]  # of nodes with 64 chunks
_to_bits = bytes([ord("0")]) + bytes([ord("1")]) * 255
_chunks = re.compile(b"\x01+")


class Slots(NamedTuple):
    """A node taken apart: 64 tags, and 32 bytes for each, which mean something where the tag is CHUNK."""

    tags: bytearray
    names: bytearray


def encode(level: int, tags: bytes | bytearray, names: bytes | bytearray) -> bytes:
    """The node with these 64 tags and 64 places for names."""
    if tags.count(CHUNK) == FAN_OUT:
        return full_headers[level] + names
    bitmap = int(tags[::-1].translate(_to_bits), 2)
    parts = [names[m.start() * NAME_SIZE : m.end() * NAME_SIZE] for m in _chunks.finditer(tags)]
    return b"".join((_header.pack(_VERSION, level, 0, bitmap), tags.translate(None, b"\0"), *parts))


def checked(data: bytes, level: int | None = None) -> int:
    """The level of the node that `data` is. Raises `RepositoryError` (`tree-damaged`) unless it is one, of `level`."""
    if len(data) == _FULL_SIZE and level is not None and data.startswith(full_headers[level]):
        return level
    if len(data) < _header.size:
        raise _damaged("it is cut off")
    version, found, flags, bitmap = _header.unpack_from(data)
    if version != _VERSION:
        raise RepositoryError(
            DAMAGED,
            f"a node of a tree has version {version}",
            "a newer release of Holdfast wrote it: read it with that",
        )
    if found >= LEVELS or (level is not None and found != level):
        raise _damaged(f"its level is {found}" + ("" if level is None else f", where {level} belongs"))
    count = bitmap.bit_count()
    if flags == _FULL:
        fits = len(data) == _header.size + count * NAME_SIZE and count == FAN_OUT
    else:
        tags = data[_header.size : _header.size + count]
        fits = (
            not flags
            and count > 0
            and len(data) == _header.size + count + tags.count(CHUNK) * NAME_SIZE
            and tags.count(CHUNK) < FAN_OUT
            and all(tag != ZERO and is_entry(tag) for tag in set(tags))
        )
    if data[3] or not fits:
        raise _damaged("its parts do not fit each other")
    return int(found)


def _damaged(why: str) -> RepositoryError:
    return RepositoryError(
        DAMAGED,
        f"what should be a node of a tree is none: {why}",
        "run `holdfast repository verify`: it says which points that concerns",
    )


def take_apart(data: bytes) -> Slots:
    """The slots of a checked node."""
    if data[2]:
        return Slots(bytearray(b"\x01" * FAN_OUT), bytearray(data[_header.size :]))
    (bitmap,) = struct.unpack_from("<Q", data, 4)
    count = bitmap.bit_count()
    tags, names = bytearray(FAN_OUT), bytearray(FAN_OUT * NAME_SIZE)
    at = _header.size + count
    slot = -1
    for tag in data[_header.size : at]:
        slot += 1
        rest = bitmap >> slot
        slot += (rest & -rest).bit_length() - 1
        tags[slot] = tag
        if tag == CHUNK:
            names[slot * NAME_SIZE : (slot + 1) * NAME_SIZE] = data[at : at + NAME_SIZE]
            at += NAME_SIZE
    return Slots(tags, names)


def entry_of(data: bytes, slot: int) -> tuple[int, bytes]:
    """Tag and name (empty unless CHUNK) of one entry of a checked node."""
    if data[2]:
        at = _header.size + slot * NAME_SIZE
        return CHUNK, data[at : at + NAME_SIZE]
    (bitmap,) = struct.unpack_from("<Q", data, 4)
    if not bitmap >> slot & 1:
        return ZERO, b""
    before = (bitmap & ((1 << slot) - 1)).bit_count()
    tag = data[_header.size + before]
    if tag != CHUNK:
        return tag, b""
    at = _header.size + bitmap.bit_count() + data.count(CHUNK, _header.size, _header.size + before) * NAME_SIZE
    return CHUNK, data[at : at + NAME_SIZE]


def with_chunk(data: bytes | None, level: int, slot: int, name: bytes) -> bytes:
    """A checked node (None: one without entries) of which one entry is a chunk now. Cheaper than taking it apart."""
    if data is None:
        return _header.pack(_VERSION, level, 0, 1 << slot) + b"\x01" + name
    if data[2]:
        at = _header.size + slot * NAME_SIZE
        return b"".join((data[:at], name, data[at + NAME_SIZE :]))
    (bitmap,) = struct.unpack_from("<Q", data, 4)
    count = bitmap.bit_count()
    tag_at = _header.size + (bitmap & ((1 << slot) - 1)).bit_count()
    name_at = _header.size + count + data.count(CHUNK, _header.size, tag_at) * NAME_SIZE
    there = bitmap >> slot & 1
    behind = name_at + NAME_SIZE if there and data[tag_at] == CHUNK else name_at
    tags = b"".join((data[_header.size : tag_at], b"\x01", data[tag_at + there : _header.size + count]))
    names = (data[_header.size + count : name_at], name, data[behind:])
    if tags.count(CHUNK) == FAN_OUT:
        return b"".join((full_headers[level], *names))
    return b"".join((_header.pack(_VERSION, level, 0, bitmap | 1 << slot), tags, *names))


def names_in(data: bytes) -> bytes:
    """The names in a checked node, joined."""
    if data[2]:
        return data[_header.size :]
    (bitmap,) = struct.unpack_from("<Q", data, 4)
    return data[_header.size + bitmap.bit_count() :]


def is_full(data: bytes) -> bool:
    """All 64 entries of a checked node are chunks: their names stand from HEADER_SIZE on."""
    return data[2] == _FULL


def uniform(tag: int) -> Slots:
    return Slots(bytearray([tag]) * FAN_OUT, bytearray(FAN_OUT * NAME_SIZE))


def slots_of(node: bytes | int) -> Slots:
    """The slots of a checked node, or of one that is not there since everything below is the tag given."""
    return uniform(node) if isinstance(node, int) else take_apart(node)
