"""Inversion as bytes: what comes out, in which order and sizes, and what is refused. On servers: test_server."""

from __future__ import annotations

import pytest

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import FormatDescription, checksum_matches, iter_events, parse_format_description
from streams.formats.binlog.inverse import (
    Direction,
    NativeBatch,
    Part,
    binlog_statement,
    carry_table_maps,
    encode_event,
    native_batches,
    plain_format_description,
    rename_table_map,
)
from streams.formats.binlog.rows import NO_CHECK_CONSTRAINT_CHECKS, NO_FOREIGN_KEY_CHECKS, STATEMENT_END, parse_rows
from streams.formats.binlog.step import Change, TableMaps, decode_step, summarise
from streams.formats.binlog.table_map import parse_table_map
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import Log, golden

LOGS = ["zoo", "compressed", "bare"]


def row_steps(name: str) -> tuple[Log, list[bytes]]:
    log = golden(name)
    told = [(step, summarise(log.fde, step)) for step in log.steps]
    return log, [step for step, summary in told if summary.kind == "rows" and not summary.partial]


def plain(fde: FormatDescription) -> FormatDescription:
    return parse_format_description(plain_format_description(fde))


def changes_of(fde: FormatDescription, batches: list[NativeBatch]) -> list[Change]:
    return [c for b in batches for c in decode_step(plain(fde), b.table_map_event + b.rows_event)]


def batches_of(
    parts: list[Part], direction: Direction = "undo", max_rows: int = 1000, max_event_bytes: int = 1 << 20
) -> list[NativeBatch]:
    return list(native_batches(parts, direction, max_rows=max_rows, max_event_bytes=max_event_bytes))


def undone(change: Change) -> Change:
    kind = {"insert": "delete", "update": "update", "delete": "insert"}[change.kind]
    return Change(
        change.schema, change.table, kind, change.after, change.before, change.columns, change.primary_key  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("max_rows", [1, 2, 1000])
def test_undo_is_every_change_inverted_in_reverse(name: str, max_rows: int) -> None:
    log, steps = row_steps(name)
    done = [change for step in steps for change in decode_step(log.fde, step)]
    batches = batches_of([(log.fde, step) for step in reversed(steps)], max_rows=max_rows)
    assert changes_of(log.fde, batches) == [undone(change) for change in reversed(done)]
    assert all(1 <= batch.rows <= max_rows for batch in batches)
    assert sum(batch.rows for batch in batches) == len(done)


@pytest.mark.parametrize("name", LOGS)
def test_redo_is_every_change_again(name: str) -> None:
    log, steps = row_steps(name)
    done = [change for step in steps for change in decode_step(log.fde, step)]
    assert changes_of(log.fde, batches_of([(log.fde, step) for step in steps], "redo")) == done


@pytest.mark.parametrize("name", LOGS)
def test_what_is_undone_twice_is_done_again(name: str) -> None:
    log, steps = row_steps(name)
    once = batches_of([(log.fde, step) for step in reversed(steps)])
    twice = batches_of([(plain(log.fde), b.table_map_event + b.rows_event) for b in reversed(once)])
    assert changes_of(log.fde, twice) == [change for step in steps for change in decode_step(log.fde, step)]


@pytest.mark.parametrize("name", LOGS)
def test_steps_may_come_joined_or_in_fragments(name: str) -> None:
    log, steps = row_steps(name)
    expected = batches_of([(log.fde, step) for step in reversed(steps)])
    assert batches_of([(log.fde, b"".join(steps))]) == expected
    parts: list[Part] = []
    maps: TableMaps = {}
    for step in steps:
        for event in iter_events(step, checksum=True):
            fragment = step[event.offset : event.offset + event.length]
            parts.append((log.fde, fragment, maps))
            maps = carry_table_maps(log.fde, fragment, maps)
    assert [(b.table, b.kind, b.rows) for b in batches_of(parts[::-1])] == [(b.table, b.kind, b.rows) for b in expected]
    assert changes_of(log.fde, batches_of(parts[::-1])) == changes_of(log.fde, expected)


def test_events_keep_to_their_size() -> None:
    log, steps = row_steps("zoo")
    parts: list[Part] = [(log.fde, step) for step in steps]
    for most in (4100, 5000, 9000):
        sizes = [len(b.rows_event) for b in batches_of(parts, max_event_bytes=most)]
        assert max(sizes) <= most
    with pytest.raises(FormatError) as caught:
        batches_of(parts, max_event_bytes=500)
    assert caught.value.code == "too-large"
    assert "max_allowed_packet" in caught.value.hint


def test_written_events_are_bare() -> None:
    """No time, no flags but the end of the statement, and the table id of their own table map."""
    log, steps = row_steps("groups")
    unchecked = next(s for s in steps if b"unchecked" in s)
    original = next(e for e in iter_events(unchecked, checksum=True) if e.type == ev.WRITE_ROWS_V1)
    assert parse_rows(original.type, original.body).flags & NO_FOREIGN_KEY_CHECKS
    (batch,) = batches_of([(log.fde, unchecked)])
    events = list(iter_events(batch.table_map_event + batch.rows_event, checksum=False))
    assert [(e.type, e.timestamp, e.flags, e.next_pos) for e in events] == [
        (ev.TABLE_MAP, 0, 0, 0),
        (ev.DELETE_ROWS_V1, 0, 0, 0),
    ]
    rows = parse_rows(events[1].type, events[1].body)
    assert rows.flags == STATEMENT_END
    assert rows.table_id.to_bytes(6, "little") == bytes(events[0].body[:6])


def test_constraints_are_checked_as_the_session_had_it() -> None:
    log, steps = row_steps("groups")
    step = bytearray(steps[0])
    event = next(e for e in iter_events(bytes(step), checksum=True) if e.type == ev.WRITE_ROWS_V1)
    step[event.offset + 19 + 6] |= NO_CHECK_CONSTRAINT_CHECKS
    batches = batches_of([(log.fde, bytes(step)), (log.fde, steps[0])])
    assert [parse_rows(b.rows_event[4], b.rows_event[19:]).flags for b in batches] == [
        STATEMENT_END | NO_CHECK_CONSTRAINT_CHECKS,
        STATEMENT_END,
    ]


def test_own_tables_and_sequences_are_left_alone() -> None:
    log = golden("groups")
    told = [(step, summarise(log.fde, step)) for step in log.steps]
    own = next(step for step, summary in told if summary.markers)
    assert [(b.table, b.kind, b.rows) for b in batches_of([(log.fde, own)])] == [(("golden", "t"), "update", 1)]
    sequence = next(step for step, summary in told if summary.sequences)
    assert batches_of([(log.fde, sequence)]) == []


def test_what_is_not_rows_is_refused() -> None:
    log = golden("groups")
    refused: set[tuple[str, str]] = set()
    for step in log.steps:
        summary = summarise(log.fde, step)
        try:
            batches_of([(log.fde, step)])
            code = ""
        except FormatError as error:
            code = error.code
        assert bool(code) == summary.barrier, summary
        if code:
            refused.add((summary.kind, code))
    assert refused == {
        ("account", "not-invertible"),
        ("ddl", "not-invertible"),
        ("statement", "not-invertible"),
        ("xa", "not-invertible"),
        ("rolled_back", "not-invertible"),
        ("rows", "partial-image"),
    }


def test_tables_of_the_server_are_refused() -> None:
    log, steps = row_steps("groups")
    step = steps[0].replace(b"\x06golden\0", b"\x05mysql\0x")[: len(steps[0])]
    event = next(e for e in iter_events(steps[0], checksum=True) if e.type == ev.TABLE_MAP)
    content = rename_table_map(steps[0][event.offset : event.offset + event.length - 4], "mysql", "global_priv")
    assert step != steps[0]
    with pytest.raises(FormatError) as caught:
        batches_of([(plain(log.fde), content)])
    assert caught.value.code == "system-schema"


def test_a_table_map_can_be_given_another_name() -> None:
    log, steps = row_steps("zoo")
    for batch in batches_of([(log.fde, step) for step in steps]):
        renamed = rename_table_map(batch.table_map_event, "holdfast", "guard_ü")
        (event,) = iter_events(renamed, checksum=False)
        table_map = parse_table_map(event.body)
        assert table_map.key == ("holdfast", "guard_ü")
        assert table_map.columns == parse_table_map(batch.table_map_event[19:]).columns
    with pytest.raises(FormatError):
        rename_table_map(batch.table_map_event, "s", "t" * 300)


def test_the_plain_format_description_announces_no_checksums() -> None:
    fde = golden("zoo").fde
    assert fde.has_checksum
    assert not plain(fde).has_checksum
    assert not checksum_matches(plain(fde).raw)
    assert binlog_statement(fde, []).startswith(b"BINLOG '")
    assert b"\n" not in binlog_statement(fde, [])


def test_events_of_version_2_stay_so() -> None:
    """MySQL's rows events: other types, and a length of extra data before the column count."""
    log, steps = row_steps("bare")
    as_v2: list[bytes] = []
    for step in steps:
        events = []
        for event in iter_events(step, checksum=True):
            kind, body = event.type, bytes(event.body)
            if kind in (ev.WRITE_ROWS_V1, ev.UPDATE_ROWS_V1):
                kind, body = kind + 7, body[:8] + b"\x05\0abc" + body[8:]
            events.append(encode_event(kind, body))
        as_v2.append(b"".join(events))
    fde = plain(log.fde)
    done = [change for step in steps for change in decode_step(log.fde, step)]
    assert [change for step in as_v2 for change in decode_step(fde, step)] == done
    assert [summarise(fde, step).changes for step in as_v2] == [summarise(log.fde, step).changes for step in steps]
    batches = batches_of([(fde, step) for step in reversed(as_v2)])
    assert [batch.rows_event[4] for batch in batches] == [ev.UPDATE_ROWS, ev.DELETE_ROWS]
    assert changes_of(log.fde, batches) == [undone(change) for change in reversed(done)]
