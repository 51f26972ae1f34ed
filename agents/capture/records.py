"""Steps to commit records: ordinals, attempts, what stands before and after, the chain. Pure: no Kafka, no source.

A `Recorder` holds what the next record depends on. It is made from the end of the log (`resumed`) and moved on by what
is recorded, so that after a lost connection to the source it knows by itself where to ask on from (`standing`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from agents.protocol import Piece, Steps, Taken
from streams.capture_record import Sealer, record_digest, seal_payload
from streams.events import CommitsRecorded, Part
from streams.ids import uuid7


@dataclass(frozen=True, slots=True)
class Standing:
    """Where capture stands: after step `ordinal`, at native `after`. The source shows that step again to whoever asks for what
    is after `before`: right before it, or earlier, where a transaction that was prepared then has no outcome yet.

    `proof` is the BLAKE3-256 of that step's payload in clear: what the source sends after `before` must have it. None: the
    lineage has no step yet, and `before` and `after` are where it started.
    """

    ordinal: int
    before: str
    after: str
    proof: bytes | None


class Recorder:
    """Makes the records of one epoch of one lineage, in order. `previous`: digest of the last record that counts."""

    def __init__(
        self, source: str, lineage: str, epoch: int, previous: bytes, standing: Standing, sealer: Sealer | None
    ) -> None:
        self.standing = standing
        self._source = source
        self._lineage = lineage
        self._epoch = epoch
        self._previous = previous
        self._sealer = sealer
        self._shown = standing.proof or b""  # `last_step_digest` of the last complete step, as it stands in records
        self._attempt = ""
        self._number = 0
        self._hasher = blake3()

    def record(self, taken: Taken, captured_us: int) -> CommitsRecorded:
        """The record for what the source handed over. An attempt that was open and is not continued is given up."""
        if isinstance(taken, Piece):
            return self._part(taken, captured_us)
        self._attempt = ""
        first = self.standing.ordinal + 1
        ends = taken.ends
        proof = blake3(memoryview(taken.payload)[ends[-2] if len(ends) > 1 else 0 :]).digest()
        self.standing = Standing(self.standing.ordinal + len(ends), taken.before, taken.after, proof)
        self._shown = b"" if taken.accounts else proof
        return self._chained(self._plain(taken, first, self.standing.ordinal, packed(ends), None, captured_us))

    def _part(self, piece: Piece, captured_us: int) -> CommitsRecorded:
        ordinal = self.standing.ordinal + 1
        if piece.first:
            self._attempt, self._number, self._hasher = uuid7(), 0, blake3()
        self._hasher.update(piece.payload)
        part = Part(self._attempt, self._number, piece.last)
        self._number += 1
        if piece.last:
            self.standing = Standing(ordinal, piece.before, piece.after, self._hasher.digest())
            self._shown = b"" if piece.accounts else self._hasher.digest()
            self._attempt = ""
        return self._chained(self._plain(piece, ordinal, ordinal, b"", part, captured_us))

    def _plain(
        self, taken: Taken, first: int, last: int, step_ends: bytes, part: Part | None, captured_us: int
    ) -> CommitsRecorded:
        return CommitsRecorded(
            lineage=self._lineage,
            epoch=self._epoch,
            source=self._source,
            first_ordinal=first,
            last_ordinal=last,
            part=part,
            step_ends=step_ends,
            events=taken.events,
            before=self.standing.before,
            after=self.standing.after,
            last_step_digest=self._shown,
            server_id=taken.server_id,
            file=taken.file,
            offset=taken.offset,
            captured_us=captured_us,
            previous_record=self._previous,
            digest=b"",
            preamble=taken.preamble,
            payload=taken.payload,
            accounts=taken.accounts,
        )

    def _chained(self, record: CommitsRecorded) -> CommitsRecorded:
        if record.accounts:
            if self._sealer is None:
                raise ValueError("an account statement cannot be recorded without a key")
            record = seal_payload(record, self._sealer)
        self._previous = record_digest(record)
        return replace(record, digest=self._previous)


def packed(ends: Sequence[int]) -> bytes:
    """`step_ends` of a record: little-endian u32 each."""
    out = array("I", ends)
    if out.itemsize != 4:  # pragma: no cover - no platform of ours
        raise OverflowError("array('I') has no 4 bytes here")
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()


def steps_of(taken: Taken) -> int:
    """How many steps this completes."""
    return len(taken.ends) if isinstance(taken, Steps) else int(taken.last)
