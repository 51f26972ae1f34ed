"""Whatever bytes come, parsers return or raise FormatError: no other error, no endless loop, no memory out of proportion."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.formats.binlog import events as ev
from streams.formats.binlog import jsonb
from streams.formats.binlog.compressed import decompress
from streams.formats.binlog.events import FormatDescription, iter_events, parse_format_description
from streams.formats.binlog.gtids import parse_gtid, parse_gtid_list
from streams.formats.binlog.inverse import encode_event, native_batches, rename_table_map
from streams.formats.binlog.rows import KINDS, parse_rows
from streams.formats.binlog.sql import to_sql
from streams.formats.binlog.statements import classify, is_account_statement
from streams.formats.binlog.step import Change, Summariser, TableMaps, decode_step, split_steps, summarise
from streams.formats.binlog.table_map import parse_table_map
from streams.formats.binlog.values import display
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden, golden_names

LOGS = [golden(name) for name in golden_names()]
STEPS = [(log.fde, step) for log in LOGS for step in log.steps if len(step) < 4000]

PARSERS: list[Callable[[bytes], Any]] = [
    ev.parse_format_description,
    parse_gtid_list,
    ev.parse_xid,
    ev.parse_query,
    ev.parse_rotate,
    ev.parse_incident,
    ev.parse_annotate_rows,
    ev.parse_xa_prepare,
    ev.parse_start_encryption,
    ev.parse_heartbeat,
    ev.parse_binlog_checkpoint,
    decompress,
    ev.parse_header,
    ev.checksum_matches,
    parse_table_map,
    lambda raw: parse_table_map(raw, mariadb=False),
    lambda raw: ev.parse_query(raw, ev.QUERY_COMPRESSED),
    lambda raw: list(iter_events(raw, checksum=True)),
    lambda raw: list(iter_events(raw, checksum=False)),
    lambda raw: rename_table_map(raw, "s", "t"),
    ev.transaction_payload,
    jsonb.decode,
    jsonb.parse_diffs,
    classify,
    is_account_statement,
    *[lambda raw, kind=kind: parse_gtid(kind, 1, raw) for kind in (*ev.GTIDS, 77)],
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
    events = list(iter_events(payload, fde.has_checksum))
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
        survives(decompress, bomb)
        for at in range(len(step)):
            raw = bytearray(step)
            raw[at : at + 4] = b"\xff\xff\xff\x3f"
            everything(log.fde, bytes(raw))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# --- streams of bytes ------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STEPS), st.lists(st.integers(0), max_size=5), st.binary(max_size=30))
def test_framing_does_not_depend_on_cuts(step: tuple[FormatDescription, bytes], cuts: list[int], rest: bytes) -> None:
    """Whole, in pieces, and with the beginning of another event behind: the same whole events are found."""
    fde, payload = step
    ends = [event.offset + event.length for event in iter_events(payload, fde.has_checksum)]
    held, at, found = b"", 0, 0
    for end in sorted({cut % (len(payload) + 1) for cut in cuts} | {len(payload)}):
        held += payload[at:end]
        at = end
        done, wanted = ev.whole_events(held, found)
        assert done == max([e for e in ends if e <= len(held)], default=0)
        assert wanted > len(held) or wanted == done + ev.HEADER_SIZE
        found = done
    assert found == len(payload)
    with contextlib.suppress(FormatError):
        assert ev.whole_events(held + rest, 0)[0] >= len(payload)


@pytest.mark.parametrize("name", golden_names())
def test_fragments_say_what_the_whole_says(name: str) -> None:
    """A step event by event, and cut anywhere else: the first is the same as the whole, the second is refused."""
    log = golden(name)
    for step in log.steps[:12]:
        if len(step) > 20_000:
            continue
        whole = survived(lambda: summarise(log.fde, step))  # noqa: B023
        piecewise = Summariser(log.fde)
        maps: TableMaps = {}
        changes: list[Change] = []
        for event in iter_events(step, log.fde.has_checksum):
            piece = step[event.offset : event.offset + event.length]
            if whole is not None:
                piecewise.feed(piece)
            with contextlib.suppress(FormatError):
                changes += decode_step(log.fde, piece, table_maps=maps)
            for cut in {1, ev.HEADER_SIZE - 1, ev.HEADER_SIZE, event.length - 1}:
                with pytest.raises(FormatError):
                    summarise(log.fde, step[: event.offset + cut])
        if whole is not None:
            assert piecewise.finish() == whole
        assert changes == (survived(lambda: decode_step(log.fde, step)) or changes)  # noqa: B023


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STEPS), st.binary(min_size=1, max_size=200))
def test_what_comes_behind_a_step_is_events_or_refused(step: tuple[FormatDescription, bytes], rest: bytes) -> None:
    fde, payload = step
    try:
        summarise(fde, payload + rest)
    except FormatError:
        return
    assert ev.whole_events(rest)[0] == len(rest)


@pytest.mark.parametrize("name", ["mysql9_compressed", "mysql9_partial", "mysql9", "mysql55", "zoo"])
def test_every_byte_of_some_steps_changed(name: str) -> None:
    """Not at random: each byte in turn becomes each of the values that lengths and counts are most sensitive to."""
    log = golden(name)
    for step in [s for s in log.steps if len(s) < 1200][2:5]:
        for at in range(19, len(step)):
            for value in (0, 0xFB, 0xFC, 0xFF, step[at] ^ 0x80):
                raw = bytearray(step)
                raw[at] = value
                survives(decode_step, log.fde, bytes(raw))
                survives(summarise, log.fde, bytes(raw))


def payload_event(events: bytes, claim: int | None = None) -> bytes:
    """The body of a transaction payload that holds `events` compressed, and claims to hold `claim` bytes."""
    data = zstandard.ZstdCompressor().compress(events)
    size = len(events) if claim is None else claim
    return b"\x02\x01\x00" + b"\x03\x09\xfe" + size.to_bytes(8, "little") + b"\x01\x05\xfe" + bytes(4) + b"\x00" + data


def test_compressed_transactions_take_no_more_than_they_hold() -> None:
    """Claims of gigabytes, bombs, payloads within payloads."""
    log = golden("mysql9_compressed")
    inner = bytearray().join(
        log.steps[-1][e.offset : e.offset + e.length - 4] for e in iter_events(log.steps[-1], True)
    )
    at = 0
    for event in iter_events(log.steps[-1], True):
        inner[at + 9 : at + 13] = (event.length - 4).to_bytes(4, "little")
        at += event.length - 4
    sound = ev.transaction_payload(payload_event(bytes(inner)))
    assert sound == inner
    tracemalloc.start()
    try:
        for claim in (1 << 40, 1 << 30, len(inner) + 1, len(inner) - 1, 0):
            with pytest.raises(FormatError):
                ev.transaction_payload(payload_event(bytes(inner), claim))
        # A gigabyte of zeros in some kilobytes, that says it were little.
        with pytest.raises(FormatError):
            ev.transaction_payload(payload_event(bytes(32 << 20), 1000))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    nested = encode_event(ev.TRANSACTION_PAYLOAD, payload_event(bytes(inner)))
    with pytest.raises(FormatError):
        ev.transaction_payload(payload_event(nested))
    with pytest.raises(FormatError):
        ev.transaction_payload(b"\x02\x01\xff\x00" + nested)


def survived(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except FormatError:
        return None
