"""Cutting a dump into steps: against streams made so that the right answer is known, in any cuts, on both paths."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.errors import AgentError, CaptureStopped, SourceUnavailable
from agents.mysql import cutting
from agents.mysql.cutting import Cutter
from agents.protocol import Piece, Steps, Taken
from streams.formats.binlog.events import Buffer
from tests.stand_ins import binlog_source as bl
from tests.stand_ins.binlog_source import Writer, packets


class GeneralCutter(Cutter):
    """The same without the fast loop: every packet by the full rules."""

    def _feed(self, data: Buffer) -> None:
        d = b"".join((self._rest, data))
        self._rest = b""
        p = self._pass_long(d, 0) if self._long_type else 0
        while p + 18 <= len(d):
            after = self._rare(d, p, len(d))
            if after == p:
                break
            p = after
        else:
            self._look_for_end(d, p, len(d))
        self._rest = d[p:]
        if self._total > self._limit:
            self._overflow()


class ProvingCutter(Cutter):
    """As after a restart: the first step is to be compared with what was captured before."""

    def __init__(self, position: str, limit: int) -> None:
        super().__init__(position, limit, proof="")


@dataclass
class Step:
    """What must come out for one step."""

    payload: bytes
    position: str
    accounts: bool = False


@dataclass
class Cut:
    """What came out, step by step, whatever it was packed into."""

    steps: list[Step] = field(default_factory=list)
    events: int = 0
    abandoned: int = 0
    largest: int = 0
    taken: list[Taken] = field(default_factory=list)
    error: AgentError | None = None


def cut(stream: bytes, cuts: list[int], limit: int = 1000, position: str = "", kind: type[Cutter] = Cutter) -> Cut:
    """Feed `stream` in the given cuts; check what a reader relies on; put pieces together again."""
    cutter = kind(position, limit)
    out = Cut()
    last = position
    parts: list[bytes] = []
    bounds = [0, *sorted(c for c in cuts if c <= len(stream)), len(stream)]

    def drain(everything: bool) -> bool:
        nonlocal last
        try:
            taken = cutter.take(everything)
        except AgentError as error:
            out.error = error
            return False
        if taken is None:
            return False
        out.taken.append(taken)
        out.events += taken.events
        out.largest = max(out.largest, len(taken.payload))
        if isinstance(taken, Steps):
            if parts:
                out.abandoned += 1
                parts.clear()
            starts = [0, *taken.ends]
            assert taken.ends
            assert taken.ends[-1] == len(taken.payload)
            for start, end in itertools.pairwise(starts):
                out.steps.append(Step(taken.payload[start:end], "", taken.accounts))
            if len(taken.ends) == 1:
                assert taken.before == last
            out.steps[-1].position = last = taken.after
        else:
            if taken.first and parts:
                out.abandoned += 1
                parts.clear()
            assert taken.first == (not parts)
            assert taken.before == last
            parts.append(taken.payload)
            if taken.last:
                out.steps.append(Step(b"".join(parts), taken.after, taken.accounts))
                last = taken.after
                parts.clear()
        return True

    for start, end in itertools.pairwise(bounds):
        cutter.feed(stream[start:end])
        while drain(random.Random(start).random() < 0.3):
            pass
        if out.error is not None:
            return out
    while drain(True):
        pass
    return out


def between(draw: st.DrawFn, w: Writer) -> list[bytes]:
    """What may stand between two steps."""
    kind = draw(st.integers(0, 12))
    if kind == 0:
        return [w.rotate("binlog.000007"), w.format(created=draw(st.integers(0, 5))), w.event(bl.GTID_LIST, bytes(4))]
    if kind == 1:
        return [w.event(bl.CHECKPOINT, b"\x0d\0\0\0binlog.000001")]
    if kind == 2:
        return [w.event(bl.HEARTBEAT, b"binlog.000001")]
    if kind == 3:
        return [w.event(bl.STOP, b""), w.rotate("binlog.000008", artificial=True), w.format(created=w.time)]
    return []


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Step], int]:
    """A dump as packets, the steps in it, and how many events they have."""
    w = Writer(checksum=draw(st.booleans()))
    full = draw(st.sampled_from([bl.FULL]))
    events: list[bytes] = [w.rotate("binlog.000001", artificial=True), w.format(), w.event(bl.GTID_LIST, bytes(4))]
    steps: list[Step] = []
    count = 0
    position: dict[int, str] = {}
    for sequence in range(1, draw(st.integers(1, 25)) + 1):
        domain = draw(st.sampled_from([0, 0, 0, 3]))
        server = draw(st.sampled_from([1, 1, 9]))
        flavour = draw(
            st.sampled_from(["row", "row", "row", "many", "ddl", "account", "myisam", "mixed", "large", "dead"])
        )
        flags = bl.TRANSACTIONAL | draw(st.sampled_from([0, 0, bl.COMMIT_ID, 8]))
        head = w.gtid(sequence, domain, flags, server)
        rows = st.binary(max_size=200)
        accounts = False
        if flavour in ("row", "many", "large", "dead"):
            body = [head]
            times = {"row": 1, "many": 4, "large": 60, "dead": draw(st.sampled_from([1, 60]))}[flavour]
            for _ in range(times):
                body += [w.event(bl.TABLE_MAP, draw(rows)), w.event(bl.WRITE, draw(rows))]
            if flavour == "dead":
                # The source died here and was started again. What it had written of the step never counted.
                w.time += 10
                events += [*body, w.rotate("binlog.000009", artificial=True), w.format(created=w.time)]
                continue
            body.append(w.xid(sequence))
        elif flavour == "ddl":
            body = [w.gtid(sequence, domain, bl.STANDALONE | bl.DDL, server), w.query(b"create table t(a int)")]
        elif flavour == "account":
            statement = b"create user joe identified by 'secret'"
            accounts = True
            body = [w.gtid(sequence, domain, bl.STANDALONE, server), w.query(statement)]
        elif flavour == "myisam":
            ending = draw(st.sampled_from([b"COMMIT", b"ROLLBACK"]))
            body = [w.gtid(sequence, domain, 0, server), w.event(bl.TABLE_MAP, b"t"), w.event(bl.UPDATE, b"r")]
            body.append(w.query(ending))
        else:
            leading = [w.event(bl.INTVAR, bytes(9))]
            standalone = draw(st.booleans())
            body = [w.gtid(sequence, domain, bl.STANDALONE if standalone else flags, server), *leading]
            body.append(w.query(b"insert into t values (uuid())"))
            if not standalone:
                body.append(w.xid(sequence))
        position[domain] = f"{domain}-{server}-{sequence}"
        steps.append(Step(b"".join(body), ",".join(position[d] for d in sorted(position)), accounts))
        count += len(body)
        events += body + between(draw, w)
        w.time += draw(st.integers(0, 2))
    return packets(events, full), steps, count


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_steps_are_what_was_written_in_whatever_cuts_they_arrive(data: st.DataObject) -> None:
    stream, steps, events = data.draw(streams())
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    limit = data.draw(st.sampled_from([150, 1000, 20_000]))
    done = cut(stream, cuts, limit)
    assert done.error is None
    assert [s.payload for s in done.steps] == [s.payload for s in steps]
    assert [s.accounts for s in done.steps] == [s.accounts for s in steps]
    assert all(a.position in ("", b.position) for a, b in zip(done.steps, steps, strict=True))
    assert not steps or done.steps[-1].position == steps[-1].position
    if not any(isinstance(t, Piece) for t in done.taken):
        assert done.events == events
    # A single event may be larger than the limit, nothing else is.
    assert done.largest <= max(limit, 300)
    general = cut(stream, cuts, limit, kind=GeneralCutter)
    assert general.taken == done.taken
    proving = cut(stream, cuts, limit, kind=ProvingCutter)
    assert [s.payload for s in proving.steps] == [s.payload for s in steps]
    whole = proving.taken[0] if proving.taken else None
    assert not isinstance(whole, Steps) or len(whole.ends) == 1


@given(st.binary(max_size=400), st.lists(st.integers(0, 1000), max_size=5))
@settings(deadline=None, max_examples=300)
def test_garbage_is_refused_as_such_and_never_becomes_a_step(garbage: bytes, cuts: list[int]) -> None:
    w = Writer()
    good = packets([w.format(), w.gtid(1), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid()])
    done = cut(good + garbage, cuts)
    assert [s.position for s in done.steps] == ["0-1-1"]


def test_one_byte_at_a_time() -> None:
    w = Writer()
    group = [w.gtid(1), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid()]
    stream = packets([w.rotate("binlog.000001", True), w.format(), *group])
    done = cut(stream, list(range(len(stream))))
    assert [s.payload for s in done.steps] == [b"".join(group)]


@pytest.mark.parametrize(
    "size", [cutting.WHOLE - 19, bl.FULL - 20, bl.FULL - 19, bl.FULL - 18, 2 * bl.FULL - 19, 40 << 20]
)
def test_an_event_of_several_packets_passes_through_in_pieces(size: int) -> None:
    w = Writer(checksum=False)
    blob = random.Random(size).randbytes(1000) * (size // 1000) + bytes(size % 1000)
    first = [w.gtid(1), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, blob), w.event(bl.WRITE, b"r"), w.xid(1)]
    second = [w.gtid(2), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(2)]
    stream = packets([w.format(), *first, *second])
    done = cut(stream, list(range(0, len(stream), 250_000)), limit=900_000)
    assert done.error is None
    assert [s.payload for s in done.steps] == [b"".join(first), b"".join(second)]
    assert done.events == 9
    assert done.largest <= cutting.WHOLE


def test_a_long_statement_is_kept_as_if_it_held_a_secret() -> None:
    w = Writer()
    text = b"create user joe identified by 'secret' /*" + b"x" * (20 << 20) + b"*/"
    group = [w.gtid(1, flags=bl.STANDALONE), w.query(text)]
    done = cut(packets([w.format(), *group]), list(range(0, 21 << 20, 250_000)), limit=900_000)
    assert [s.payload for s in done.steps] == [b"".join(group)]
    holding = [t for t in done.taken if b"secret" in t.payload]
    assert holding
    assert all(t.accounts for t in holding)


def test_a_new_format_description_starts_a_new_run_with_it_as_preamble() -> None:
    w = Writer()
    a, b = w.format(created=0), w.format(created=77)

    def step(n: int) -> list[bytes]:
        return [w.gtid(n), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(n)]

    done = cut(packets([a, *step(1), *step(2), b, *step(3)]), [])
    assert [(t.preamble, t.after) for t in done.taken] == [(a, "0-1-2"), (b, "0-1-3")]


def test_position_file_offset_and_time_are_of_the_last_step() -> None:
    w = Writer()
    stream = [w.rotate("binlog.000001", True), w.format()]
    stream += [w.gtid(5, server_id=4), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(1)]
    w.time += 7
    stream += [w.gtid(8, domain=2), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(2)]
    (taken,) = cut(packets(stream), [], position="0-1-4,2-1-7,9-9-9").taken
    assert isinstance(taken, Steps)
    assert (taken.before, taken.after) == ("0-4-5,2-1-7,9-9-9", "0-4-5,2-1-8,9-9-9")
    assert (taken.file, taken.offset, taken.step_time_us) == ("binlog.000001", w.position, w.time * 1_000_000)
    assert (taken.server_id, taken.events) == (1, 8)


def opening(w: Writer) -> list[bytes]:
    return [w.format(), w.gtid(1), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(1)]


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("capture-step-open", lambda w: [w.gtid(2), w.event(bl.XA_PREPARE, bytes(20))]),
        ("capture-incident", lambda w: [w.event(bl.INCIDENT, b"\1\0\0")]),
        ("capture-incident", lambda w: [w.gtid(2), w.event(bl.INCIDENT, b"\1\0\0")]),
        ("capture-no-gtid", lambda w: [w.query(b"BEGIN"), w.event(bl.WRITE, b"r"), w.xid(2)]),
        ("capture-no-gtid", lambda w: [w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r")]),
        ("capture-no-gtid", lambda w: [w.xid(2)]),
        ("capture-event-unknown", lambda w: [w.event(99, b"what")]),
        ("capture-step-open", lambda w: [w.gtid(2), w.event(99, b"what")]),
        ("capture-step-open", lambda w: [w.gtid(2), w.event(bl.WRITE, b"r"), w.gtid(3)]),
        ("capture-step-open", lambda w: [w.gtid(2), w.event(bl.WRITE, b"r"), w.format(created=0)]),
        ("capture-step-open", lambda w: [w.gtid(2), w.event(bl.WRITE, b"r"), w.event(bl.STOP, b"")]),
        ("capture-log-damaged", lambda w: [w.gtid(2), w.event(165, b"\0" * 13 + b"\0\x81garbage"), w.xid(2)]),
        ("capture-other-server", lambda w: [w.format(version="8.4.3")]),
    ],
)
@pytest.mark.parametrize("kind", [Cutter, GeneralCutter])
def test_what_is_not_understood_stops_after_the_steps_before_it(code: str, make, kind: type[Cutter]) -> None:  # type: ignore[no-untyped-def]
    w = Writer()
    done = cut(packets([*opening(w), *make(w)]), [], kind=kind)
    assert isinstance(done.error, CaptureStopped)
    assert done.error.code == code
    assert done.error.hint
    assert [s.position for s in done.steps] == ["0-1-1"]


@pytest.mark.parametrize("limit", [100, 10_000])
def test_sequence_numbers_that_go_back_are_refused(limit: int) -> None:
    w = Writer()

    def step(n: int, domain: int = 0) -> list[bytes]:
        return [w.gtid(n, domain), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(n)]

    done = cut(packets([w.format(), *step(1), *step(9, 1), *step(2), *step(7, 1)]), [], limit)
    assert done.error is not None
    assert done.error.code == "capture-out-of-order"
    assert [s.position for s in done.steps if s.position][-1:] in ([], ["0-1-2,1-1-9"])


def test_an_unknown_event_between_steps_that_may_be_ignored_is() -> None:
    w = Writer()
    step = [w.gtid(2), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(2)]
    done = cut(packets([*opening(w), w.event(99, b"", flags=0x80), *step]), [])
    assert done.error is None
    assert len(done.steps) == 2


@pytest.mark.parametrize(
    ("packet", "kind", "code"),
    [
        (bl.END_PACKET, SourceUnavailable, "source-ended"),
        (bl.error_packet(1927, "Connection was killed"), SourceUnavailable, "source-ended"),
        (bl.error_packet(1236, "Could not find GTID state requested by slave in any binlog files. Probably the slave "
                               "state is too old and required binlog files have been purged."),
         CaptureStopped, "capture-purged"),
        (bl.error_packet(1236, "Error: connecting slave requested to start from GTID 0-1-9, which is not in the "
                               "master's binlog"), CaptureStopped, "capture-position-lost"),
        (bl.error_packet(1236, "binlog truncated in the middle of event; consider out of disk space on master"),
         CaptureStopped, "capture-source-torn"),
        (bl.error_packet(1236, "bogus data in log event"), CaptureStopped, "capture-source-log"),
        (bl.error_packet(1045, "Access denied"), CaptureStopped, "capture-denied"),
        (b"\x04\x00\x00\x00\x00abc", SourceUnavailable, "source-damaged"),
        (b"\x20\x00\x00\x00\xff" + bytes(31), SourceUnavailable, "source-damaged"),
        (b"\x20\x00\x00\x00\xfe" + bytes(31), SourceUnavailable, "source-damaged"),
    ],
)  # fmt: skip
def test_the_end_of_a_dump_says_what_it_means(packet: bytes, kind: type[AgentError], code: str) -> None:
    stream = packets(opening(Writer())) + packet
    for cuts in ([], list(range(len(stream)))):
        done = cut(stream, cuts)
        assert isinstance(done.error, kind)
        assert done.error.code == code
        assert len(done.steps) == 1


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_long_event_of_another_length_than_it_says_is_refused(wrong: int) -> None:
    w = Writer()
    event = bytearray(w.event(bl.WRITE, bytes(17 << 20)))
    event[9:13] = (len(event) + wrong).to_bytes(4, "little")
    step = [w.gtid(2), w.event(bl.TABLE_MAP, b"t"), bytes(event), w.xid(2)]
    done = cut(packets([*opening(w), *step]), [])
    assert done.error is not None
    assert done.error.code == "source-damaged"
    assert [s.position for s in done.steps] == ["0-1-1"]


def three_steps(w: Writer, size: int = 30) -> list[bytes]:
    """Events of three steps; the middle one's rows event has `size` bytes in its body."""
    out = [w.format()]
    for n in (1, 2, 3):
        out += [w.gtid(n), w.event(bl.TABLE_MAP, b"t" * 20), w.event(bl.WRITE, bytes(size if n == 2 else 9)), w.xid(n)]
    return out


@pytest.mark.parametrize("kind", [Cutter, GeneralCutter])
def test_any_flipped_bit_of_an_event_is_noticed_and_nothing_after_it_counts(kind: type[Cutter]) -> None:
    """Also of what surrounds the event: its length and the status byte. The packet's number means nothing to us."""
    events = three_steps(Writer())
    sound = packets(events)
    first_step = len(packets(events[:5]))
    wanted = [s.payload for s in cut(sound, [], kind=kind).steps]
    numbers = {at + 3 for at in itertools.accumulate([0, *(len(packets([e])) for e in events)])}
    description = len(packets(events[:1]))
    for bit in range(8 * len(sound)):
        at = bit // 8
        if at in numbers or (90 < at < description - 10 and bit % 7) or (at >= description and bit % 5):
            continue
        broken = bytearray(sound)
        broken[at] ^= 1 << bit % 8
        done = cut(bytes(broken) + bl.END_PACKET, [], kind=kind)
        # A longer length swallows what follows, and the end with it: then nothing more comes.
        assert done.error is None or done.error.code in ("source-damaged", "source-ended"), (at, done.error)
        if at >= first_step:
            assert done.steps[0].payload == wanted[0]
        assert len(done.steps) < 3, at
        assert [s.payload for s in done.steps] == wanted[: len(done.steps)]


def test_a_long_event_that_was_damaged_on_the_way_completes_nothing() -> None:
    events = three_steps(Writer(), 17 << 20)
    sound = packets(events)
    assert len(cut(sound, []).steps) == 3
    for at in (1 << 20, len(packets(events[:8])) - 10):
        broken = bytearray(sound)
        broken[at] ^= 4
        done = cut(bytes(broken), [5 << 20])
        assert done.error is not None
        assert done.error.code == "source-damaged"
        assert [s.position for s in done.steps] == ["0-1-1"]
        assert [t for t in done.taken if isinstance(t, Piece)]
        assert not any(t.last for t in done.taken if isinstance(t, Piece))


def test_without_checksums_events_are_taken_as_they_come() -> None:
    done = cut(packets(three_steps(Writer(checksum=False))), [])
    assert done.error is None
    assert len(done.steps) == 3


def test_checksums_switched_off_and_on_from_file_to_file() -> None:
    w = Writer()
    stream = three_steps(w)
    for n, checksum in ((4, False), (5, True), (6, False)):
        stream.append(w.rotate(f"binlog.00000{n}"))
        w.checksum = checksum
        stream += [w.format(), w.gtid(n), w.event(bl.TABLE_MAP, b"t"), w.event(bl.WRITE, b"r"), w.xid(n)]
    done = cut(packets(stream), [])
    assert done.error is None
    assert [s.position for s in done.steps if s.position][-1] == "0-1-6"
