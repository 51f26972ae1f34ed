"""Transactions in two phases become steps where they are committed, in whatever cuts, and whoever resumes comes to the same."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.errors import CaptureStopped
from agents.mysql import parking
from agents.mysql.cutting import Cutter
from agents.mysql.parking import Parking
from agents.mysql.positions import parse, reaches
from agents.protocol import Steps, Taken
from streams.formats.binlog.events import iter_events
from streams.formats.binlog.step import summarise
from tests.stand_ins import binlog_source as bl
from tests.stand_ins.binlog_source import Writer, packets
from tests.unit.streams.formats.recorded import golden


@dataclass(frozen=True)
class Group:
    """One group of the log: its position, its events; `step`: the payload of the step that it completes, if it does."""

    gtid: str
    events: tuple[bytes, ...]
    step: bytes | None


def xa_gtid(w: Writer, sequence: int, flags: int, name: bytes) -> bytes:
    return w.event(bl.GTID, struct.pack("<QIBiBB", sequence, 0, flags, 1, len(name), 0) + name)


def prepare(w: Writer, sequence: int, name: bytes, rows: int = 1) -> tuple[bytes, ...]:
    body = [xa_gtid(w, sequence, bl.TRANSACTIONAL | bl.PREPARED, name)]
    for _ in range(rows):
        body += [w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r" * 40)]
    return (*body, w.query(b"XA END X'61'"), w.event(bl.XA_PREPARE, bytes(13)))


def outcome(w: Writer, sequence: int, name: bytes, what: bytes) -> tuple[bytes, ...]:
    return (xa_gtid(w, sequence, bl.STANDALONE | bl.COMPLETED, name), w.query(b"XA " + what + b" X'61'"))


def alter(w: Writer, sequence: int, extra: int) -> tuple[bytes, ...]:
    """START (2), COMMIT (4) or ROLLBACK (8) of an ALTER in two phases."""
    body = struct.pack("<QIB", sequence, 0, bl.STANDALONE | bl.DDL) + bytes([extra]) + bytes(8)
    return (w.event(bl.GTID, body), w.query(b"alter table t add column c int"))


def plain(w: Writer, sequence: int, rows: int = 1) -> tuple[bytes, ...]:
    body = [w.gtid(sequence)]
    for _ in range(rows):
        body += [w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"p" * 40)]
    return (*body, w.xid(sequence))


@st.composite
def logs(draw: st.DrawFn) -> tuple[bytes, list[bytes], list[Group]]:
    """What comes before the first group, and groups."""
    w = Writer(checksum=draw(st.booleans()))
    head = [w.rotate("binlog.000001", artificial=True), w.format()]
    open_: dict[bytes, tuple[bytes, ...]] = {}
    groups: list[Group] = []
    for sequence in range(1, draw(st.integers(1, 25)) + 1):
        kind = draw(st.sampled_from(["plain", "plain", "prepare", "commit", "rollback", "alter", "account"]))
        step: bytes | None = None
        if kind == "prepare" and len(open_) < 4:
            name = bytes([97 + sequence % 26, sequence])
            events = open_[name] = prepare(w, sequence, name, draw(st.sampled_from([1, 1, 30])))
        elif kind in ("commit", "rollback") and open_:
            name = draw(st.sampled_from(sorted(open_)))
            events = outcome(w, sequence, name, kind.upper().encode())
            first = open_.pop(name)
            step = b"".join((*first, *events)) if kind == "commit" else None
        elif kind == "alter":
            extra = draw(st.sampled_from([2, 4, 8]))
            events = alter(w, sequence, extra)
            step = b"".join(events) if extra == 4 else None
        elif kind == "account":
            events = (w.gtid(sequence, flags=bl.STANDALONE), w.query(b"create user joe identified by 'secret'"))
            step = b"".join(events)
        else:
            events = plain(w, sequence, draw(st.sampled_from([1, 1, 30])))
            step = b"".join(events)
        groups.append(Group(f"0-1-{sequence}", events, step))
    return b"".join(head), head, groups


def covers(position: str, other: str) -> bool:
    return reaches(parse(position), parse(other))


def nowhere(name: bytes, position: str) -> list[Taken]:
    """The log holds nothing before where it is read from."""
    return []


def read(
    head: list[bytes], groups: list[Group], position: str, proof: str | None, cuts: list[int], limit: int
) -> tuple[list[Taken], Parking]:
    """Everything that a dump after `position` gives; whole steps only at the end."""
    stream = packets([*head, *(e for g in groups if not covers(position, g.gtid) for e in g.events)])
    cutter = Cutter(position, limit, proof=proof)
    parked = Parking(cutter, limit, proof, covers, nowhere)
    out: list[Taken] = []
    bounds = [0, *sorted(c for c in cuts if c < len(stream)), len(stream)]
    for start, end in itertools.pairwise(bounds):
        cutter.feed(stream[start:end])
        while (taken := parked.take(start % 3 == 0)) is not None:
            out.append(taken)
    while (taken := parked.take(True)) is not None:
        out.append(taken)
    return out, parked


@dataclass(frozen=True)
class Read:
    payload: bytes
    before: str
    after: str


def steps_of(taken: list[Taken]) -> list[Read]:
    """`before` and `after` are known of the last step of a run only; the others have that of its run."""
    out: list[Read] = []
    parts: list[bytes] = []
    for t in taken:
        assert t.phase is None
        if isinstance(t, Steps):
            assert not parts
            out += [Read(t.payload[a:b], t.before, t.after) for a, b in itertools.pairwise([0, *t.ends])]
        else:
            assert t.first == (not parts)
            parts.append(t.payload)
            if t.last:
                out.append(Read(b"".join(parts), t.before, t.after))
                parts = []
    return out


@given(logs(), st.lists(st.integers(0, 20_000), max_size=20), st.sampled_from([300, 1000, 100_000]))
@settings(deadline=None, max_examples=60)
def test_steps_come_where_they_are_committed_and_again_for_whoever_resumes(
    log: tuple[bytes, list[bytes], list[Group]], cuts: list[int], limit: int
) -> None:
    _, head, groups = log
    wanted = [(g.step, g.gtid) for g in groups if g.step is not None]
    taken, _ = read(head, groups, "", None, cuts, limit)
    assert [s.payload for s in steps_of(taken)] == [payload for payload, _ in wanted]
    for t in taken:
        assert t.accounts == (b"secret" in t.payload)
        assert not t.accounts or not isinstance(t, Steps) or len(t.ends) == 1
    # Whoever stopped after any run goes on from where its last step says: that step again, by itself, then the rest.
    seen = 0
    for t in taken:
        seen += len(t.ends) if isinstance(t, Steps) else int(t.last)
        if not isinstance(t, Steps) and not t.last:
            continue
        again, _ = read(head, groups, t.before, t.after, cuts, limit)
        first = again[0]
        assert not isinstance(first, Steps) or len(first.ends) == 1
        following = steps_of(again)
        assert following[0].after == t.after
        assert [s.payload for s in following] == [payload for payload, _ in wanted[seen - 1 :]]


def test_what_is_prepared_holds_the_place_to_ask_from() -> None:
    w = Writer()
    head = [w.rotate("binlog.000001", True), w.format()]
    groups = [
        Group("0-1-1", plain(w, 1), b""),
        Group("0-1-2", prepare(w, 2, b"x"), None),
        Group("0-1-3", plain(w, 3), b""),
        Group("0-1-4", prepare(w, 4, b"y"), None),
        Group("0-1-5", outcome(w, 5, b"x", b"COMMIT"), b""),
        Group("0-1-6", plain(w, 6), b""),
        Group("0-1-7", outcome(w, 7, b"y", b"ROLLBACK"), None),
        Group("0-1-8", plain(w, 8), b""),
    ]
    found = []
    for last in range(1, len(groups) + 1):
        taken, parked = read(head, groups[:last], "", None, [], 1000)
        found.append((parked.parked, taken[-1].before, taken[-1].after))
    assert found == [
        (0, "", "0-1-1"),
        (1, "", "0-1-1"),
        (1, "0-1-1", "0-1-3"),
        (2, "0-1-1", "0-1-3"),
        (1, "0-1-1", "0-1-5"),  # x's own first group is before it
        (1, "0-1-3", "0-1-6"),
        (0, "0-1-3", "0-1-6"),
        (0, "0-1-7", "0-1-8"),
    ]


def test_both_groups_together_are_a_step_like_any_other() -> None:
    """In a log that a server wrote."""
    log = golden("groups")
    events = [log.events[e.offset : e.offset + e.length] for e in iter_events(log.events, checksum=True)]
    taken, parked = read([log.fde.raw], [Group("0-1-999", tuple(events), None)], "", None, [], 100_000)
    told = [summarise(log.fde, s.payload) for s in steps_of(taken)]
    assert parked.parked == 0
    assert "xa" not in {s.kind for s in told}
    (done,) = [s for s in told if s.xid]
    assert (done.kind, done.rows, done.complete, done.transactional) == ("rows", 1, True, True)
    assert (done.xid, done.gtid) == ("X'646f6e65',X'6272616e6368',7", "0-1-22")


def fails(groups: list[Group], head: list[bytes], limit: int = 1000) -> tuple[str, int]:
    """The code that it stops with, and how many steps came before."""
    cutter = Cutter("", limit)
    parked = Parking(cutter, limit, None, covers, nowhere)
    cutter.feed(packets([*head, *(e for g in groups for e in g.events)]))
    taken: list[Taken] = []
    found: list[CaptureStopped] = []
    while len(found) < 2:  # it fails again when it is asked again
        try:
            t = parked.take(True)
        except CaptureStopped as error:
            found.append(error)
        else:
            taken += [t] if t is not None else []
    assert found[0].hint
    assert found[0].code == found[1].code
    return found[0].code, len(steps_of(taken))


def test_an_outcome_without_its_first_group_stops_after_the_steps_before_it() -> None:
    w = Writer()
    groups = [Group("", plain(w, 1), b""), Group("", outcome(w, 2, b"x", b"COMMIT"), None), Group("", plain(w, 3), b"")]
    assert fails(groups, [w.format()]) == ("capture-xa-unknown", 1)


def test_steps_put_together_are_handed_over_before_a_failure() -> None:
    w = Writer()
    groups = [Group("", prepare(w, 1, b"x"), None), Group("", outcome(w, 2, b"x", b"COMMIT"), b"")]
    groups += [Group("", plain(w, 3), b""), Group("", outcome(w, 4, b"y", b"COMMIT"), None)]
    assert fails(groups, [w.format()]) == ("capture-xa-unknown", 2)


def test_a_rollback_of_what_was_prepared_before_the_lineage_is_nothing() -> None:
    w = Writer()
    groups = [Group("0-1-1", outcome(w, 1, b"x", b"ROLLBACK"), None), Group("0-1-2", plain(w, 2), b"")]
    taken, _ = read([w.format()], groups, "", None, [], 1000)
    assert [(s.before, s.after) for s in steps_of(taken)] == [("0-1-1", "0-1-2")]


def test_a_rollback_of_what_a_log_may_have_hidden_stops() -> None:
    w = Writer()
    cutter = Cutter("", 1000)
    parked = Parking(cutter, 1000, None, covers, nowhere, hides=True)
    cutter.feed(packets([w.format(), *plain(w, 1), *outcome(w, 2, b"x", b"ROLLBACK")]))
    assert parked.take(True) is not None
    with pytest.raises(CaptureStopped) as caught:
        parked.take(True)
    assert caught.value.code == "capture-xa-unknown"


def test_what_is_parked_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MOST", 4000)
    w = Writer()
    groups = [
        Group("", plain(w, 1), b""),
        Group("", prepare(w, 2, b"x", rows=20), None),
        Group("", prepare(w, 3, b"y", 30), None),
    ]
    assert fails(groups, [w.format()]) == ("capture-xa-large", 1)


def test_checksums_switched_between_the_groups() -> None:
    w, plainly = Writer(), Writer(checksum=False)
    groups = [
        Group("", prepare(w, 1, b"x"), None),
        Group("", (plainly.format(), *outcome(plainly, 2, b"x", b"COMMIT")), None),
    ]
    assert fails(groups, [w.format()]) == ("capture-xa-format", 0)


def test_a_server_that_died_within_the_first_group_prepared_nothing() -> None:
    w = Writer()
    torn = prepare(w, 1, b"x", rows=60)[:-1]
    again = w.format(created=7)
    groups = [Group("", (*torn, w.rotate("binlog.000002", True), again), None), Group("0-1-1", plain(w, 1), b"")]
    taken, parked = read([w.format()], groups, "", None, [500, 1000, 2000], 300)
    assert (len(steps_of(taken)), parked.parked) == (1, 0)
