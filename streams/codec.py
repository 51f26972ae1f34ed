"""Events to bytes and back: Avro single-object encoding (marker C3 01, CRC-64-AVRO fingerprint little-endian, body).

Avro 1.11 specification, "Single-object encoding". Knows nothing of Kafka.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

import fastavro
from blake3 import blake3
from fastavro.schema import fingerprint, to_parsing_canonical_form

from streams import avro_schemas
from streams.errors import StreamError
from streams.events import REGISTRY, Event, Stamp

MARKER = b"\xc3\x01"
HEAD = 10
_LARGE = "payload"
ZERO_DIGEST = bytes(32)
_STAMP = tuple(f.name for f in dataclasses.fields(Stamp))


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    """`writers`: of the fields, in order; a bytes field by itself, whose writer is its name, splits them."""

    event: type[Event]
    parsed: Any
    writers: tuple[Any, ...]
    reader: Any
    head: bytes
    take: Any
    build: Any


@functools.cache
def _by_head() -> dict[bytes, _Codec]:
    """By the first bytes of a record: every version that was ever released, read as the newest."""
    newest = {event.TYPE: event for event in sorted(REGISTRY.values(), key=lambda e: e.VERSION)}
    return {
        codec.head: codec
        for event in newest.values()
        for version in range(1, event.VERSION + 1)
        for codec in [_codec(event, version)]
    }


@functools.cache
def _by_event() -> dict[type[Event], _Codec]:
    return {event: _codec(event, event.VERSION) for event in REGISTRY.values()}


def _codec(event: type[Event], version: int) -> _Codec:
    """Reads `version` of the event's schema into `event`; writes only its own."""
    schema = avro_schemas.load(event, version)
    reader = None if version == event.VERSION else fastavro.parse_schema(avro_schemas.load(event))
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    # fastavro gives the fingerprint as hexadecimal of the little-endian bytes.
    head = MARKER + bytes.fromhex(crc)
    cls: Any = event
    return _Codec(event, fastavro.parse_schema(schema), _writers(schema), reader, head, _taker(cls), _builder(cls))


def _writers(schema: Any) -> tuple[Any, ...]:
    """A record is its fields one after the other, so its parts can be written apart: a large payload then goes into the
    value as it is, where fastavro would copy it through a buffer that grows (a seventh of capture's time)."""
    names = [field["name"] for field in schema["fields"]]
    if _LARGE not in names:
        return (fastavro.parse_schema(schema),)
    at = names.index(_LARGE)
    assert schema["fields"][at]["type"] == "bytes"
    before, after = (
        fastavro.parse_schema({"type": "record", "name": part, "fields": fields})
        for part, fields in (("before", schema["fields"][:at]), ("after", schema["fields"][at + 1 :]))
    )
    return before, _LARGE, after


def _length(n: int) -> bytes:
    """Avro's `long`: zig-zag, then base 128, least significant first."""
    n <<= 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


@functools.cache
def _taker(cls: type) -> Any:
    """A function from a `cls` to the dict that fastavro wants."""
    hints = typing.get_type_hints(cls)
    names = tuple(f.name for f in dataclasses.fields(cls))
    values = operator.attrgetter(*names) if len(names) > 1 else lambda o: (getattr(o, names[0]),)
    plain = [(name, conv) for name in names if (conv := _plain(hints[name])) is not None]

    def take(obj: Any) -> dict[str, Any]:
        raw = dict(zip(names, values(obj), strict=True))
        for name, conv in plain:
            raw[name] = conv(raw[name])
        return raw

    return take


def _plain(hint: Any) -> Any:
    """What makes fastavro's value of a field's; None when it is the value itself."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _plain(next(a for a in args if a is not type(None)))
        return None if inner is None else lambda v: None if v is None else inner(v)
    if origin is tuple:
        item = _plain(args[0])
        return list if item is None else lambda v: list(map(item, v))
    if origin is Mapping:
        return dict
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _taker(hint)
    return None


@functools.cache
def _builder(cls: type) -> Any:
    """A function from fastavro's dict to `cls`."""
    hints = typing.get_type_hints(cls)
    fields = [(f.name, _converter(hints[f.name])) for f in dataclasses.fields(cls)]

    def build(raw: dict[str, Any]) -> Any:
        return cls(**{name: raw[name] if conv is None else conv(raw[name]) for name, conv in fields})

    return build


def _converter(hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _converter(next(a for a in args if a is not type(None)))
        return None if inner is None else lambda v: None if v is None else inner(v)
    if origin is tuple:
        item = _converter(args[0])
        return tuple if item is None else lambda v: tuple(map(item, v))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _builder(hint)
    return None


def encode(event: Event, stamp: Stamp) -> bytes:
    """One record value. Raises `StreamError` (`event-invalid`) when a field does not fit its schema."""
    codec = _by_event().get(type(event))
    if codec is None:
        raise StreamError("event-invalid", f"{type(event).__name__} is not an event of the log")
    pieces = [codec.head]
    try:
        raw = codec.take(event)
        for name in _STAMP:
            raw[name] = getattr(stamp, name)
        for writer in codec.writers:
            if isinstance(writer, str):
                pieces += (_length(len(raw[writer])), raw[writer])
                continue
            out = io.BytesIO()
            fastavro.schemaless_writer(out, writer, raw)
            pieces.append(out.getvalue())
        return b"".join(pieces)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise StreamError("event-invalid", f"{event.TYPE} does not fit its schema: {error}") from error


def decode(value: bytes) -> tuple[Event, Stamp]:
    """The event and its stamp. Raises `StreamError` (`record-unreadable`) on anything that is not one of our records."""
    codec = _by_head().get(bytes(value[:HEAD]))
    if codec is None:
        known = value[:2] == MARKER
        raise StreamError(
            "record-unreadable",
            "the record's schema is not known here" if known else "the record is not in Avro single-object encoding",
            "a newer Holdfast wrote it: upgrade this one" if known else "somebody else writes to this topic",
        )
    body = io.BytesIO(value)
    body.seek(HEAD)
    try:
        raw: Any = fastavro.schemaless_reader(body, codec.parsed, codec.reader)
        if body.tell() != len(value):
            raise ValueError("trailing bytes")
        return codec.build(raw), Stamp(**{name: raw[name] for name in _STAMP})
    except StreamError:
        raise
    except Exception as error:  # fastavro raises whatever the damage leads it into
        raise StreamError("record-unreadable", f"a {codec.event.TYPE} record is damaged: {error}") from error


def peek_type(value: bytes) -> type[Event] | None:
    """The event's type without decoding the body; None when it is none of ours."""
    codec = _by_head().get(bytes(value[:HEAD]))
    return None if codec is None else codec.event


def chain_digest(value: bytes) -> bytes:
    """BLAKE3-256 of an encoded, unsigned record: what the writer's next record names as `previous`."""
    return blake3(value).digest()
