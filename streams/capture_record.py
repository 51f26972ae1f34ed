"""One commit record: its digest, its payload in clear or sealed, its steps, and the headers a capture record carries.

Knows the layout in docs/design.md, "The capture topic", and nothing of Kafka or of what is inside a step.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from typing import Protocol

from blake3 import blake3

from streams.errors import StreamError
from streams.events import CommitsRecorded, Encryption

# How many records their writer had sent before this one without knowing yet that they are in the log, with nothing of
# a later epoch before them. Decimal text. A reader that looks back that far from an accepted record has certainty.
UNSETTLED_HEADER = "hf-unsettled"

_NUMBERS = struct.Struct("<qqqqqqqq")
_PART = struct.Struct("<qB")
_LENGTH = struct.Struct("<Q")


class Sealer(Protocol):
    """What seals and unseals payloads; `streams.secrets.SecretStore` does."""

    def seal(self, purpose: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes, bytes]: ...

    def unseal(self, purpose: str, key_id: str, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes: ...


def lineage_digest(lineage: str, position: str) -> bytes:
    """Where the chain of a lineage starts: BLAKE3-256 of "holdfast lineage", the lineage and its first position."""
    return blake3(b"holdfast lineage" + lineage.encode() + position.encode()).digest()


def record_digest(record: CommitsRecorded) -> bytes:
    """BLAKE3-256 of everything in `record` but its stamp and the digest itself; 32 bytes.

    The layout is in docs/design.md. The payload is hashed as it is stored: sealed when the record is sealed.
    """
    part, encryption = record.part, record.encryption
    head = [
        record.previous_record,
        (record.lineage or "").encode(),
        _NUMBERS.pack(
            record.epoch,
            record.first_ordinal,
            record.last_ordinal,
            record.server_id,
            record.offset,
            record.captured_us,
            record.events,
            record.accounts,
        ),
    ]
    if part is None:
        head.append(b"\x00")
    else:
        head += [b"\x01", part.attempt.encode(), _PART.pack(part.number, part.last)]
    if encryption is None:
        head.append(b"\x00")
    else:
        head += [b"\x01", *_prefixed((encryption.key_id.encode(), encryption.nonce))]
    texts = (record.source, record.before, record.after, record.file)
    head += _prefixed([t.encode() for t in texts])
    head += _prefixed((record.last_step_digest, record.step_ends, record.preamble, record.payload))
    digest = blake3(b"".join(head[:-1]))
    digest.update(record.payload)
    return digest.digest()


def _prefixed(fields: Iterable[bytes]) -> list[bytes]:
    return [piece for field in fields for piece in (_LENGTH.pack(len(field)), field)]


def purpose(source: str) -> str:
    """What a source's payloads are sealed for: one key a source."""
    return f"capture/{source}"


def seal_payload(record: CommitsRecorded, store: Sealer) -> CommitsRecorded:
    """`record` with its payload sealed; its digest is to be made afterwards."""
    key_id, nonce, sealed = store.seal(purpose(record.source), record.payload, _head(record))
    return dataclasses.replace(record, payload=sealed, encryption=Encryption(key_id, nonce))


def unseal_payload(record: CommitsRecorded, store: Sealer | None) -> bytes:
    """The payload in clear. Raises `StreamError` (`payload-sealed` without a store, and what `SecretStore` raises)."""
    if record.encryption is None:
        return record.payload
    if store is None:
        raise StreamError("payload-sealed", f"step {record.first_ordinal} is encrypted", "only the agent may read it")
    sealed = record.encryption
    return store.unseal(purpose(record.source), sealed.key_id, sealed.nonce, record.payload, _head(record))


def _head(record: CommitsRecorded) -> bytes:
    """What a sealed payload is bound to: the record's place."""
    part = record.part
    place = f"{record.source} {record.lineage} {record.epoch} {record.first_ordinal} {record.last_ordinal}"
    return f"{place} {part.attempt} {part.number}".encode() if part else place.encode()


def step_slices(record: CommitsRecorded, payload: bytes | None = None) -> list[memoryview]:
    """The steps of a record without copying; of a part, its one piece. `payload`: in clear, when `record` is sealed.

    Raises `StreamError` (`record-unreadable`) when `step_ends` does not fit the ordinals or the payload.
    """
    view = memoryview(record.payload if payload is None else payload)
    if record.part is not None:
        return [view]
    ends = struct.unpack(f"<{len(record.step_ends) // 4}I", record.step_ends[: len(record.step_ends) // 4 * 4])
    fits = (
        len(ends) * 4 == len(record.step_ends)
        and len(ends) == record.last_ordinal - record.first_ordinal + 1
        and ends
        and ends[-1] == len(view)
        and list(ends) == sorted(ends)
    )
    if not fits:
        raise StreamError("record-unreadable", f"the steps of record {record.first_ordinal} do not fit its payload")
    return [view[start:end] for start, end in zip((0, *ends), ends, strict=False)]


def unsettled_header(count: int) -> tuple[str, bytes]:
    """The header that says how many records before this one are not yet known to stand (`RecordStream.unsettled`)."""
    return UNSETTLED_HEADER, str(count).encode()


def read_unsettled(headers: Mapping[str, bytes]) -> int | None:
    """What `unsettled_header` wrote; None when there is no such header or it makes no sense."""
    text = headers.get(UNSETTLED_HEADER, b"")
    return int(text) if text.isdigit() and len(text) < 10 else None
