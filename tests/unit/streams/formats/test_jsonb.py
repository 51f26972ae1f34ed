"""MySQL's binary JSON: documents and differences that a server wrote, and damage."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.formats.binlog import jsonb
from streams.formats.binlog.jsonb import Diff, Moment, Opaque
from streams.formats.binlog.sql import literal
from streams.formats.binlog.step import decode_step, summarise
from streams.formats.binlog.values import JsonBinary, display
from streams.formats.errors import FormatError
from tests.unit.streams.formats.recorded import golden


def documents(name: str) -> list[bytes]:
    log = golden(name)
    found = []
    for step in log.steps:
        for change in decode_step(log.fde, step):
            for value in (*(change.before or ()), *(change.after or ())):
                if isinstance(value, JsonBinary) and value.raw is not None:
                    found.append(value.raw)
    return found


DOCUMENTS = sorted({raw for raw in documents("mysql9") + documents("mysql9_partial") if len(raw) < 3000})


def test_partial_updates_say_what_changed_and_are_not_inverted() -> None:
    log = golden("mysql9_partial")
    steps = [step for step in log.steps if summarise(log.fde, step).partial]
    assert len(steps) == 8
    assert all(summarise(log.fde, step).barrier for step in steps)
    assert [s.changes[("golden", "docs")].updates for s in (summarise(log.fde, step) for step in steps)] == [
        3,
        *[1] * 7,
    ]
    change = decode_step(log.fde, steps[1])[0]
    assert change.before is not None
    assert change.after is not None
    before, after = change.before[1], change.after[1]
    assert isinstance(before, JsonBinary)
    assert isinstance(after, JsonBinary)
    assert after.diffs == (Diff(jsonb.REPLACE, "$.deep.n", b"\x05\x02\x00"),)
    assert '"n": 1' in before.text()
    assert after.text() == before.text().replace('"n": 1', '"n": 2')
    assert display(JsonBinary(None, after.diffs), change.columns[1]) == "(changed: replace $.deep.n 2)"


def test_what_only_the_binary_form_can_say_is_not_written_as_sql() -> None:
    log = golden("mysql9")
    written = refused = 0
    for step in log.steps:
        for change in decode_step(log.fde, step):
            for value, column in zip(change.after or (), change.columns, strict=False):
                if not isinstance(value, JsonBinary):
                    continue
                if jsonb.pure(value.document()):
                    written += literal(value, column).startswith("CAST(")
                else:
                    refused += 1
                    with pytest.raises(FormatError, match="no JSON text can say"):
                        literal(value, column)
    assert written > 10
    assert refused == 3


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_as_the_same_double(value: float) -> None:
    assert struct.pack("<d", float(jsonb.number(value))) == struct.pack("<d", value)
    assert json.loads(jsonb.number(value)) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(JSON)
def test_text_is_json(document: object) -> None:
    assert json.loads(jsonb.text(document)) == document  # type: ignore[arg-type]
    assert jsonb.pure(document)  # type: ignore[arg-type]


def test_values_of_types_that_json_does_not_have() -> None:
    assert jsonb.text([Moment("2024-01-01"), Opaque(252, b"\0\xff")]) == '["2024-01-01", "base64:type252:AP8="]'
    assert jsonb.decode(b"") is None
    assert jsonb.decode(b"\x0f\x0b\x08" + (-1).to_bytes(8, "little", signed=True)) == Moment("-00:00:00.000001")


@pytest.mark.parametrize(
    ("path", "legs"),
    [
        ("$", []),
        ("$.a", ["a"]),
        ("$[0][12].b", [0, 12, "b"]),
        ('$."a b"."\\"q\\\\".x', ["a b", '"q\\', "x"]),
        ('$.é[1]."ü.["', ["é", 1, "ü.["]),
    ],
)
def test_paths(path: str, legs: list[str | int]) -> None:
    assert jsonb.parse_path(path) == legs


def test_a_change_that_does_not_fit_is_refused() -> None:
    for diff in (
        Diff(jsonb.REPLACE, "$.b", b"\x04\0"),
        Diff(jsonb.INSERT, "$.a", b"\x04\0"),
        Diff(jsonb.REMOVE, "$.a[3]", None),
        Diff(jsonb.REMOVE, "$[0]", None),
        Diff(jsonb.REPLACE, "$.a.b.c", b"\x04\0"),
        Diff(jsonb.INSERT, "$.a[9]", b"\x04\0"),
    ):
        with pytest.raises(FormatError):
            jsonb.apply({"a": [1, 2]}, (diff,))
    assert jsonb.apply({"bb": 1, "c": 2}, (Diff(jsonb.INSERT, "$.aa", b"\x04\1"),)) == {"c": 2, "aa": True, "bb": 1}


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(DOCUMENTS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.integers(0))
def test_damaged_documents(raw: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(raw)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    if cut % 3 == 0:
        del damaged[cut % len(damaged) :]
    with contextlib.suppress(FormatError):
        jsonb.text(jsonb.decode(bytes(damaged)))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_garbage(raw: bytes) -> None:
    path = Diff(jsonb.REMOVE, raw.decode("latin-1"), None)
    for parse in (jsonb.decode, jsonb.parse_diffs, lambda _: jsonb.apply({"a": [1]}, (path,))):
        with contextlib.suppress(FormatError):
            parse(raw)


def test_documents_that_point_at_themselves_or_again_and_again_cost_nothing() -> None:
    """Arrays of arrays that share their elements would be endless, or grow with each level."""
    itself = b"\x02" + struct.pack("<HH", 1, 7) + b"\x02" + struct.pack("<H", 0)
    with pytest.raises(FormatError):
        jsonb.decode(itself)
    many = 1000
    string = b"\xf0\x2e" + b"x" * 6000
    shared = struct.pack("<II", many, 8 + 5 * many + len(string))
    shared += (b"\x0c" + struct.pack("<I", 8 + 5 * many)) * many + string
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(FormatError):
            jsonb.decode(b"\x03" + shared)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 60


def test_a_document_is_no_deeper_than_the_server_lets_it_be() -> None:
    deep = b"\x04\x00"
    for _ in range(150):
        deep = b"\x02" + struct.pack("<HH", 1, 6 + len(deep)) + deep[:1] + struct.pack("<H", 7) + deep[1:]
    with pytest.raises(FormatError):
        jsonb.decode(deep)
