"""Steps are told apart, counted and timed, whole or in fragments."""

from __future__ import annotations

import zlib

import pytest

from streams.formats.binlog.events import HEADER_SIZE, Event, iter_events, parse_header
from streams.formats.binlog.inverse import encode_event
from streams.formats.binlog.rows import parse_rows_head
from streams.formats.binlog.statements import REDACTED
from streams.formats.binlog.step import Change, StepSummary, Summariser, TableMaps, decode_step, summarise
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden, golden_names

T, M, NOKEY, MARKER = ("golden", "t"), ("golden", "m"), ("golden", "nokey"), ("holdfast", "marker")


def summaries() -> list[StepSummary]:
    log = golden("groups")
    return [summarise(log.fde, step) for step in log.steps]


def test_every_form_of_step_is_told() -> None:
    """In the order of groups.sql."""
    told = [(s.kind, {table: tuple(change) for table, change in s.changes.items()}) for s in summaries()]
    assert told == [
        *[("account", {})] * 8,
        *[("ddl", {})] * 3,
        ("rows", {T: (2, 0, 0)}),
        ("rows", {T: (0, 1, 0)}),
        ("rows", {T: (0, 0, 1)}),
        ("rows", {T: (1, 2, 0), NOKEY: (2, 0, 0)}),
        ("rows", {M: (1, 0, 0)}),
        ("rows", {M: (1, 0, 0)}),  # the rolled-back transaction left its MyISAM row
        ("rows", {M: (1, 0, 0)}),
        ("rolled_back", {T: (2, 0, 0)}),  # to a savepoint: one of the two does not stand
        ("ddl", {("golden", "copied"): (3, 0, 0)}),
        ("xa", {T: (1, 0, 0)}),
        ("xa", {}),
        ("xa", {T: (1, 0, 0)}),
        ("xa", {}),
        ("rows", {T: (1, 0, 0)}),
        ("statement", {}),
        ("statement", {}),
        ("empty", {}),
        ("empty", {}),
        ("rows", {T: (0, 1, 0)}),
        ("empty", {}),
        ("empty", {}),
        ("ddl", {}),
        ("rows", {("golden", "seq"): (1, 0, 0)}),
        *[("ddl", {})] * 7,
        ("ddl", {}),
        ("rows", {MARKER: (1, 0, 0), T: (0, 1, 0)}),
        ("rows", {MARKER: (0, 0, 1)}),
        ("ddl", {}),
        ("rows", {T: (1, 0, 0)}),
    ]


def test_what_a_step_says_of_itself() -> None:
    log, told = golden("groups"), summaries()
    assert [s.gtid for s in told] == [f"0-1-{number}" for number in range(1, len(told) + 1)]
    assert all(s.complete for s in told)
    for step, summary in zip(log.steps, told, strict=True):
        last = list(iter_events(step, checksum=True))[-1]
        assert summary.commit_time == last.timestamp
        assert (summary.events, summary.size) == (len(list(iter_events(step, checksum=True))), len(step))
    assert {s.xid for s in told if s.xid} == {"X'646f6e65',X'6272616e6368',7", "X'756e646f6e65',X'',1"}
    assert [s.markers for s in told if s.markers] == [("0190b5a0-0000-7000-8000-000000000001",)]
    assert [(s.kind, s.changes) for s in told if s.own] == [
        ("ddl", {}),
        ("ddl", {}),
        ("rows", {MARKER: (0, 0, 1)}),
        ("ddl", {}),
    ]
    assert [s.sequences for s in told if s.sequences] == [(("golden", "seq"),)]
    assert {table for s in told for table in s.keyless} == {NOKEY, ("golden", "copied")}


def test_no_secret_shows() -> None:
    told = summaries()
    for summary in told:
        if summary.kind == "account":
            assert summary.statements == (REDACTED,)
            assert summary.secret
    assert "geheim" not in repr(told)
    procedure = next(s for s in told if s.kind == "ddl" and s.secret)
    assert procedure.statements == (REDACTED,)
    assert any("CREATE TABLE passwords" in text for s in told for text in s.statements)


def test_only_what_can_roll_back_is_called_transactional() -> None:
    for summary in summaries():
        if summary.kind == "rows":
            assert summary.transactional == (M not in summary.changes and ("golden", "seq") not in summary.changes)


@pytest.mark.parametrize("name", ["zoo", "groups", "compressed"])
def test_a_step_in_fragments_is_the_step(name: str) -> None:
    log = golden(name)
    for step in log.steps:
        pieces = [step[e.offset : e.offset + e.length] for e in iter_events(step, checksum=True)]
        summariser = Summariser(log.fde)
        maps: TableMaps = {}
        changes: list[Change] = []
        for piece in pieces:
            summariser.feed(piece)
            changes += decode_step(log.fde, piece, table_maps=maps)
        assert summariser.finish() == summarise(log.fde, step)
        assert changes == decode_step(log.fde, step)


@pytest.mark.parametrize("name", [name for name in golden_names() if name != "old_temporal"])
def test_counts_are_those_of_the_decoded_rows(name: str) -> None:
    log = golden(name)
    for step in log.steps:
        counted: dict[tuple[str, str], list[int]] = {}
        for change in decode_step(log.fde, step):
            counted.setdefault((change.schema, change.table), [0, 0, 0])[
                ("insert", "update", "delete").index(change.kind)
            ] += 1
        assert {table: list(c) for table, c in summarise(log.fde, step).changes.items()} == counted


def test_cut_off_steps_are_incomplete_or_refused() -> None:
    log = golden("groups")
    step = next(s for s in log.steps if summarise(log.fde, s).kind == "rows")
    events: list[Event] = list(iter_events(step, checksum=True))
    assert not summarise(log.fde, step[: events[-1].offset]).complete
    with pytest.raises(FormatError, match=r"cut off|claims"):
        summarise(log.fde, step[:-1])
    with pytest.raises(FormatError):
        summarise(log.fde, step + b"\0")
    rows_alone = step[events[-2].offset :]
    assert parse_header(rows_alone).length > HEADER_SIZE
    with pytest.raises(FormatError, match="no table map"):
        summarise(log.fde, rows_alone)


def test_a_marker_is_found_in_compressed_rows() -> None:
    log = golden("groups")
    step, plain = next((s, m) for s in log.steps if (m := summarise(log.fde, s)).markers)
    squeezed = b"".join(_compressed(step[e.offset : e.offset + e.length]) for e in iter_events(step, checksum=True))
    assert squeezed != step
    told = summarise(log.fde, squeezed)
    assert (told.markers, told.changes) == (plain.markers, plain.changes)


def _compressed(event: bytes) -> bytes:
    """A rows event of version 1 as log_bin_compress writes it; any other as it is."""
    kinds = {23: 166, 24: 167, 25: 168}
    kind = event[4]
    if kind not in kinds:
        return event
    body = event[HEADER_SIZE:-4]
    data = parse_rows_head(kind, body, 0, len(body)).data
    rows = body[data:]
    made = encode_event(kinds[kind], body[:data] + b"\x81" + bytes((len(rows),)) + zlib.compress(rows)) + bytes(4)
    return made[:9] + len(made).to_bytes(4, "little") + made[13:]
