"""Events to bytes and back: Avro single-object encoding (marker C3 01, CRC-64-AVRO fingerprint little-endian, body).

Avro 1.11 specification, "Single-object encoding". Knows nothing of Kafka.
"""

from __future__ import annotations

import dataclasses
import functools
import io
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
ZERO_DIGEST = bytes(32)
_STAMP = tuple(f.name for f in dataclasses.fields(Stamp))


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    event: type[Event]
    parsed: Any
    head: bytes
    names: tuple[str, ...]
    build: Any


@functools.cache
def _codecs() -> dict[bytes, _Codec]:
    return {c.head: c for c in map(_codec, REGISTRY.values())}


@functools.cache
def _codec(event: type[Event]) -> _Codec:
    schema = avro_schemas.load(event)
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    # fastavro gives the fingerprint as hexadecimal of the little-endian bytes.
    head = MARKER + bytes.fromhex(crc)
    names = tuple(f.name for f in dataclasses.fields(event))
    return _Codec(event, fastavro.parse_schema(schema), head, names, _builder(event))


def _plain(value: Any) -> Any:
    """A dataclass field as fastavro wants it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value


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
    codec = _codec(type(event))
    raw = {name: _plain(getattr(event, name)) for name in codec.names}
    for name in _STAMP:
        raw[name] = getattr(stamp, name)
    out = io.BytesIO()
    out.write(codec.head)
    try:
        fastavro.schemaless_writer(out, codec.parsed, raw)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise StreamError("event-invalid", f"{event.TYPE} does not fit its schema: {error}") from error
    return out.getvalue()


def decode(value: bytes) -> tuple[Event, Stamp]:
    """The event and its stamp. Raises `StreamError` (`record-unreadable`) on anything that is not one of our records."""
    codec = _codecs().get(bytes(value[:HEAD]))
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
        raw = fastavro.schemaless_reader(body, codec.parsed, None)
        if body.tell() != len(value):
            raise ValueError("trailing bytes")
        return codec.build(raw), Stamp(**{name: raw[name] for name in _STAMP})
    except StreamError:
        raise
    except Exception as error:  # fastavro raises whatever the damage leads it into
        raise StreamError("record-unreadable", f"a {codec.event.TYPE} record is damaged: {error}") from error


def peek_type(value: bytes) -> type[Event] | None:
    """The event's type without decoding the body; None when it is none of ours."""
    codec = _codecs().get(bytes(value[:HEAD]))
    return None if codec is None else codec.event


def chain_digest(value: bytes) -> bytes:
    """BLAKE3-256 of an encoded, unsigned record: what the writer's next record names as `previous`."""
    return blake3(value).digest()
