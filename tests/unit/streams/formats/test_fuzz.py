"""Whatever bytes come, parsers return or raise FormatError: no other error, no endless loop, no memory out of proportion."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import FormatDescription, iter_events, parse_format_description
from streams.formats.binlog.inverse import native_batches, rename_table_map
from streams.formats.binlog.rows import KINDS, parse_rows
from streams.formats.binlog.sql import to_sql
from streams.formats.binlog.statements import classify, is_account_statement
from streams.formats.binlog.step import decode_step, split_steps, summarise
from streams.formats.binlog.table_map import parse_table_map
from streams.formats.binlog.values import display
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden, golden_names

LOGS = [golden(name) for name in golden_names()]
STEPS = [(log.fde, step) for log in LOGS for step in log.steps if len(step) < 4000]

PARSERS: list[Callable[[bytes], Any]] = [
    ev.parse_format_description,
    ev.parse_gtid_list,
    ev.parse_xid,
    ev.parse_query,
    ev.parse_rotate,
    ev.parse_incident,
    ev.parse_annotate_rows,
    ev.parse_xa_prepare,
    ev.parse_start_encryption,
    ev.parse_heartbeat,
    ev.parse_binlog_checkpoint,
    ev.decompress,
    ev.parse_header,
    ev.checksum_matches,
    parse_table_map,
    lambda raw: parse_table_map(raw, mariadb=False),
    lambda raw: ev.parse_query(raw, ev.QUERY_COMPRESSED),
    lambda raw: list(iter_events(raw, checksum=True)),
    lambda raw: list(iter_events(raw, checksum=False)),
    lambda raw: rename_table_map(raw, "s", "t"),
    classify,
    is_account_statement,
    *[lambda raw, kind=kind: ev.parse_gtid(kind, 1, raw) for kind in (ev.GTID, ev.MYSQL_GTID, 42)],
    *[lambda raw, kind=kind: parse_rows(kind, raw) for kind in (*KINDS, ev.PARTIAL_UPDATE_ROWS)],
]


def survives(parser: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(FormatError):
        parser(*arguments)


def everything(fde: FormatDescription, payload: bytes) -> None:
    """All that is done with a step."""
    survives(summarise, fde, payload)
    survives(lambda: list(split_steps(fde, payload)))
    for direction in ("undo", "redo"):
        survives(lambda: list(native_batches([(fde, payload)], direction)))  # noqa: B023
    try:
        changes = decode_step(fde, payload, limit=50)
    except FormatError:
        return
    for change in changes:
        for values in (change.before, change.after):
            for value, column in zip(values or (), change.columns, strict=False):
                display(value, column)
                assert column.type_name
        survives(to_sql, change, True)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PARSERS), st.binary(max_size=300))
def test_garbage(parser: Callable[[bytes], Any], raw: bytes) -> None:
    survives(parser, raw)


@st.composite
def damaged_steps(draw: st.DrawFn) -> tuple[FormatDescription, bytes]:
    """A real step with bytes changed, cut out, repeated or added. Lengths in headers often still hold."""
    fde, step = draw(st.sampled_from(STEPS))
    raw = bytearray(step)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        how = draw(st.sampled_from(["change", "change", "change", "cut", "repeat", "truncate", "append"]))
        if how == "change" and raw:
            raw[at] = draw(
                st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 250, 251, 252, 253, 254, 255]))
            )
        elif how == "cut":
            del raw[at : at + draw(st.integers(1, 8))]
        elif how == "repeat":
            raw[at:at] = raw[at : at + draw(st.integers(1, 30))]
        elif how == "truncate":
            del raw[at:]
        else:
            raw += draw(st.binary(max_size=40))
    return fde, bytes(raw)


@settings(max_examples=1500, deadline=None)
@given(damaged_steps())
def test_damaged_steps(damaged: tuple[FormatDescription, bytes]) -> None:
    everything(*damaged)


@settings(max_examples=2500, deadline=None)
@given(st.sampled_from(STEPS), st.integers(0), st.integers(0), st.integers(0, 255))
def test_damage_inside_one_event(step: tuple[FormatDescription, bytes], which: int, at: int, value: int) -> None:
    """The event's length is kept, so the damage reaches the parser of its body."""
    fde, payload = step
    events = list(iter_events(payload, checksum=True))
    event = events[which % len(events)]
    if len(event.body):
        raw = bytearray(payload)
        raw[event.offset + 19 + at % len(event.body)] = value
        everything(fde, bytes(raw))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LOGS), st.integers(19, 400), st.integers(0, 255))
def test_damaged_format_descriptions(log: Any, at: int, value: int) -> None:
    raw = bytearray(log.fde.raw)
    raw[at % len(raw)] = value
    survives(parse_format_description, bytes(raw))


def test_claims_do_not_take_memory() -> None:
    """Length fields of gigabytes in events of a few bytes."""
    log = golden("compressed")
    step = log.steps[1]
    bomb = b"\x84\x3f\xff\xff\xff" + zlib.compress(b"\0" * 1000)
    tracemalloc.start()
    try:
        survives(ev.decompress, bomb)
        for at in range(len(step)):
            raw = bytearray(step)
            raw[at : at + 4] = b"\xff\xff\xff\x3f"
            everything(log.fde, bytes(raw))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
