"""Events that a primary makes up while it serves a log: they stand in no log. Pure.

All end in a CRC32 where the log that they are put between has one.
https://mariadb.com/kb/en/fake-rotate_event/, …/gtid_list_event/
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from struct import Struct
from typing import Final

from streams.formats.binlog import events as ev
from streams.formats.binlog.gtids import parse_gtid
from streams.formats.errors import damaged

UNTIL_REACHED: Final = 1 << 28
_header = Struct("<IBIIIH").pack
_CREATED = slice(ev.HEADER_SIZE + 52, ev.HEADER_SIZE + 56)


def made(
    kind: int, body: bytes, *, server_id: int, checksum: bool, position: int = 0, artificial: bool = True
) -> bytes:
    """One event with header and checksum."""
    length = ev.HEADER_SIZE + len(body) + (ev.CHECKSUM_SIZE if checksum else 0)
    flags = ev.FLAG_ARTIFICIAL if artificial else 0
    event = _header(0, kind, server_id, length, position & 0xFFFFFFFF, flags) + body
    return event + zlib.crc32(event).to_bytes(4, "little") if checksum else event


def rotate(file: str, *, server_id: int, checksum: bool) -> bytes:
    """What follows stands in `file`, from its beginning."""
    return made(ev.ROTATE, (4).to_bytes(8, "little") + file.encode(), server_id=server_id, checksum=checksum)


def until_reached(position: Iterable[tuple[int, int, int]], *, server_id: int, checksum: bool) -> bytes:
    """A GTID list that tells the replica that it has all it asked for. `position`: domain, server id, sequence."""
    entries = [Struct("<IIQ").pack(*entry) for entry in position]
    body = (len(entries) | UNTIL_REACHED).to_bytes(4, "little") + b"".join(entries)
    return made(ev.GTID_LIST, body, server_id=server_id, checksum=checksum)


def description(preamble: bytes, *, resumed: bool) -> bytes:
    """The format description to begin a file with. `resumed`: the replica has the beginning of this log already, so it must
    not take this for a start of the source, which would cost it its temporary tables."""
    if len(preamble) < ev.HEADER_SIZE + 61:
        raise damaged("the format-description event")
    event = bytearray(preamble)
    event[13:17] = bytes(4)  # where the next event stands: nowhere
    event[17] &= ~ev.FLAG_IN_USE & 0xFF
    if resumed:
        event[_CREATED] = bytes(4)
    if ev.parse_format_description(preamble).has_checksum:
        event[-4:] = zlib.crc32(event[:-4]).to_bytes(4, "little")
    return bytes(event)


def one_phase(payload: bytes, *, checksum: bool) -> bytes:
    """An XA transaction's step, which is both its groups, as the step of a plain transaction with the second one's GTID.

    A replica that took the groups would be told to go back: the first one's GTID is older than what came in between.
    """
    events = list(ev.iter_events(payload, checksum))
    gtids = [e for e in events if e.type == ev.GTID]
    if len(gtids) != 2:
        raise damaged("an XA transaction's step")
    gtid = parse_gtid(ev.GTID, gtids[1].server_id, gtids[1].body)
    head = Struct("<QIB").pack(gtid.sequence, gtid.domain, ev.GTID_TRANSACTIONAL) + bytes(6)
    common = {"server_id": gtid.server_id, "checksum": checksum, "artificial": False}
    kept = [
        payload[e.offset : e.offset + e.length]
        for e in events
        if e.offset < gtids[1].offset and e.type not in (ev.GTID, ev.XA_PREPARE) and not _ends_xa(e)
    ]
    return b"".join([
        made(ev.GTID, head, **common), *kept, made(ev.XID, bytes(8), **common),  # type: ignore[arg-type]
    ])  # fmt: skip


def is_xa(payload: bytes) -> bool:
    """Whether a step of MySQL's begins an XA transaction: a GTID, then `XA START`."""
    at = int.from_bytes(payload[9:13], "little")
    if len(payload) < at + ev.HEADER_SIZE or payload[at + 4] != ev.QUERY:
        return False
    # A zero stands before a statement, and in no name before it.
    return payload.find(b"\0XA START ", at, at + int.from_bytes(payload[at + 9 : at + 13], "little")) >= 0


def plain_mysql(payload: bytes, *, checksum: bool) -> bytes:
    """An XA transaction's step of MySQL's, in one phase or two, as that of a plain transaction with the GTID under which it was
    committed: so a copy that ends in between holds nothing prepared."""
    events = list(ev.iter_events(payload, checksum))
    numbered = [e for e in events if e.type in (ev.MYSQL_GTID, ev.MYSQL_GTID_TAGGED)]
    if not numbered or len(events) < 2 or events[1].type != ev.QUERY:
        raise damaged("an XA transaction's step")
    common = {"server_id": numbered[-1].server_id, "checksum": checksum, "artificial": False}
    text = len(ev.parse_query(events[1].body, ev.QUERY).sql)
    begin = made(ev.QUERY, bytes(events[1].body)[:-text] + b"BEGIN", **common)  # type: ignore[arg-type]
    kept = [
        payload[e.offset : e.offset + e.length]
        for e in events
        if e not in numbered and e.type != ev.XA_PREPARE and not _ends_xa(e)
    ]
    last = numbered[-1]
    return b"".join([
        payload[last.offset : last.offset + last.length], begin, *kept,
        made(ev.XID, bytes(8), **common),  # type: ignore[arg-type]
    ])  # fmt: skip


def _ends_xa(event: ev.Event) -> bool:
    return event.type in (ev.QUERY, ev.QUERY_COMPRESSED) and ev.parse_query(event.body, event.type).sql.startswith(
        b"XA "
    )


def empty_step(domain: int, server_id: int, sequence: int, why: str, *, checksum: bool) -> bytes:
    """A step that changes nothing, in the place of one that is not to be applied: its GTID, and a comment."""
    gtid = Struct("<QIB").pack(sequence, domain, ev.GTID_STANDALONE) + bytes(6)
    query = Struct("<IIBHH").pack(0, 0, 0, 0, 0) + b"\0# " + why.encode()
    common = {"server_id": server_id, "checksum": checksum, "artificial": False}
    return made(ev.GTID, gtid, **common) + made(ev.QUERY, query, **common)  # type: ignore[arg-type]
