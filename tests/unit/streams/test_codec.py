"""Any event survives encoding; damaged bytes raise our error and no other."""

from __future__ import annotations

import dataclasses
import io
import types
import typing
from collections.abc import Mapping
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import avro_schemas
from streams.codec import HEAD, MARKER, chain_digest, decode, encode, peek_type
from streams.errors import StreamError
from streams.events import REGISTRY, CommandRequested, CommitsRecorded, Event, OrdinalRange, RollbackPlanned, Stamp
from streams.golden import STAMP, sample

LONG = st.integers(-(2**63), 2**63 - 1)
# Avro strings are UTF-8, which has no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: LONG,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, values(args[1]), max_size=3)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return instances(hint)
    return VALUES[hint]


def instances(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: values(hints[f.name]) for f in dataclasses.fields(cls)})


EVENTS: st.SearchStrategy[Event] = st.sampled_from(list(REGISTRY.values())).flatmap(instances)
STAMPS: st.SearchStrategy[Stamp] = instances(Stamp)


def read(value: bytes) -> Event | str:
    """The event, or the code of our error."""
    try:
        return decode(value)[0]
    except StreamError as error:
        return error.code


@given(EVENTS, STAMPS)
def test_what_is_encoded_comes_back(event: Event, stamp: Stamp) -> None:
    value = encode(event, stamp)

    assert decode(value) == (event, stamp)
    assert value[:2] == MARKER
    assert peek_type(value) is type(event)


@settings(max_examples=500)
@given(EVENTS, st.data())
def test_a_record_with_any_bytes_changed_raises_our_error_or_decodes_to_an_event(event: Event, data: Any) -> None:
    value = bytearray(encode(event, STAMP))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(HEAD, len(value) - 1))] = data.draw(st.integers(0, 255))

    assert isinstance(read(bytes(value)), Event | str)


@pytest.mark.parametrize("event", REGISTRY.values(), ids=lambda e: str(e.TYPE))
def test_a_record_cut_short_anywhere_or_with_bytes_behind_it_raises_our_error(event: type[Event]) -> None:
    value = encode(sample(event), STAMP)

    for damaged in [value[:n] for n in range(len(value))] + [value + b"\0", value + value]:
        with pytest.raises(StreamError) as caught:
            decode(damaged)
        assert caught.value.code == "record-unreadable"


@given(st.binary(max_size=200))
def test_garbage_raises_our_error(garbage: bytes) -> None:
    with pytest.raises(StreamError):
        decode(garbage)
    with pytest.raises(StreamError):
        decode(MARKER + garbage)
    assert peek_type(garbage) is None


@pytest.mark.parametrize("event", REGISTRY.values(), ids=lambda e: str(e.TYPE))
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_garbage_behind_a_known_schema_raises_our_error_or_is_an_event(event: type[Event], garbage: bytes) -> None:
    head = encode(sample(event), STAMP)[:HEAD]
    assert isinstance(read(head + garbage), event | str)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requested_us": "yesterday"},
        {"requested_us": 2**63},
        {"parameters": b"bytes"},
        {"command": None},
        {"asset": "\ud800"},
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused_when_written(wrong: dict[str, Any]) -> None:
    event = dataclasses.replace(sample(CommandRequested), **wrong)

    with pytest.raises(StreamError) as caught:
        encode(event, STAMP)
    assert caught.value.code == "event-invalid"


def test_something_wrong_deep_inside_is_refused_too() -> None:
    planned = sample(RollbackPlanned)
    assert isinstance(planned, RollbackPlanned)
    ranges = (OrdinalRange(1, "two"),)  # type: ignore[arg-type]
    with pytest.raises(StreamError) as caught:
        encode(dataclasses.replace(planned, undo=ranges), STAMP)
    assert caught.value.code == "event-invalid"


def test_every_bit_of_a_record_counts_in_its_chain_digest() -> None:
    value = encode(sample(CommandRequested), STAMP)
    digests = {chain_digest(value)}
    for at in range(len(value)):
        digests.add(chain_digest(value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]))
    assert len(digests) == len(value) + 1


@given(instances(CommitsRecorded), STAMPS)
def test_a_payload_written_apart_is_what_the_schema_says(event: CommitsRecorded, stamp: Stamp) -> None:
    raw = {**dataclasses.asdict(event), **dataclasses.asdict(stamp)}
    whole = io.BytesIO()
    fastavro.schemaless_writer(whole, fastavro.parse_schema(avro_schemas.load(CommitsRecorded)), raw)
    assert encode(event, stamp)[HEAD:] == whole.getvalue()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 8191, 8192, 900_000, 1 << 20])
def test_a_payload_of_any_length_comes_back(size: int) -> None:
    event = sample(CommitsRecorded)
    assert isinstance(event, CommitsRecorded)
    event = dataclasses.replace(event, payload=bytes(size))
    assert decode(encode(event, STAMP)) == (event, STAMP)
