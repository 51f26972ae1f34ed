"""The captured log as packets of MySQL's dump, for a replica that positions itself (`SOURCE_AUTO_POSITION`).

    rotate, description, step, step, …            a file for each that the source had, or after `FILE_BYTES`
    …                                             and then silence: the replica has all when it has every GTID served

MySQL's GTIDs are sets, so what is not to be applied is left out: account statements (a copy has accounts of its own, and no
password is unsealed) and what prepared XA transactions: such a step is served as a plain transaction's. A replica must apply
one step after the other (`replica_parallel_workers=0`), for the steps' own clocks count what was left out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from agents.mysql import gtid_sets
from agents.mysql.gtid_sets import Gtid, GtidSet
from agents.replay import events as made
from agents.replay.feed import FILE_BYTES, Served
from agents.replay.files import Files
from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.binlog.gtids import parse_gtid
from streams.formats.errors import FormatError

_BATCH_BYTES: Final = 1 << 18
_SAMPLE: Final = 64
_NUMBERED: Final = frozenset({ev.MYSQL_GTID, ev.MYSQL_GTID_TAGGED})


def position_after(served: Served) -> str:
    """The GTID set after the last step that is served: what the source had executed of all steps then.

    A record says the whole set after its last step only, so the nearest such place is gone on from.
    """
    back = 64
    while True:
        begin = max(served.first, served.last - back)
        whole = begin == served.first
        position = gtid_sets.parse(served.start)
        for fragment in served.log.steps(served.lineage, begin, served.last) if served.last >= begin else ():
            if not fragment.accounts and fragment.payload is not None:
                for gtid in gtids_in(fragment.payload):
                    gtid_sets.add(position, gtid)
            if fragment.last and fragment.position_after:
                position, whole = gtid_sets.parse(fragment.position_after), True
        if whole:
            return gtid_sets.show(position)
        back *= 8


def gtids_in(payload: bytes) -> Iterator[Gtid]:
    """Of whole events; none in what goes on with a step. Raises `FormatError`."""
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at + 9 : at + 13], "little")
        if length < ev.HEADER_SIZE or at + length > len(payload):
            raise FormatError("truncated", "an event of a step is cut off")
        if payload[at + 4] in _NUMBERED:
            yield _gtid(payload[at : at + length])
        at += length


def _gtid(event: bytes) -> Gtid:
    if len(event) < ev.HEADER_SIZE or event[4] not in _NUMBERED:
        raise FormatError("malformed", "a step does not begin with a GTID event")
    return gtid_sets.gtid(parse_gtid(event[4], 0, event[ev.HEADER_SIZE :]).text)


def _plainly(fragments: Iterable[StepFragment]) -> Iterator[StepFragment]:
    """Fragments that are to be applied, with XA transactions as plain ones; each of those is held whole."""
    held: list[StepFragment] = []
    for fragment in fragments:
        payload = fragment.payload
        if fragment.accounts or payload is None:
            continue
        if fragment.number == 0:
            held = [fragment] if made.is_xa(payload) else []
        elif held:
            held.append(fragment)
        if not held:
            yield fragment
        elif fragment.last:
            whole = b"".join(f.payload or b"" for f in held)
            described = ev.parse_format_description(fragment.preamble)
            yield replace(held[0], payload=made.plain_mysql(whole, checksum=described.has_checksum), last=True)


class MySQLFeed:
    """One replica's stream. `packets()` is used by one thread; the rest may be asked by another."""

    def __init__(self, served: Served, executed: GtidSet, *, sequence: int = 1) -> None:
        """`executed`: what the replica has."""
        self._served = served
        self._executed = executed
        resumed = not gtid_sets.contains(gtid_sets.parse(served.start), executed)
        self._files = Files(served.server_id, resumed=resumed, sequence=sequence)
        self._source_file = ""
        self._lock = threading.Lock()
        self._samples: list[tuple[int, Gtid]] = []
        self._wanted: GtidSet = {}
        self._finished = False
        self.sent = served.first - 1

    def packets(self) -> Iterator[list[bytes]]:
        """Lists of bytes to send, in order."""
        served, files = self._served, self._files
        batch: list[bytes] = []
        size = 0
        covered = False
        for fragment in _plainly(served.log.steps(served.lineage, served.first, served.last)):
            payload = fragment.payload or b""
            if fragment.number == 0:
                covered = self._is_covered(_gtid(payload[: int.from_bytes(payload[9:13], "little")]), fragment.ordinal)
                new = (fragment.preamble, fragment.file) != (files.described, self._source_file)
                if not covered and (new or files.position > FILE_BYTES):
                    self._source_file = fragment.file
                    batch += files.begin(fragment.preamble)
            self.sent = fragment.ordinal
            if covered:
                continue
            batch += files.put(payload)
            size += len(payload)
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if not files.described:
            batch += files.begin(None)
        yield batch
        self._finished = True

    def _is_covered(self, gtid: Gtid, ordinal: int) -> bool:
        """Whether the replica has this step. It is wanted in any case."""
        source, number = gtid
        with self._lock:
            gtid_sets.add(self._wanted, gtid)
            if ordinal % _SAMPLE == 0 or ordinal == self._served.last:
                self._samples.append((ordinal, gtid))
        return gtid_sets.contains(self._executed, {source: [(number, number)]})

    def ordinal_at(self, at: str) -> int:
        """About how far a replica at native position `at` is: a step that it has applied (0: none yet that is known)."""
        position, reached = gtid_sets.parse(at), 0
        with self._lock:
            while self._samples:
                ordinal, (source, number) = self._samples[0]
                if not gtid_sets.contains(position, {source: [(number, number)]}):
                    break
                reached = ordinal
                if len(self._samples) == 1:
                    break
                del self._samples[0]
        return reached

    def reached(self, at: str) -> bool:
        """Whether a replica at native position `at` has all there is."""
        if not self._finished:
            return False
        with self._lock:
            return gtid_sets.contains(gtid_sets.parse(at), self._wanted)
