"""Steps of the captured log, beginning after a replica's position, as packets of a dump.

A step of account statements is left out, for a copy has accounts of its own: an empty step with its GTID stands in its
place, so that positions go on without a gap and no password is unsealed. Knows the log, no socket.

    rotate, description, step, step, …            the first file
    rotate, description, step, …                  after `FILE_BYTES`, or when the source described its log anew
    GTID list "until reached"                     after the last step, when there is one

A replica that nobody looks at before it has all of it is given plain transactions many at a time (`gather`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, Protocol

from agents.mysql.positions import GtidSet, parse, show
from agents.replay import events as made
from agents.replay.files import Files
from agents.replay.gather import gathered
from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.errors import FormatError

# A position within a file has 32 bits; well before that another file begins.
FILE_BYTES: Final = 1 << 30
_BATCH_BYTES: Final = 1 << 18
_SAMPLE: Final = 64
_SKIPPED: Final = "account statements are not applied to copies"
_gtid = Struct("<I10xQIB").unpack_from  # from byte 5 of a GTID event: server id, sequence, domain, flags
_FIRST_GTID = ev.HEADER_SIZE + 13


class Log(Protocol):
    """What is needed of `streams.capture_log.CaptureLog`."""

    def steps(self, lineage: str, first: int, last: int) -> Iterable[StepFragment]: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica may have: steps `first..last` of a lineage, where `start` is the position before `first`.

    `gather`: plain transactions may be put together, so that the replica is at few of the positions in between.
    """

    log: Log
    lineage: str
    start: str
    last: int
    first: int = 1
    version: str = ""
    server_id: int = 1
    mysql: bool = False  # it is MySQL's log, for MySQL's replicas
    gather: bool = False

    def position(self) -> str:
        """The native position after `last`. Raises `StreamError` (`step-unknown`)."""
        return position_after(self.log, self.lineage, self.start, self.last, self.first)


def position_after(log: Log, lineage: str, start: str, ordinal: int, first: int = 1) -> str:
    """The GTID set after step `ordinal`; `start` is the one before step `first`.

    A record says the whole set after its last step only, so the nearest such place is gone on from.
    """
    if ordinal < first:
        return start
    back = 64
    while True:
        begin = max(first, ordinal - back)
        whole = begin == first
        position = dict(parse(start))
        for fragment in _plainly(log.steps(lineage, begin, ordinal)):
            if fragment.number == 0 and not fragment.accounts and fragment.payload is not None:
                gtid = gtid_of(fragment.payload)
                position[gtid[2]] = gtid
            if fragment.last and fragment.position_after:
                position, whole = parse(fragment.position_after), True
        if whole:
            return show(position)
        back *= 8


def _plainly(fragments: Iterable[StepFragment]) -> Iterator[StepFragment]:
    """The same, with XA transactions as plain ones. Each is held whole, which capture's bound on them makes bearable."""
    held: list[StepFragment] = []
    for fragment in fragments:
        payload = fragment.payload
        if fragment.number == 0:
            held = []
            if fragment.accounts or payload is None or not gtid_of(payload)[3] & ev.GTID_PREPARED_XA:
                yield fragment
                continue
        elif not held:
            yield fragment
            continue
        held.append(fragment)
        if fragment.last:
            described = ev.parse_format_description(fragment.preamble)
            whole = b"".join(f.payload or b"" for f in held)
            plain = made.one_phase(whole, checksum=described.has_checksum)
            yield replace(held[0], payload=plain, last=True, position_after=fragment.position_after)
            held = []


def gtid_of(payload: bytes) -> tuple[int, int, int, int]:
    """Server id, sequence, domain and flags of a step's first event. Raises `FormatError`."""
    if len(payload) < _FIRST_GTID or payload[4] != ev.GTID:
        raise FormatError("malformed", "a step does not begin with a GTID event")
    server_id, sequence, domain, flags = _gtid(payload, 5)
    return server_id, sequence, domain, flags


class Feed:
    """One replica's stream. `packets()` is used by one thread; `ordinal_at` may be asked by another."""

    def __init__(self, served: Served, state: str, *, sequence: int = 1) -> None:
        """`state`: the GTID set that the replica has. Raises `AgentError` (`position-invalid`)."""
        self._served = served
        self._state = parse(state)
        resumed = show(self._state) != show(parse(served.start))
        self._files = Files(served.server_id, resumed=resumed, sequence=sequence)
        self._lock = threading.Lock()
        self._samples: list[tuple[int, int, int]] = []  # ordinal, domain, sequence
        self.sent = served.first - 1

    def packets(self) -> Iterator[list[bytes]]:
        """Lists of bytes to send, in order. Ends after the last step, having said so."""
        served, files = self._served, self._files
        at = dict(parse(served.start))
        batch: list[bytes] = []
        size = 0
        sample = 0
        steps = self._steps(at)
        for step in gathered(steps) if served.gather else steps:
            payload = step.payload or b""
            if step.number == 0:
                if step.preamble != files.described or files.position > FILE_BYTES:
                    batch += files.begin(step.preamble)
                if step.ordinal >= sample or step.ordinal == served.last:
                    sample = step.ordinal + _SAMPLE
                    _, sequence, domain, _ = gtid_of(payload)
                    with self._lock:
                        self._samples.append((step.ordinal, domain, sequence))
                self.sent = step.ordinal
            batch += files.put(payload)
            size += len(payload)
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if not files.described:
            batch += files.begin(None)
        batch += files.put(made.until_reached(
            [(g[2], g[0], g[1]) for _, g in sorted(at.items())], server_id=served.server_id, checksum=files.checksum
        ))  # fmt: skip
        yield batch

    def _steps(self, at: dict[int, tuple[int, int, int, int]]) -> Iterator[StepFragment]:
        """The fragments that the replica lacks, as they are to be sent; keeps `at`, the position after them."""
        served, state = self._served, self._state
        covered = False
        for step in _plainly(served.log.steps(served.lineage, served.first, served.last)):
            if step.number == 0:
                gtid = self._gtid(step, at)
                at[gtid[2]] = gtid
                has = state.get(gtid[2])
                covered = has is not None and gtid[1] <= has[1]
                if step.accounts and not covered:
                    checksum = ev.parse_format_description(step.preamble).has_checksum
                    empty = made.empty_step(gtid[2], gtid[0], gtid[1], _SKIPPED, checksum=checksum)
                    yield replace(step, payload=empty, accounts=False)
            if not covered and not step.accounts and step.payload is not None:
                yield step

    def ordinal_at(self, at: str) -> int:
        """About how far a replica at native position `at` is: a step that it has applied (0: none yet that is known)."""
        position, reached = parse(at), 0
        with self._lock:
            while self._samples:
                ordinal, domain, sequence = self._samples[0]
                has = position.get(domain)
                if has is None or has[1] < sequence:
                    break
                reached = ordinal
                if len(self._samples) == 1:
                    break
                del self._samples[0]
        return reached

    def _gtid(self, fragment: StepFragment, at: GtidSet) -> tuple[int, int, int, int]:
        """A step's GTID. One that is sealed stands alone in its record, which says the position after it."""
        if not fragment.accounts and fragment.payload is not None:
            return gtid_of(fragment.payload)
        if fragment.position_after:
            after = parse(fragment.position_after)
            new = [g for domain, g in after.items() if at.get(domain, (0, 0))[:2] != g[:2]]
            if len(new) == 1:
                return new[0]
        if fragment.payload is not None:
            return gtid_of(fragment.payload)
        raise FormatError("malformed", f"the position of step {fragment.ordinal}, which is sealed, does not follow")
