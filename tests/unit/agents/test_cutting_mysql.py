"""Cutting MySQL's log: what real servers wrote, in any cuts, and what must not pass."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import pytest

from agents.errors import AgentError
from agents.mysql import cutting
from agents.mysql.coordinates import covers
from agents.mysql.cutting_mysql import MySQLCutter
from agents.mysql.parking import Parking
from agents.protocol import Piece, Steps
from streams.formats.binlog import events as ev
from streams.formats.binlog.step import split_steps, summarise
from tests.stand_ins.binlog_source import Writer, packets

GOLDEN = Path(__file__).parents[2] / "golden" / "binlog"
UUID = "5e90bb75-e8fc-11f1-859a-02fc00000001"
SOURCE = bytes.fromhex(UUID.replace("-", ""))
GTID, ANONYMOUS, TAGGED, PREVIOUS = (
    ev.MYSQL_GTID,
    ev.MYSQL_ANONYMOUS_GTID,
    ev.MYSQL_GTID_TAGGED,
    ev.MYSQL_PREVIOUS_GTIDS,
)
FILE = "1/0/binlog.000001:4"


def events_of(name: str) -> list[bytes]:
    """All events of a golden log file, its format description first."""
    raw = (GOLDEN / f"{name}.binlog").read_bytes()[4:]
    out, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at + 9 : at + 13], "little")
        out.append(raw[at : at + size])
        at += size
    return out


def cut(data: bytes, position: str, chunks: list[int] | None = None, limit: int = 1 << 20) -> list[Steps | Piece]:
    cutter = MySQLCutter(position, limit)
    out: list[Steps | Piece] = []
    at = 0
    for size in chunks or [len(data)]:
        cutter.feed(data[at : at + size])
        at += size
        while (taken := cutter.take(False)) is not None:
            out.append(taken)
    cutter.feed(data[at:])
    while (taken := cutter.take(True)) is not None:
        out.append(taken)
    assert not cutter.open
    return out


def steps_of(taken: list[Steps | Piece]) -> list[bytes]:
    """Payloads of single steps."""
    out: list[bytes] = []
    for t in taken:
        if isinstance(t, Steps):
            out += [t.payload[a:b] for a, b in zip([0, *t.ends], t.ends, strict=False)]
        elif t.first:
            out.append(t.payload)
        else:
            out[-1] += t.payload
    return out


def started(w: Writer, version: str = "9.7.4") -> list[bytes]:
    return [w.rotate("binlog.000001", artificial=True), w.format(version=version)]


def gtid(w: Writer, number: int, kind: int = GTID) -> bytes:
    return w.event(kind, b"\1" + SOURCE + struct.pack("<q", number) + b"\2" + bytes(16))


def code(events: list[bytes], position: str) -> str:
    with pytest.raises(AgentError) as caught:
        cut(packets(events), position)
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "position"),
    [("mysql9", ""), ("mysql9", FILE), ("mysql9_anonymous", FILE), ("mysql9_partial", ""), ("mysql55", FILE)],
)
def test_a_servers_log_is_cut_into_its_steps_whatever_cuts_it_comes_in(name: str, position: str) -> None:
    events = events_of(name)
    artificial = Writer(checksum=events[0][-5] == 1).rotate("binlog.000001", artificial=True)
    data = packets([artificial, *events])
    fde = ev.parse_format_description(events[0])
    expected = [bytes(s) for s in split_steps(fde, b"".join(events[1:]))]

    whole = cut(data, position)
    assert steps_of(whole) == expected
    assert len(expected) > 3
    assert all(summarise(fde, step).complete for step in expected)
    rng = random.Random(name)
    for limit in (1, 300, 5000):
        chunks = [rng.choice((1, 7, 64, 1000)) for _ in range(2000)]
        again = cut(data, position, chunks, limit)
        assert steps_of(again) == expected
        assert again[-1].after == whole[-1].after
    # Every position leads on from the one before it.
    one_by_one = [t for t in cut(data, position, limit=1) if isinstance(t, Steps) or t.last]
    for earlier, later in itertools.pairwise(one_by_one):
        assert earlier.after == later.before


def test_the_first_step_is_handed_over_alone_for_the_proof() -> None:
    for name, position in (("mysql9", ""), ("mysql55", FILE)):
        events = events_of(name)
        cutter = MySQLCutter(position, 1 << 20, proof="")
        cutter.feed(packets([Writer(checksum=name != "mysql55").rotate("binlog.000001", artificial=True), *events]))
        first = cutter.take(True)
        assert isinstance(first, Steps)
        assert len(first.ends) == 1


def test_a_compressed_transaction_ends_itself() -> None:
    w = Writer()
    events = [
        *started(w),
        gtid(w, 1),
        w.event(ev.TRANSACTION_PAYLOAD, b"\2\1\xff\0" + b"x" * 40),
        gtid(w, 2),
        w.query(b"drop table t"),
    ]
    (taken,) = cut(packets(events), "")
    assert len(taken.ends) == 2  # type: ignore[union-attr]
    assert taken.after == f"{UUID}:1-2"


def test_what_is_larger_than_a_packet_keeps_its_place() -> None:
    """A statement that no transaction surrounds and no GTID precedes: its position is the end of what came in pieces."""
    w = Writer(checksum=False)
    head = [w.rotate("binlog.000001", artificial=True), w.format(version="5.5.9-log")]
    long = w.query(b"insert into t values ('" + b"x" * (cutting.WHOLE + 100) + b"')")
    end = w.position
    after = w.query(b"drop table t")
    taken = cut(packets([*head, long, after]), FILE, limit=1 << 20)
    assert steps_of(taken) == [long, after]
    assert all(t.accounts for t in taken[:-1])
    last_piece = [t for t in taken if isinstance(t, Piece)][-1]
    assert last_piece.after == f"1/{w.time}/binlog.000001:{end}"


def test_account_statements_stand_alone() -> None:
    w = Writer()
    events = [
        *started(w),
        gtid(w, 1),
        w.query(b"drop table t"),
        gtid(w, 2),
        w.query(b"CREATE USER u IDENTIFIED BY 'x'"),
    ]
    taken = cut(packets(events), "")
    assert [t.accounts for t in taken] == [False, True]


def test_what_must_not_pass() -> None:
    w = Writer()
    assert code([*started(w), gtid(w, 1, ANONYMOUS), w.query(b"drop table t")], "") == "capture-no-gtid"
    w = Writer()
    assert code([*started(w), w.query(b"BEGIN"), w.xid()], "") == "capture-no-gtid"
    w = Writer()
    assert (
        code([*started(w), gtid(w, 1), w.query(b"drop table t"), gtid(w, 1), w.query(b"drop table u")], "")
        == "capture-out-of-order"
    )
    w = Writer()
    assert code([*started(w, "10.11.9-MariaDB-log")], "") == "capture-other-server"
    w = Writer()
    assert code([*started(w), gtid(w, 1), w.event(ev.INCIDENT, b"\1\0\0")], "") == "capture-incident"
    w = Writer()
    assert code([*started(w), w.query(b"XA FORGET X'7831',X'',1")], FILE) == "capture-xa"
    w = Writer()
    began = w.time
    assert code(started(w), f"1/{began - 1}/binlog.000001:4") == "capture-position-lost"
    cut(packets(started(Writer())), f"1/{began}/binlog.000001:4")


def test_xa_in_two_phases_is_parked_until_its_outcome() -> None:
    w = Writer()
    prepared = struct.pack("<BiII", 0, 1, 2, 0) + b"x1"
    row = [w.query(b"BEGIN"), w.event(ev.TABLE_MAP, b"t"), w.event(ev.WRITE_ROWS, b"r"), w.xid()]
    first = [
        gtid(w, 1),
        w.query(b"XA START X'7831',X'',1"),
        w.event(ev.TABLE_MAP, b"t"),
        w.event(ev.WRITE_ROWS, b"r"),
        w.query(b"XA END X'7831',X'',1"),
        w.event(ev.XA_PREPARE, prepared),
    ]
    between = [gtid(w, 2), *row]
    second = [gtid(w, 3), w.query(b"XA COMMIT X'7831',X'',1")]
    last = [gtid(w, 4), *row]

    def read(position: str, proof: str | None) -> list[Steps | Piece]:
        sent = [g for n, g in enumerate((first, between, second, last), 1) if position != f"{UUID}:1" or n > 1]
        cutter = MySQLCutter(position, 1 << 20, proof=proof)
        parked = Parking(cutter, 1 << 20, proof, covers, lambda name, position: [])
        cutter.feed(packets([*started(w), *itertools.chain(*sent)]))
        out = []
        while (taken := parked.take(True)) is not None:
            out.append(taken)
        return out

    whole = read("", None)
    assert steps_of(whole) == [b"".join(between), b"".join([*first, *second]), b"".join(last)]
    # After the second step: it is read again, from before its first group on.
    again = read("", f"{UUID}:1-3")
    assert steps_of(again) == [b"".join([*first, *second]), b"".join(last)]
    assert again[0].before == ""


def test_xa_by_offsets_is_found_again_behind_steps_that_are_known_and_large() -> None:
    """Where a step ends is known with its last piece only: what was handed over of one that is known counts for nothing."""
    w = Writer()
    prepared = struct.pack("<BiII", 0, 1, 2, 0) + b"x1"
    start, end = w.query(b"XA START X'7831',X'',1"), w.query(b"XA END X'7831',X'',1")
    first = [start, w.event(ev.WRITE_ROWS, b"r"), end, w.event(ev.XA_PREPARE, prepared)]
    large = [w.query(b"BEGIN"), *(w.event(ev.WRITE_ROWS, bytes(300)) for _ in range(8)), w.xid()]
    second = [w.query(b"XA COMMIT X'7831',X'',1")]
    after_second = w.position
    last = [w.query(b"BEGIN"), w.event(ev.WRITE_ROWS, b"s"), w.xid()]
    sent = packets([*started(w), *first, *large, *second, *last])

    def read(position: str, proof: str | None) -> list[Steps | Piece]:
        cutter = MySQLCutter(position, 1000, proof=proof)
        parked = Parking(cutter, 1000, proof, covers, lambda name, position: [], hides=True, late=True)
        cutter.feed(sent)
        out = []
        while (taken := parked.take(True)) is not None:
            out.append(taken)
        return out

    whole = read(FILE, None)
    assert steps_of(whole) == [b"".join(large), b"".join([*first, *second]), b"".join(last)]
    again = read(FILE, f"1/{w.time}/binlog.000001:{after_second}")
    pieces = [t for t in again if isinstance(t, Piece)]
    assert pieces
    assert not any(t.last for t in pieces)
    assert steps_of(again[len(pieces) :]) == [b"".join([*first, *second]), b"".join(last)]
    assert again[len(pieces)].before.rpartition("/")[2] == "binlog.000001:4"  # where what was parked begins


def test_where_a_file_begins_is_a_position() -> None:
    """The one before it, which ends with the last step, may be purged: neither that step's successor nor a reader that waits
    in the new file needs it."""
    w = Writer()
    one = [w.query(b"BEGIN"), w.xid()]
    rotated = [w.rotate("binlog.000002"), w.rotate("binlog.000002", artificial=True), w.format(version="5.6.51")]
    two = [w.query(b"BEGIN"), w.xid()]
    cutter = MySQLCutter(FILE, 1 << 20)
    cutter.feed(packets([*started(w, "5.6.51"), *one]))
    assert cutter.take(True) is not None
    stood = cutter.position
    cutter.feed(packets(rotated))
    assert cutter.take(True) is None
    assert stood.rpartition("/")[2].startswith("binlog.000001:")
    assert cutter.position.rpartition("/")[2] == "binlog.000002:4"
    assert covers(cutter.position, stood)
    cutter.feed(packets(two))
    taken = cutter.take(True)
    assert taken is not None
    assert taken.before == f"1/{w.time}/binlog.000002:4"


def test_xa_in_one_phase_is_a_transaction() -> None:
    w = Writer()
    one_phase = struct.pack("<BiII", 1, 1, 2, 0) + b"x1"
    events = [
        *started(w),
        gtid(w, 1),
        w.query(b"XA START X'7831',X'',1"),
        w.query(b"XA END X'7831',X'',1"),
        w.event(ev.XA_PREPARE, one_phase),
    ]
    (taken,) = cut(packets(events), "")
    assert taken.after == f"{UUID}:1"
