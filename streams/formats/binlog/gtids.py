"""GTID events of the binary log: MariaDB's, and MySQL's with and without a tag.

Sources: as of `events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import Buffer, XaId
from streams.formats.errors import FormatError, only_format_errors

_u32 = Struct("<I")
_u64 = Struct("<Q")


@dataclass(frozen=True, slots=True)
class Gtid:
    """The event that opens a step. `text`: the notation of the server (MariaDB `0-1-100`, MySQL `uuid:100` or
    `uuid:tag:100`)."""

    text: str
    domain: int
    server_id: int
    sequence: int
    flags: int = 0
    flags_extra: int = 0
    commit_id: int | None = None
    xa: XaId | None = None

    @property
    def standalone(self) -> bool:
        """No closing event follows: the step is the one statement after this event."""
        return bool(self.flags & ev.GTID_STANDALONE)

    @property
    def transactional(self) -> bool:
        """Every table touched supports rollback (so the server claims)."""
        return bool(self.flags & ev.GTID_TRANSACTIONAL)

    @property
    def ddl(self) -> bool:
        return bool(self.flags & ev.GTID_DDL)

    @property
    def waited(self) -> bool:
        return bool(self.flags & ev.GTID_WAITED)

    @property
    def prepared_xa(self) -> bool:
        return bool(self.flags & ev.GTID_PREPARED_XA)

    @property
    def completed_xa(self) -> bool:
        return bool(self.flags & ev.GTID_COMPLETED_XA)


@dataclass(frozen=True, slots=True)
class GtidListEntry:
    domain: int
    server_id: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.domain}-{self.server_id}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class GtidList:
    """MariaDB: the binlog state at the start of a file. `flags`: upper four bits of the count (1 stop, 2 until)."""

    entries: tuple[GtidListEntry, ...]
    flags: int


@only_format_errors("a ev.GTID event")
def parse_gtid(event_type: int, server_id: int, body: Buffer) -> Gtid:
    """The body of a MariaDB ev.GTID event (162; `server_id` comes from its header) or of a MySQL one (33, 34, 42)."""
    raw = bytes(body)
    if event_type == ev.GTID:
        return _parse_mariadb_gtid(server_id, raw)
    if event_type in (ev.MYSQL_GTID, ev.MYSQL_ANONYMOUS_GTID):
        (number,) = Struct("<q").unpack_from(raw, 17)
        text = f"{_uuid(raw[1:17])}:{number}" if event_type == ev.MYSQL_GTID else ev.ANONYMOUS
        return Gtid(text=text, domain=0, server_id=server_id, sequence=number)
    if event_type == ev.MYSQL_GTID_TAGGED:
        source, tag, number = _tagged(raw)
        return Gtid(text=f"{_uuid(source)}:{tag}:{number}", domain=0, server_id=server_id, sequence=number)
    raise FormatError("unsupported-event", f"{ev.event_name(event_type)} is not a ev.GTID event that can be read")


def _uuid(raw: bytes) -> str:
    if len(raw) != 16:
        raise IndexError
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _tagged(raw: bytes) -> tuple[bytes, str, int]:
    """UUID, tag and number of MySQL's tagged ev.GTID event, which is written in its serialisation format: version, size, the
    last field that must be known, then fields in ascending order, each with its id. 0 flags, 1 UUID, 2 number, 3 tag."""
    at = 0

    def number() -> int:
        """As many bits set at the low end as bytes follow; the value stands above them."""
        nonlocal at
        more = (~raw[at] & -~raw[at]).bit_length() - 1 if raw[at] != 0xFF else 8
        if at + 1 + more > len(raw):
            raise IndexError
        value = int.from_bytes(raw[at : at + 1 + more], "little") >> min(more + 1, 8)
        at += 1 + more
        return value

    for _ in range(3):
        number()
    source, tag, sequence = b"", "", 0
    while at < len(raw) and (field_id := number()) <= 3:
        if field_id == 1:
            source = bytes(number() & 0xFF for _ in range(16))
        elif field_id == 2:
            zigzag = number()
            sequence = -(zigzag >> 1) - 1 if zigzag & 1 else zigzag >> 1
        elif field_id == 3:
            length = number()
            if at + length > len(raw):
                raise IndexError
            tag = raw[at : at + length].decode("ascii", "replace")
            at += length
        else:
            number()
    return source, tag, sequence


def _parse_mariadb_gtid(server_id: int, raw: bytes) -> Gtid:
    sequence, domain, flags = Struct("<QIB").unpack_from(raw)
    at = 13
    commit_id: int | None = None
    xa: XaId | None = None
    if flags & ev.GTID_GROUP_COMMIT_ID:
        (commit_id,) = _u64.unpack_from(raw, at)
        at += 8
    if flags & (ev.GTID_PREPARED_XA | ev.GTID_COMPLETED_XA):
        format_id, gtrid, bqual = Struct("<iBB").unpack_from(raw, at)
        at += 6
        if at + gtrid + bqual > len(raw):
            raise IndexError
        xa = XaId(format_id, raw[at : at + gtrid], raw[at + gtrid : at + gtrid + bqual])
        at += gtrid + bqual
    extra = raw[at] if at < len(raw) else 0
    return Gtid(f"{domain}-{server_id}-{sequence}", domain, server_id, sequence, flags, extra, commit_id, xa)


@only_format_errors("a ev.GTID list event")
def parse_gtid_list(body: Buffer) -> GtidList:
    raw = bytes(body)
    (word,) = _u32.unpack_from(raw)
    count, flags = word & 0x0FFFFFFF, word >> 28
    if 4 + 16 * count > len(raw):
        raise IndexError
    entry = Struct("<IIQ")
    return GtidList(tuple(GtidListEntry(*entry.unpack_from(raw, 4 + 16 * i)) for i in range(count)), flags)
