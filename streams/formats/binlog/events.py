"""Events of the MySQL and MariaDB binary log: framing, headers and the events that are not rows (`gtids` has theirs).

Knows single events. Does not know how events form a step (`step`), nor rows (`table_map`, `rows`), nor the network
protocol that carries them. All integers of the format are little-endian unless said otherwise.

Sources: MariaDB Knowledge Base, "Replication Protocol"; MySQL Internals Manual, "Binary Log".
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple

from streams.formats.binlog.compressed import decompress, payload
from streams.formats.errors import FormatError, damaged, only_format_errors

Buffer = bytes | bytearray | memoryview

HEADER_SIZE: Final = 19
CHECKSUM_SIZE: Final = 4

# Event types. Plain integers, not an Enum: they are compared in loops that see millions of events.
QUERY: Final = 2
STOP: Final = 3
ROTATE: Final = 4
INTVAR: Final = 5
APPEND_BLOCK: Final = 9
DELETE_FILE: Final = 11
RAND: Final = 13
USER_VAR: Final = 14
FORMAT_DESCRIPTION: Final = 15
XID: Final = 16
BEGIN_LOAD_QUERY: Final = 17
EXECUTE_LOAD_QUERY: Final = 18
TABLE_MAP: Final = 19
WRITE_ROWS_V1: Final = 23
UPDATE_ROWS_V1: Final = 24
DELETE_ROWS_V1: Final = 25
INCIDENT: Final = 26
HEARTBEAT: Final = 27
IGNORABLE: Final = 28
ROWS_QUERY: Final = 29
WRITE_ROWS: Final = 30
UPDATE_ROWS: Final = 31
DELETE_ROWS: Final = 32
MYSQL_GTID: Final = 33
MYSQL_ANONYMOUS_GTID: Final = 34
MYSQL_PREVIOUS_GTIDS: Final = 35
TRANSACTION_CONTEXT: Final = 36
VIEW_CHANGE: Final = 37
XA_PREPARE: Final = 38
PARTIAL_UPDATE_ROWS: Final = 39
TRANSACTION_PAYLOAD: Final = 40
HEARTBEAT_V2: Final = 41
MYSQL_GTID_TAGGED: Final = 42
ANNOTATE_ROWS: Final = 160
BINLOG_CHECKPOINT: Final = 161
GTID: Final = 162
GTID_LIST: Final = 163
START_ENCRYPTION: Final = 164
QUERY_COMPRESSED: Final = 165
WRITE_ROWS_COMPRESSED_V1: Final = 166
UPDATE_ROWS_COMPRESSED_V1: Final = 167
DELETE_ROWS_COMPRESSED_V1: Final = 168
WRITE_ROWS_COMPRESSED: Final = 169
UPDATE_ROWS_COMPRESSED: Final = 170
DELETE_ROWS_COMPRESSED: Final = 171

# Read off the constants above, from QUERY on.
EVENT_NAMES: Final[dict[int, str]] = {
    value: name
    for name, value in list(globals().items())
    if name.isupper() and isinstance(value, int) and name not in ("HEADER_SIZE", "CHECKSUM_SIZE")
}

# What opens a step where the server numbers its transactions.
GTIDS: Final = frozenset({GTID, MYSQL_GTID, MYSQL_ANONYMOUS_GTID, MYSQL_GTID_TAGGED})

ANONYMOUS: Final = "anonymous"

# Header flags.
FLAG_IN_USE: Final = 0x01
FLAG_ARTIFICIAL: Final = 0x20
FLAG_IGNORABLE: Final = 0x80
FLAG_SKIP_REPLICATION: Final = 0x8000

# MariaDB GTID event flags (FL_*).
GTID_STANDALONE: Final = 0x01
GTID_GROUP_COMMIT_ID: Final = 0x02
GTID_TRANSACTIONAL: Final = 0x04
GTID_ALLOW_PARALLEL: Final = 0x08
GTID_WAITED: Final = 0x10
GTID_DDL: Final = 0x20
GTID_PREPARED_XA: Final = 0x40
GTID_COMPLETED_XA: Final = 0x80
# `flags_extra` of a MariaDB GTID: one ALTER in two groups (binlog_alter_two_phase).
GTID_START_ALTER: Final = 0x02
GTID_COMMIT_ALTER: Final = 0x04
GTID_ROLLBACK_ALTER: Final = 0x08

CHECKSUM_NONE: Final = 0
CHECKSUM_CRC32: Final = 1

WHOLE_EVENTS_HINT: Final = "give the parser whole events"

_header = Struct("<IBIIIH")
_u16 = Struct("<H")
_u32 = Struct("<I")
_u64 = Struct("<Q")


class Header(NamedTuple):
    """The 19 bytes every event begins with. `length` includes header, body and checksum; `timestamp` is in seconds."""

    timestamp: int
    type: int
    server_id: int
    length: int
    next_pos: int
    flags: int


class Event(NamedTuple):
    """One event. `body` is a view without header and checksum; `offset` is where the event begins in the buffer."""

    type: int
    timestamp: int
    server_id: int
    length: int
    next_pos: int
    flags: int
    body: memoryview
    offset: int


@dataclass(frozen=True, slots=True)
class FormatDescription:
    """What the log that follows looks like. `raw` is the whole event as the server sent it."""

    binlog_version: int
    server_version: str
    created: int
    post_header_lengths: bytes
    checksum: int
    raw: bytes = field(repr=False)

    @property
    def mariadb(self) -> bool:
        return "MariaDB" in self.server_version

    @property
    def has_checksum(self) -> bool:
        """Whether the events that follow end in a CRC32."""
        return self.checksum == CHECKSUM_CRC32


@dataclass(frozen=True, slots=True)
class XaId:
    """An XA transaction's name: format id, global and branch part."""

    format_id: int
    gtrid: bytes
    bqual: bytes

    def __str__(self) -> str:
        return f"X'{self.gtrid.hex()}',X'{self.bqual.hex()}',{self.format_id}"


# Status variables of a query event (Q_*): code -> fixed size, or None for those measured while parsing.
_Q_FLAGS2, _Q_SQL_MODE, _Q_CHARSET, _Q_TIME_ZONE, _Q_MICROSECONDS, _Q_HRNOW = 0, 1, 4, 5, 13, 128
_STATUS_SIZES: Final[dict[int, int]] = {
    0: 4,
    1: 8,
    3: 4,
    4: 6,
    7: 2,
    8: 2,
    9: 8,
    10: 4,
    13: 3,
    16: 1,
    17: 8,
    18: 2,
    19: 1,
    20: 1,
    128: 3,
    129: 8,
}


@dataclass(frozen=True, slots=True)
class Query:
    """A statement. `sql` is in the client's character set; `status` maps Q_* codes to their raw values."""

    thread_id: int
    execution_seconds: int
    error_code: int
    database: str
    sql: bytes
    status: dict[int, bytes]

    @property
    def flags2(self) -> int | None:
        """Session flags: 0x80000 not autocommit, 0x4000000 no foreign key checks, 0x8000000 relaxed unique checks."""
        value = self.status.get(_Q_FLAGS2)
        return None if value is None else _u32.unpack(value)[0]

    @property
    def sql_mode(self) -> int | None:
        value = self.status.get(_Q_SQL_MODE)
        return None if value is None else _u64.unpack(value)[0]

    @property
    def charset(self) -> tuple[int, int, int] | None:
        """Collation ids of character_set_client, collation_connection, collation_server."""
        value = self.status.get(_Q_CHARSET)
        return None if value is None else Struct("<HHH").unpack(value)

    @property
    def time_zone(self) -> str | None:
        value = self.status.get(_Q_TIME_ZONE)
        return None if value is None else value.decode("ascii", "replace")

    @property
    def microseconds(self) -> int | None:
        """Fraction of the event's timestamp, where the statement used it."""
        value = self.status.get(_Q_HRNOW, self.status.get(_Q_MICROSECONDS))
        return None if value is None else int.from_bytes(value, "little")


@dataclass(frozen=True, slots=True)
class Rotate:
    file: str
    position: int


@dataclass(frozen=True, slots=True)
class Incident:
    """The server lost events here (for instance a cache too small, a failed write): the log has a hole."""

    number: int
    message: str


@dataclass(frozen=True, slots=True)
class XaPrepare:
    one_phase: bool
    xid: XaId


@dataclass(frozen=True, slots=True)
class StartEncryption:
    scheme: int
    key_version: int
    nonce: bytes


def event_name(event_type: int) -> str:
    """`WRITE_ROWS_V1`, or `event type 77` for one this module does not know."""
    return EVENT_NAMES.get(event_type, f"event type {event_type}")


def parse_header(buffer: Buffer, offset: int = 0) -> Header:
    """The header at `offset`. Does not require the rest of the event to be there."""
    if offset < 0 or len(buffer) - offset < HEADER_SIZE:
        raise FormatError("truncated", "an event header is cut off", WHOLE_EVENTS_HINT)
    header = Header(*_header.unpack_from(buffer, offset))
    if header.length < HEADER_SIZE:
        raise FormatError("bad-length", f"an event claims {header.length} bytes, less than its own header")
    return header


def iter_events(buffer: Buffer, checksum: bool, offset: int = 0, *, expand: bool = False) -> Iterator[Event]:
    """The events that `buffer` is the concatenation of. Bytes at the end that are no whole event are an error.

    A format description ends in a checksum field whatever `checksum` says: its body is everything after the header.
    `expand`: in place of a transaction payload the events in it, whose `offset` is then that of the payload.
    """
    view = memoryview(buffer).toreadonly()
    unpack = _header.unpack_from
    end = len(view)
    trailer = CHECKSUM_SIZE if checksum else 0
    while offset < end:
        if end - offset < HEADER_SIZE:
            raise FormatError("truncated", f"an event header is cut off at byte {offset}", WHOLE_EVENTS_HINT)
        timestamp, kind, server_id, length, next_pos, flags = unpack(view, offset)
        stop = offset + length
        if length < HEADER_SIZE + trailer:
            raise FormatError("bad-length", f"{event_name(kind)} at byte {offset} claims {length} bytes")
        if stop > end:
            raise FormatError(
                "truncated",
                f"{event_name(kind)} at byte {offset} is cut off: {length} bytes, {end - offset} there",
                WHOLE_EVENTS_HINT,
            )
        body = view[offset + HEADER_SIZE : stop if kind == FORMAT_DESCRIPTION else stop - trailer]
        if expand and kind == TRANSACTION_PAYLOAD:
            for inner in iter_events(transaction_payload(body), False):
                yield inner._replace(offset=offset)
            offset = stop
            continue
        yield Event(kind, timestamp, server_id, length, next_pos, flags, body, offset)
        offset = stop


def is_format_description(buffer: Buffer) -> bool:
    """Whether `buffer` looks like a format-description event: what follows it is a binary log."""
    return len(buffer) > HEADER_SIZE and buffer[4] == FORMAT_DESCRIPTION


def whole_events(buffer: Buffer, offset: int = 0) -> tuple[int, int]:
    """How far `buffer` holds whole events from `offset` on, and how long it must be to hold the next one as well.

    Raises `FormatError` (`bad-length`).
    """
    end = len(buffer)
    while end - offset >= HEADER_SIZE:
        (length,) = _u32.unpack_from(buffer, offset + 9)
        if length < HEADER_SIZE:
            raise FormatError("bad-length", f"an event of {length} bytes at {offset}", WHOLE_EVENTS_HINT)
        if length > end - offset:
            return offset, offset + length
        offset += length
    return offset, offset + HEADER_SIZE


def checksum_matches(event: Buffer) -> bool:
    """Whether the CRC32 at the end of one whole event is that of its bytes.

    The server computes it with the in-use flag cleared, which only a format description ever has set.
    """
    if len(event) < HEADER_SIZE + CHECKSUM_SIZE:
        return False
    view = memoryview(event)
    expected = int.from_bytes(view[-CHECKSUM_SIZE:], "little")
    if view[4] == FORMAT_DESCRIPTION and view[17] & FLAG_IN_USE:
        cleared = bytearray(view[:-CHECKSUM_SIZE])
        cleared[17] &= ~FLAG_IN_USE
        return zlib.crc32(cleared) == expected
    return zlib.crc32(view[:-CHECKSUM_SIZE]) == expected


def verify_checksums(buffer: Buffer) -> int:
    """Checks the CRC32 of every event of a checksummed buffer; returns how many there were. Raises `bad-checksum`."""
    view = memoryview(buffer)
    count = 0
    for event in iter_events(view, checksum=True):
        if not checksum_matches(view[event.offset : event.offset + event.length]):
            raise FormatError(
                "bad-checksum",
                f"the CRC32 of {event_name(event.type)} at byte {event.offset} is wrong",
                "the event was damaged at the source, in transit or in the log: compare the record's digest",
            )
        count += 1
    return count


_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def _logs_checksum_byte(version: str) -> bool:
    found = _VERSION.match(version)
    if found is None:
        return True
    triple = tuple(int(part) for part in found.groups())
    return triple >= ((5, 3, 0) if "MariaDB" in version else (5, 6, 1))


@functools.lru_cache(maxsize=256)
def _format_description(raw: bytes) -> FormatDescription:
    header = parse_header(raw)
    if header.type != FORMAT_DESCRIPTION or header.length != len(raw) or len(raw) < HEADER_SIZE + 57:
        raise damaged("the format-description event")
    version = raw[21:71].split(b"\0", 1)[0].decode("latin-1")
    header_length = raw[75]
    if header_length < HEADER_SIZE:
        raise damaged("the format-description event")
    end, checksum = len(raw), CHECKSUM_NONE
    if _logs_checksum_byte(version):
        end -= CHECKSUM_SIZE + 1
        if end < 76:
            raise damaged("the format-description event")
        checksum = raw[end]
        if checksum not in (CHECKSUM_NONE, CHECKSUM_CRC32):
            raise FormatError("unsupported-event", f"the log uses checksum algorithm {checksum}, which is not known")
    return FormatDescription(
        binlog_version=_u16.unpack_from(raw, 19)[0],
        server_version=version,
        created=_u32.unpack_from(raw, 71)[0],
        post_header_lengths=raw[76:end],
        checksum=checksum,
        raw=raw,
    )


def parse_format_description(event: Buffer) -> FormatDescription:
    """The whole event, header and checksum field included. Repeated calls with equal bytes are cheap."""
    return _format_description(bytes(event))


@only_format_errors("an XID event")
def parse_xid(body: Buffer) -> int:
    return int(_u64.unpack_from(body)[0])


@only_format_errors("a query event")
def parse_query(body: Buffer, event_type: int = QUERY) -> Query:
    """The body of a QUERY or QUERY_COMPRESSED event (2, 165)."""
    raw = bytes(body)
    thread_id, seconds, database_length, error_code, status_length = Struct("<IIBHH").unpack_from(raw)
    at = 13 + status_length
    if at + database_length + 1 > len(raw):
        raise IndexError
    database = raw[at : at + database_length].decode("utf-8", "backslashreplace")
    sql = raw[at + database_length + 1 :]
    if event_type == QUERY_COMPRESSED:
        sql = decompress(sql)
    return Query(thread_id, seconds, error_code, database, sql, _parse_status(raw[13:at]))


def _parse_status(raw: bytes) -> dict[int, bytes]:
    """Status variables up to the first one that is not known: they carry no lengths, so it cannot be stepped over."""
    status: dict[int, bytes] = {}
    at = 0
    while at < len(raw):
        code = raw[at]
        at += 1
        size = _STATUS_SIZES.get(code)
        if size is not None:
            value = raw[at : at + size]
        elif code in (5, 6):  # time zone, catalogue: length and text
            size = 1 + raw[at]
            value = raw[at + 1 : at + size]
        elif code == 130:  # MariaDB: the GTID's `flags_extra`, and of an ALTER's second group which one was its first
            size = 9 if raw[at] & (GTID_COMMIT_ALTER | GTID_ROLLBACK_ALTER) else 1
            value = raw[at : at + size]
        elif code == 2:  # catalogue of 5.0, with a terminator
            size = 2 + raw[at]
            value = raw[at + 1 : at + size - 1]
        elif code == 11:  # invoker: user and host, each with a length
            user = raw[at]
            size = 2 + user + raw[at + 1 + user]
            value = raw[at : at + size]
        elif code == 12:  # databases the statement touched
            size = 1
            if raw[at] != 254:
                for _ in range(raw[at]):
                    size = raw.index(b"\0", at + size) - at + 1
            value = raw[at : at + size]
        else:
            break
        if at + size > len(raw):
            raise IndexError
        status[code] = value
        at += size
    return status


@only_format_errors("a rotate event")
def parse_rotate(body: Buffer) -> Rotate:
    raw = bytes(body)
    (position,) = _u64.unpack_from(raw)
    return Rotate(raw[8:].decode("utf-8", "surrogateescape"), position)


@only_format_errors("an incident event")
def parse_incident(body: Buffer) -> Incident:
    raw = bytes(body)
    (number,) = _u16.unpack_from(raw)
    length = raw[2] if len(raw) > 2 else 0
    return Incident(number, raw[3 : 3 + length].decode("utf-8", "replace"))


def parse_annotate_rows(body: Buffer) -> bytes:
    """The statement that the rows events after it came from."""
    return bytes(body)


@only_format_errors("an XA prepare event")
def parse_xa_prepare(body: Buffer) -> XaPrepare:
    raw = bytes(body)
    one_phase, format_id, gtrid, bqual = Struct("<BiII").unpack_from(raw)
    if 13 + gtrid + bqual > len(raw):
        raise IndexError
    return XaPrepare(bool(one_phase), XaId(format_id, raw[13 : 13 + gtrid], raw[13 + gtrid : 13 + gtrid + bqual]))


@only_format_errors("a start-encryption event")
def parse_start_encryption(body: Buffer) -> StartEncryption:
    raw = bytes(body)
    scheme, version = Struct("<BI").unpack_from(raw)
    if len(raw) < 17:
        raise IndexError
    return StartEncryption(scheme, version, raw[5:17])


def parse_heartbeat(body: Buffer) -> str:
    """The name of the file the server is reading; the position is the header's `next_pos`."""
    return bytes(body).decode("utf-8", "surrogateescape")


@only_format_errors("a binlog checkpoint event")
def parse_binlog_checkpoint(body: Buffer) -> str:
    raw = bytes(body)
    (length,) = _u32.unpack_from(raw)
    if 4 + length > len(raw):
        raise IndexError
    return raw[4 : 4 + length].decode("utf-8", "surrogateescape")


@only_format_errors("a transaction payload")
def transaction_payload(body: Buffer) -> bytes:
    """The events, without checksums, that a transaction payload (40) holds compressed; another payload is not among them:
    there would be no end to what they could expand to."""
    events = payload(body)
    at, end = 0, len(events)
    while at < end:
        header = parse_header(events, at)
        if header.type == TRANSACTION_PAYLOAD:
            raise damaged("a transaction payload")
        at += header.length
    return events
