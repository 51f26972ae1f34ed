"""Recorded steps as a server writes them that compresses its log."""

from __future__ import annotations

import zlib

import zstandard

from streams.formats.binlog import events as ev
from streams.formats.binlog.events import CHECKSUM_SIZE, FormatDescription, iter_events
from streams.formats.binlog.inverse import encode_event

Step = tuple[FormatDescription, bytes]


def payload_event(data: bytes, size: int, algorithm: int = 0) -> bytes:
    """The body of a transaction payload: `data`, which are `size` bytes once they are not compressed any more."""
    kind = b"\x01\x00" if algorithm == 0 else b"\x03\xfc\xff\x00"
    return b"\x02" + kind + b"\x03\x09\xfe" + size.to_bytes(8, "little") + b"\x00" + data


def in_one_event(step: Step, level: int | None) -> bytes:
    """The same step as MySQL writes it with binlog_transaction_compression: its first event, then all others in a payload. None:
    in a payload, but as they are."""
    fde, payload = step
    trailer = CHECKSUM_SIZE if fde.has_checksum else 0
    first, *rest = iter_events(payload, fde.has_checksum)
    if any(e.type == ev.TRANSACTION_PAYLOAD for e in rest):
        return payload
    inner = b"".join(encode_event(e.type, bytes(e.body)) for e in rest)
    data = inner if level is None else zstandard.ZstdCompressor(level=level).compress(inner)
    made = bytearray(encode_event(ev.TRANSACTION_PAYLOAD, payload_event(data, len(inner), 255 if level is None else 0)))
    made += bytes(trailer)
    made[9:13] = len(made).to_bytes(4, "little")
    return payload[: first.length] + made


def statements_compressed(step: Step, level: int) -> bytes:
    """The same step as MariaDB writes it with log_bin_compress, as to its statements."""
    fde, payload = step
    trailer = CHECKSUM_SIZE if fde.has_checksum else 0
    out = []
    for event in iter_events(payload, fde.has_checksum):
        whole = payload[event.offset : event.offset + event.length]
        if event.type == ev.QUERY:
            body = bytes(event.body)
            text = 13 + int.from_bytes(body[11:13], "little") + body[8] + 1
            sql = body[text:]
            made = bytearray(
                encode_event(
                    ev.QUERY_COMPRESSED,
                    body[:text] + b"\x84" + len(sql).to_bytes(4, "big") + zlib.compress(sql, level),
                )
            )
            made += bytes(trailer)
            made[9:13] = len(made).to_bytes(4, "little")
            whole = bytes(made)
        out.append(whole)
    return b"".join(out)
