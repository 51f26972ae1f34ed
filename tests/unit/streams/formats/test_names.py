"""What is asked cheaply of a payload never denies what reading it finds, however the server compressed it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import CHECKSUM_SIZE, HEADER_SIZE, FormatDescription, iter_events
from streams.formats.binlog.inverse import encode_event
from streams.formats.binlog.names import may_say, may_write, table_name
from streams.formats.binlog.step import MARKER_TABLE, OWN_SCHEMA, StepSummary, decode_step, summarise
from tests.unit.streams.formats.compressing import Step, in_one_event, statements_compressed
from tests.unit.streams.formats.recorded import golden, golden_names

LEVELS = (-5, 1, 3, 19)


def steps() -> Iterator[Step]:
    for name in golden_names():
        if name == "old_temporal":  # not to be read without its schema
            continue
        log = golden(name)
        yield from ((log.fde, step) for step in log.steps)


def forms(step: Step) -> Iterator[bytes]:
    yield step[1]
    yield from (in_one_event(step, level) for level in (None, *LEVELS))
    yield from (statements_compressed(step, level) for level in (0, 1, 6, 9))


def same(a: StepSummary, b: StepSummary) -> bool:
    return (a.changes, a.statements, a.markers, a.kind) == (b.changes, b.statements, b.markers, b.kind)


def test_what_is_found_is_never_denied() -> None:
    tables = words = 0
    for step in steps():
        told = summarise(*step)
        for form in forms(step):
            assert same(summarise(step[0], form), told)
            for table in {*told.changes, *((c.schema, c.table) for c in decode_step(step[0], form))}:
                assert may_write(form, table_name(table))
                assert all(may_say(form, name.encode()) for name in table)
                tables += 1
            if told.own or told.markers or OWN_SCHEMA in "".join(told.statements):
                assert may_say(form, OWN_SCHEMA.encode())
                words += 1
            if told.markers:
                assert may_write(form, table_name(MARKER_TABLE))
    assert tables > 500
    assert words >= 50


def test_what_is_not_there_is_denied_where_nothing_is_compressed() -> None:
    """Or asking would be of no use."""
    absent = table_name(("golden", "not there"))
    plain = [s for s in steps() if not any(e.type in (40, 165) for e in iter_events(s[1], s[0].has_checksum))]
    assert len(plain) > 100
    for _, payload in plain:
        assert not may_write(payload, absent)
        assert not may_say(payload, b"not there")


def test_a_name_that_compression_hides_is_not_denied() -> None:
    """Of a text that only has letters of which some are frequent, every one is coded: no name is left as it was."""
    log = golden("mysql9")
    text = "".join(random.Random(1).choices("abcdefgh", (9, 4, 2, 1, 1, 1, 1, 1), k=3000)).encode()
    hidden = 0
    for payload in log.steps:
        told = summarise(log.fde, payload)
        events = list(iter_events(payload, log.fde.has_checksum))
        last = events[-1]
        longer = payload[: last.offset] + _annotation(text, log.fde) + payload[last.offset :]
        form = in_one_event((log.fde, longer), 3)
        for table in told.changes:
            hidden += table_name(table) not in form
            assert may_write(form, table_name(table))
            assert may_say(form, table[1].encode())
    assert hidden > 5


def _annotation(text: bytes, fde: FormatDescription) -> bytes:
    body = b"\0" + text
    event = bytearray(encode_event(ev.ROWS_QUERY, body) + (bytes(CHECKSUM_SIZE) if fde.has_checksum else b""))
    event[9:13] = len(event).to_bytes(4, "little")
    return bytes(event)


def test_many_steps_may_what_one_of_them_may() -> None:
    """As a record holds them."""
    log = golden("groups")
    wanted = {table for step in log.steps for table in summarise(log.fde, step).changes}
    whole = b"".join(log.steps)
    assert all(may_write(whole, table_name(table)) for table in wanted)
    assert not may_write(whole, table_name(("golden", "not there")))
    assert may_write(whole + golden("mysql9_compressed").events, table_name(("golden", "not there")))


def test_what_is_sealed_or_damaged_may_hold_anything() -> None:
    assert may_write(None, b"x")
    assert may_say(None, b"x")
    step = golden("groups").steps[-1]
    assert not may_say(step, b"not there")
    for damaged in (step[:-1], step[: HEADER_SIZE - 1], step + b"\0", step[:9] + bytes(4) + step[13:]):
        assert may_say(damaged, b"not there")
    assert not may_say(b"", b"not there")


@pytest.mark.parametrize("table", [("s", "t"), ("ж" * 64, "x" * 64), ("x" * 300, "t")])
def test_any_text_makes_a_name(table: tuple[str, str]) -> None:
    assert table_name(table).count(b"\0") == 2
