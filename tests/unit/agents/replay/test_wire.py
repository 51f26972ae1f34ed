"""The protocol of a replica: real bytes round trip, garbage is a `FormatError` and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.replay import events as made
from agents.replay import wire
from agents.replay.session import Session
from streams.formats.binlog import events as ev
from streams.formats.binlog.gtids import parse_gtid, parse_gtid_list
from streams.formats.binlog.step import summarise
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden

# A 10.11 replica's answer to the greeting, recorded; user `replay`, 20 bytes of response.
CAPABILITIES = wire.PROTOCOL_41 | wire.SECURE_CONNECTION | wire.PLUGIN_AUTH
RESPONSE = bytes(range(1, 21))
LOGIN = struct.pack("<IIB23x", CAPABILITIES, 1 << 24, 33) + b"replay\0\x14" + RESPONSE + b"mysql_native_password\0"


def test_a_login_is_read() -> None:
    assert wire.parse_login(LOGIN) == wire.Login(CAPABILITIES, "replay", RESPONSE, b"mysql_native_password")


def test_a_password_matches_only_itself() -> None:
    scramble = b"abcdefghijklmnopqrst"
    once = hashlib.sha1(b"secret").digest()
    mask = hashlib.sha1(scramble + hashlib.sha1(once).digest()).digest()
    response = bytes(a ^ b for a, b in zip(once, mask, strict=True))
    assert wire.password_matches("secret", scramble, response)
    assert not wire.password_matches("Secret", scramble, response)
    assert not wire.password_matches("secret", scramble, b"")
    first = hashlib.sha256(b"secret").digest()
    mask = hashlib.sha256(hashlib.sha256(hashlib.sha256(b"secret").digest()).digest() + scramble).digest()
    response = bytes(a ^ b for a, b in zip(first, mask, strict=True))
    assert wire.password_matches("secret", scramble, response, wire.CACHING)
    assert not wire.password_matches("Secret", scramble, response, wire.CACHING)
    assert not wire.password_matches("secret", scramble, response)


def test_commands_are_read() -> None:
    assert wire.parse_command(b"\x03SELECT 1") == wire.Question("SELECT 1")
    assert wire.parse_command(b"\x15" + struct.pack("<I", 7) + b"\0\0\0") == wire.Register(7)
    assert wire.parse_command(b"\x12" + struct.pack("<IHI", 4, 2, 7) + b"f.1") == wire.Dump(4, 2, 7, "f.1")
    dump = b"\x1e" + struct.pack("<HII", 4, 7, 3) + b"f.1" + struct.pack("<QI", 4, 8) + bytes(8)
    assert wire.parse_command(dump) == wire.DumpGtid(4, 7, bytes(8))
    with pytest.raises(FormatError):
        wire.parse_command(dump[:-1])
    assert wire.parse_command(b"\x0e") == wire.Other(wire.COM_PING)


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
def test_packets_come_in_any_cuts(cut: int) -> None:
    data = b"".join(wire.packet(bytes([n]) * n, n) for n in range(20))
    packets, found = wire.Packets(), []
    for at in range(0, len(data), cut):
        packets.feed(data[at : at + cut])
        found += list(packets)
    assert found == [(n, bytes([n]) * n) for n in range(20)]


def test_an_event_of_sixteen_megabytes_goes_in_several_packets() -> None:
    for length in (wire.FULL - 2, wire.FULL - 1, wire.FULL, 2 * wire.FULL - 1, 2 * wire.FULL + 5):
        event = struct.pack("<IBIIIH", 0, 30, 1, length, 0, 0) + bytes(length - 19)
        out, following = wire.framed(event, 5)
        sequence, content, data, at = 5, b"", b"".join(out), 0
        while at < len(data):
            word = int.from_bytes(data[at : at + 4], "little")
            assert word >> 24 == sequence
            size = word & wire.FULL
            content += data[at + 4 : at + 4 + size]
            at += 4 + size
            sequence += 1
            if size < wire.FULL:
                break
        assert at == len(data)
        assert content == b"\0" + event
        assert sequence == following


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_parsed_or_refused(data: bytes) -> None:
    for parse in (wire.parse_login, wire.parse_command, lambda d: wire.framed(d, 0)):
        with contextlib.suppress(FormatError):
            parse(data)
    packets = wire.Packets()
    try:
        packets.feed(data)
        list(packets)
    except FormatError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(LOGIN) - 1), st.integers(0, 255), st.integers(0, len(LOGIN)))
def test_a_damaged_login_is_parsed_or_refused(at: int, value: int, end: int) -> None:
    data = bytearray(LOGIN)
    data[at] = value
    for damaged in (bytes(data), LOGIN[:end]):
        with contextlib.suppress(FormatError):
            wire.parse_login(damaged)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=100))
def test_any_question_is_answered(sql: str) -> None:
    assert Session(1, "10.11.9-MariaDB").answer(sql, 0, 1)


def test_a_replica_sets_where_it_is() -> None:
    session = Session(1, "10.11.9-MariaDB")
    assert session.connect_state is None
    session.answer("SET @slave_connect_state='0-1-100,3-1-7'", 0, 1)
    assert session.connect_state == "0-1-100,3-1-7"


def test_an_xa_transaction_is_served_as_a_plain_one() -> None:
    log = golden("groups")
    events = {e.offset: e for e in ev.iter_events(log.events, checksum=True)}
    starts = [o for o, e in events.items() if e.type == ev.GTID and parse_gtid(ev.GTID, 1, e.body).xa is not None]
    end = next(o + e.length for o, e in events.items() if o > starts[1] and e.type == ev.QUERY)
    step = log.events[starts[0] : end]
    whole, plain = summarise(log.fde, step), summarise(log.fde, made.one_phase(step, checksum=True))
    assert (plain.gtid, plain.kind, plain.changes, plain.xid, plain.complete) == (
        whole.gtid,
        "rows",
        whole.changes,
        "",
        True,
    )
    assert whole.xid


@pytest.mark.parametrize("checksum", [True, False])
def test_made_events_are_events(checksum: bool) -> None:
    trailer = 4 if checksum else 0
    made_up = made.rotate("f.000001", server_id=3, checksum=checksum)
    made_up += made.until_reached([(0, 1, 100)], server_id=3, checksum=checksum)
    made_up += made.empty_step(0, 1, 101, "nothing", checksum=checksum)
    found = list(ev.iter_events(made_up, checksum))
    assert [e.type for e in found] == [ev.ROTATE, ev.GTID_LIST, ev.GTID, ev.QUERY]
    assert ev.parse_rotate(found[0].body) == ev.Rotate("f.000001", 4)
    until = parse_gtid_list(found[1].body)
    assert (until.flags, str(until.entries[0])) == (1, "0-1-100")
    assert parse_gtid(ev.GTID, found[2].server_id, found[2].body).text == "0-1-101"
    assert ev.parse_query(found[3].body).sql == b"# nothing"
    for e in found:
        event = made_up[e.offset : e.offset + e.length]
        assert not trailer or zlib.crc32(event[:-4]) == int.from_bytes(event[-4:], "little")
