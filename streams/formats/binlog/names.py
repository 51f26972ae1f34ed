"""Whether a step may name something, by its bytes: cheap enough to ask of every step before one is read.

A server may compress what it logs, and then a name is there but not in these bytes: MySQL puts a whole transaction into one
payload event (zstd), MariaDB compresses the text of a statement (zlib), of rows only the images, never a table map. So the
answers err on the side of yes, never of no: where these functions say no, `step` finds nothing of that name either.
"""

from __future__ import annotations

from typing import Final

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import HEADER_SIZE

# What every zstd frame begins with, so also the content of a transaction payload, unless that is not compressed at all.
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_HIDING: Final = frozenset({ev.QUERY_COMPRESSED, ev.TRANSACTION_PAYLOAD})


def table_name(table: tuple[str, str]) -> bytes:
    """Schema and table as every table map of the table holds them: each with its length before and a zero after."""
    return b"".join(bytes((min(len(n), 255),)) + n + b"\0" for n in (part.encode() for part in table))


def may_write(payload: bytes | None, name: bytes) -> bool:
    """Whether a step may hold rows of the table that `table_name` made `name` of. `payload`: whole events, of any number of
    steps; None where it is sealed, which may hold anything."""
    return payload is None or name in payload or _ZSTD in payload


def may_say(payload: bytes | None, word: bytes) -> bool:
    """Whether `word` may be in a step: in a table map, in a statement's text, or anywhere else. `payload` as in `may_write`."""
    return may_write(payload, word) or _hides(payload or b"")


def _hides(payload: bytes) -> bool:
    """Whether there is an event among these whole ones whose text is compressed. Damage may hide anything."""
    at, end = 0, len(payload)
    while end - at >= HEADER_SIZE:
        if payload[at + 4] in _HIDING:
            return True
        length = int.from_bytes(payload[at + 9 : at + 13], "little")
        if length < HEADER_SIZE:
            return True
        at += length
    return at != end
