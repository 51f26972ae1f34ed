"""A writer of capture records without a source behind it: what a capture agent appends, well behaved or not."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

from streams.capture_record import Sealer, lineage_digest, record_digest, seal_payload
from streams.events import CommitsRecorded, EpochStarted, LineageStarted, Part
from streams.ids import now_us, uuid7

PREAMBLE = b"preamble of a source whose payload nobody looks into"


def payload_of(ordinal: int, number: int = 0, size: int = 40) -> bytes:
    """What step `ordinal` holds (in part `number`): recognisable, and the same whoever writes it."""
    return struct.pack("<qi", ordinal, number).ljust(size, b"\xee")


@dataclass
class CaptureWriter:
    """One agent's view: its epoch, the digest its next record names, the last complete step."""

    source: str
    lineage: str
    epoch: int
    digest: bytes
    ordinal: int = 0
    writer: str = ""

    @staticmethod
    def start(source: str = "shop", position: str = "0-1-1") -> tuple[CaptureWriter, LineageStarted]:
        """A new lineage, and its first record."""
        lineage = uuid7()
        digest = lineage_digest(lineage, position)
        started = LineageStarted(
            source=source,
            lineage=lineage,
            epoch=0,
            position=position,
            server_id=1,
            server_version="10.11.8-MariaDB",
            reason="protected",
            baseline="",
            digest=digest,
            at_us=now_us(),
        )
        return CaptureWriter(source, lineage, 0, digest), started

    def marker(self, epoch: int) -> EpochStarted:
        """Take over with `epoch`."""
        self.epoch = epoch
        return EpochStarted(source=self.source, lineage=self.lineage, epoch=epoch, agent=self.writer, at_us=now_us())

    def steps(
        self, count: int = 1, size: int = 40, *, accounts: bool = False, sealer: Sealer | None = None
    ) -> CommitsRecorded:
        """The record of the next `count` steps."""
        first, last = self.ordinal + 1, self.ordinal + count
        payload = b"".join(payload_of(o, 0, size) for o in range(first, last + 1))
        ends = struct.pack(f"<{count}I", *(size * (i + 1) for i in range(count)))
        record = self._record(first, last, payload, None, ends, accounts, sealer)
        self.ordinal = last
        return record

    def part(self, attempt: str, number: int, last: bool, size: int = 40) -> CommitsRecorded:
        """A part of the next step."""
        ordinal = self.ordinal + 1
        part = Part(attempt, number, last)
        record = self._record(ordinal, ordinal, payload_of(ordinal, number, size), part, b"", False, None)
        if last:
            self.ordinal = ordinal
        return record

    def _record(
        self,
        first: int,
        last: int,
        payload: bytes,
        part: Part | None,
        ends: bytes,
        accounts: bool,
        sealer: Sealer | None,
    ) -> CommitsRecorded:
        complete = part is None or part.last
        record = CommitsRecorded(
            source=self.source,
            lineage=self.lineage,
            epoch=self.epoch,
            first_ordinal=first,
            last_ordinal=last,
            part=part,
            step_ends=ends,
            events=3 * (last - first + 1),
            before=f"0-1-{last}",
            after=f"0-1-{last + 1 if complete else last}",
            last_step_digest=bytes(32),
            server_id=1,
            file="binlog.000001",
            offset=4,
            captured_us=now_us(),
            previous_record=self.digest,
            digest=b"",
            preamble=PREAMBLE,
            payload=payload,
            accounts=accounts,
        )
        if sealer is not None:
            record = seal_payload(record, sealer)
        record = dataclasses.replace(record, digest=record_digest(record))
        self.digest = record.digest
        return record
