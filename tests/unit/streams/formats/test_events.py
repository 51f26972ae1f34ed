"""Framing and single events, from golden logs and byte by byte."""

from __future__ import annotations

import struct
import zlib

import pytest

from streams.formats.binlog import events as ev
from streams.formats.binlog.compressed import decompress
from streams.formats.binlog.events import (
    XaId,
    checksum_matches,
    iter_events,
    parse_format_description,
    parse_header,
    parse_incident,
    parse_query,
    parse_rotate,
    parse_xid,
)
from streams.formats.binlog.gtids import Gtid, parse_gtid, parse_gtid_list
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import GOLDEN, golden, golden_names


def event(kind: int, body: bytes, timestamp: int = 7, server_id: int = 1, checksum: bool = True) -> bytes:
    length = 19 + len(body) + (4 if checksum else 0)
    raw = struct.pack("<IBIIIH", timestamp, kind, server_id, length, 0, 0) + body
    return raw + struct.pack("<I", zlib.crc32(raw)) if checksum else raw


def test_the_format_description_of_a_real_server() -> None:
    fde = golden("groups").fde
    assert fde.server_version.startswith("10.11.")
    assert fde.mariadb
    assert fde.has_checksum
    assert fde.binlog_version == 4
    assert fde.post_header_lengths[ev.TABLE_MAP - 1] == 8
    assert fde.post_header_lengths[ev.GTID - 1] == 19
    assert checksum_matches(fde.raw)
    assert parse_format_description(memoryview(fde.raw)) is parse_format_description(fde.raw)


def test_servers_before_checksums_have_no_algorithm_byte() -> None:
    raw = bytearray(golden("groups").fde.raw)
    raw[21:71] = b"5.5.9-log".ljust(50, b"\0")
    assert not parse_format_description(raw).has_checksum
    raw[21:71] = b"8.0.36".ljust(50, b"\0")
    described = parse_format_description(raw)
    assert described.has_checksum
    assert not described.mariadb


@pytest.mark.parametrize("name", golden_names())
def test_framing_takes_whole_events_and_nothing_else(name: str) -> None:
    events = (GOLDEN / f"{name}.binlog").read_bytes()[4:][:6000]
    known = {0}
    at = 0
    while at + 19 <= len(events) and at + parse_header(events, at).length <= len(events):
        at += parse_header(events, at).length
        known.add(at)
    for cut in range(min(len(events), 1500)):
        if cut in known:
            assert sum(e.length for e in iter_events(events[:cut], checksum=True)) == cut
        else:
            with pytest.raises(FormatError):
                list(iter_events(events[:cut], checksum=True))


def test_bodies_are_views_without_header_and_checksum() -> None:
    buffer = event(ev.XID, struct.pack("<Q", 42)) + event(ev.ROTATE, struct.pack("<Q", 4) + b"binlog.000002")
    first, second = iter_events(buffer, checksum=True)
    assert (first.type, first.timestamp, first.offset, parse_xid(first.body)) == (ev.XID, 7, 0, 42)
    assert parse_rotate(second.body).file == "binlog.000002"
    assert second.body.obj is buffer
    assert second.body.readonly


def test_a_header_that_lies_about_its_length() -> None:
    short = struct.pack("<IBIIIH", 0, ev.XID, 1, 18, 0, 0)
    with pytest.raises(FormatError) as caught:
        parse_header(short)
    assert caught.value.code == "bad-length"
    with pytest.raises(FormatError):
        list(iter_events(short, checksum=False))


def gtid(body: bytes) -> Gtid:
    return parse_gtid(ev.GTID, 3, body)


def test_gtid_events() -> None:
    head = struct.pack("<QI", 100, 7)
    plain = gtid(head + b"\x29" + bytes(6))
    assert (plain.text, plain.standalone, plain.ddl, plain.transactional) == ("7-3-100", True, True, False)
    grouped = gtid(head + bytes([ev.GTID_GROUP_COMMIT_ID | ev.GTID_TRANSACTIONAL]) + struct.pack("<Q", 99))
    assert (grouped.commit_id, grouped.transactional, grouped.standalone) == (99, True, False)
    prepared = gtid(head + bytes([ev.GTID_PREPARED_XA]) + struct.pack("<iBB", 5, 2, 1) + b"abc")
    assert prepared.prepared_xa
    assert prepared.xa == XaId(5, b"ab", b"c")
    assert str(prepared.xa) == "X'6162',X'63',5"
    both = gtid(head + b"\x42" + struct.pack("<Q", 1) + struct.pack("<iBB", -1, 1, 0) + b"x" + b"\x01\x02")
    assert (both.commit_id, both.flags_extra) == (1, 1)
    with pytest.raises(FormatError):
        gtid(head + bytes([ev.GTID_PREPARED_XA]) + struct.pack("<iBB", 5, 200, 1) + b"abc")
    mysql = parse_gtid(ev.MYSQL_GTID, 1, b"\x01" + bytes(range(16)) + struct.pack("<q", 23))
    assert mysql.text == "00010203-0405-0607-0809-0a0b0c0d0e0f:23"


def test_gtid_lists_do_not_believe_their_count() -> None:
    entry = struct.pack("<IIQ", 0, 1, 5)
    listed = parse_gtid_list(struct.pack("<I", 2 | 1 << 28) + entry + struct.pack("<IIQ", 1, 2, 9))
    assert [str(e) for e in listed.entries] == ["0-1-5", "1-2-9"]
    assert listed.flags == 1
    with pytest.raises(FormatError):
        parse_gtid_list(struct.pack("<I", 0x0FFFFFFF) + entry)


def test_queries_carry_their_session() -> None:
    log = golden("groups")
    queries = [parse_query(e.body) for e in iter_events(log.events, checksum=True) if e.type == ev.QUERY]
    assert all(query.database in ("golden", "holdfast", "") for query in queries)
    created = next(q for q in queries if q.sql.startswith(b"CREATE TABLE t "))
    assert created.charset == (45, 45, created.charset[2] if created.charset else 0)
    assert created.sql_mode is not None
    assert created.thread_id > 0
    assert created.error_code == 0


def test_unknown_status_variables_end_the_list_but_not_the_event() -> None:
    status = b"\x01" + struct.pack("<Q", 5) + b"\xf0whatever"
    body = struct.pack("<IIBHH", 9, 0, 1, 0, len(status)) + status + b"d\0SELECT 1"
    query = parse_query(body)
    assert (query.sql_mode, query.database, query.sql) == (5, "d", b"SELECT 1")
    with pytest.raises(FormatError):
        parse_query(body[:20])


def test_incidents_say_why() -> None:
    assert parse_incident(struct.pack("<H", 1) + b"\x0bLOST_EVENTS").message == "LOST_EVENTS"
    assert parse_incident(struct.pack("<H", 1)).message == ""


def test_decompression_is_bounded() -> None:
    data = b"a" * 5000
    packed = zlib.compress(data)
    assert decompress(b"\x82" + (5000).to_bytes(2, "big") + packed) == data
    for claim in (4999, 5001, 2**31):
        with pytest.raises(FormatError):
            decompress(b"\x84" + claim.to_bytes(4, "big") + packed)
    with pytest.raises(FormatError, match="algorithm"):
        decompress(b"\x92" + (5000).to_bytes(2, "big") + packed)
    with pytest.raises(FormatError):
        decompress(b"")


def test_checksums_cover_everything_before_them() -> None:
    raw = event(ev.XID, struct.pack("<Q", 1))
    assert checksum_matches(raw)
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        assert not checksum_matches(broken)
    assert not checksum_matches(b"short")
