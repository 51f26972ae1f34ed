"""Transactions in two phases: log groups to steps. Between the cutter and whoever takes steps; pure.

    log       g1  PREPARE x (rows)   g3  g4  PREPARE y (rows)  g6   XA COMMIT x   g8   XA ROLLBACK y
    steps     g1                     g3  g4                    g6   x: both groups g8
    before     .                     g1  g1                    g1   g1            up to g4

A prepared group is parked until its outcome comes: committed, both groups together are a step, at that place in the order of
commits; rolled back, they never were one. The first group of an ALTER in two phases is left out: the second says it again.

**Where to ask on from.** `before` of a step is where the source's log is read from to see that step again. While
anything is parked, that is before the oldest of it: whoever resumes parks it again on the way, passes over the steps that it
knows (`proof` is the position after the last of them), and keeps nothing anywhere. So a transaction left prepared for
days costs days of log at each resume, and its group must not be purged. One that was prepared before the lineage began is
looked for in the source's log when it is committed (`look_back`): its rows are in no baseline.

What is parked is in memory, at most `MOST` bytes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from agents.errors import AgentError, CaptureStopped
from agents.protocol import Piece, Steps, Taken
from streams.formats.binlog.events import parse_format_description

MOST: Final = 64 << 20


class Cut(Protocol):
    """What is needed of a cutter."""

    def take(self, everything: bool) -> Taken | None: ...


@dataclass
class _Parked:
    """A group without its outcome. `before`: where it stands in the log."""

    before: str
    preamble: bytes
    payload: list[bytes] = field(default_factory=list)
    size: int = 0
    events: int = 0
    accounts: bool = False


class Parking:
    """`take` steps from what `cutter` cuts; set `cutter` anew when the log is read on with another.

    `proof`: steps up to this native position are known; the one that reaches it is handed over, by itself. `covers(a, b)`:
    whether position `a` has all of `b` behind it. `look_back(name, position)`: the group that prepared it, cut from the log
    before `position`; nothing when the log does not hold it. `hides`: the log may hold a prepared group that is not seen to be
    one (MySQL's compressed transactions): an outcome of what is not parked stops capture then, a rollback, too. `late`: the
    position after a step is known with its last piece only (offsets). Earlier ones are handed over then, and what is known
    already has pieces without a last one.
    """

    def __init__(
        self,
        cutter: Cut,
        limit: int,
        proof: str | None,
        covers: Callable[[str, str], bool],
        look_back: Callable[[bytes, str], Sequence[Taken]],
        *,
        hides: bool = False,
        late: bool = False,
    ) -> None:
        self._hides = hides
        self._late = late
        self.cutter = cutter
        self._look_back = look_back
        self._limit = limit
        self._proof = proof
        self._covers = covers
        self._parked: dict[bytes, _Parked] = {}  # oldest first
        self._open = _Parked("", b"")  # of which pieces have come
        self._ready: deque[Taken] = deque()
        self._failure: AgentError | None = None
        self._joining = False

    @property
    def parked(self) -> int:
        """How many transactions are prepared and have no outcome yet."""
        return len(self._parked)

    def take(self, everything: bool) -> Taken | None:
        """As a cutter's. Single steps that two phases have left between them are handed over together."""
        taken = self._next(everything)
        while self._joining and isinstance(taken, Steps):
            following = self._next(everything)
            if following is None:
                break
            if not isinstance(following, Steps) or not self._fit(taken, following):
                self._ready.appendleft(following)
                break
            taken = _joined(taken, following)
        self._joining = False
        if taken is None and self._failure is not None:
            raise self._failure
        return taken

    def _fit(self, one: Steps, other: Steps) -> bool:
        """Account statements stand alone."""
        return (
            not one.accounts
            and not other.accounts
            and one.preamble == other.preamble
            and (one.file, one.server_id) == (other.file, other.server_id)
            and len(one.payload) + len(other.payload) <= self._limit
        )

    def _next(self, everything: bool) -> Taken | None:
        while not self._ready:
            if self._failure is not None:
                if self._joining:
                    return None
                raise self._failure
            taken = self._cut(everything)
            if taken is None:
                return None
            if taken.phase is None and not self._parked and self._proof is None:
                return taken
            try:
                self._ready.extend(self._resolve(taken))
            except AgentError as error:
                self._failure = error
        return self._ready.popleft()

    def _cut(self, everything: bool) -> Taken | None:
        """While a run is being put together a failure can wait: the cutter fails again when it is asked again."""
        try:
            return self.cutter.take(everything)
        except AgentError:
            if self._joining:
                return None
            raise

    def _resolve(self, taken: Taken) -> Iterator[Taken]:
        phase = taken.phase
        if phase is None:
            yield from self._known_or(replace(taken, before=self._oldest(taken.before)))
            return
        self._joining = self._proof is None
        if phase.kind == "prepared":
            self._park(phase.name, taken)
        elif phase.kind == "rolled back":
            if self._parked.pop(phase.name, None) is None and self._hides and not self._known(taken):
                raise _unknown("rolls back", taken)
        elif phase.kind == "committed":
            for made in self._committed(phase.name, taken):
                yield from self._known_or(made)

    def _oldest(self, before: str) -> str:
        return next((p.before for p in self._parked.values()), before)

    def _known_or(self, taken: Taken) -> Iterator[Taken]:
        """`taken`, unless it is of a step that is known already. The last of these is the proof, and is handed over."""
        if self._late and isinstance(taken, Piece) and not taken.last:
            yield taken
            return
        if self._known(taken):
            return
        if isinstance(taken, Steps) or taken.last:
            self._proof = None
        yield taken

    def _known(self, taken: Taken) -> bool:
        return self._proof is not None and taken.after != self._proof and self._covers(self._proof, taken.after)

    def _park(self, name: bytes, taken: Taken) -> None:
        """Take in a group, or a piece of one: it counts once it is whole."""
        if isinstance(taken, Steps) or taken.first:
            self._open = _Parked(taken.before, taken.preamble)
        parked = self._open
        parked.payload.append(taken.payload)
        parked.size += len(taken.payload)
        parked.events += taken.events
        parked.accounts |= taken.accounts
        if parked.size + sum(p.size for p in self._parked.values()) > MOST:
            raise CaptureStopped(
                "capture-xa-large",
                f"prepared XA transactions hold more than {MOST >> 20} MB of log (up to {taken.after})",
                "commit or roll back what XA RECOVER shows, then take a new baseline; smaller XA transactions",
            )
        if isinstance(taken, Steps) or taken.last:
            self._parked[name] = parked

    def _committed(self, name: bytes, outcome: Taken) -> Iterator[Taken]:
        """The step of both groups."""
        if name not in self._parked:
            if self._known(outcome):
                return  # and its first group stands before where the log is read from
            for group in self._look_back(name, outcome.before):
                self._park(name, group)
        parked = self._parked.pop(name, None)
        if parked is None:
            raise _unknown("commits", outcome)
        before = self._oldest(parked.before)
        if self._covers(before, parked.before):
            before = parked.before  # it was looked for: the oldest, though it was parked last
        described = [parse_format_description(p) for p in (parked.preamble, outcome.preamble)]
        if described[0].has_checksum != described[1].has_checksum:
            raise CaptureStopped(
                "capture-xa-format",
                f"binlog_checksum was changed between the two groups of the XA transaction that {outcome.after} commits",
                "take a new baseline; change binlog_checksum when XA RECOVER shows nothing",
            )
        assert isinstance(outcome, Steps)
        size = parked.size + len(outcome.payload)
        events, accounts = parked.events + outcome.events, parked.accounts
        if size <= self._limit:
            payload = b"".join([*parked.payload, outcome.payload])
            yield replace(
                outcome, payload=payload, ends=[size], events=events, before=before, accounts=accounts, phase=None
            )
            return
        payloads = [*parked.payload, outcome.payload]
        for i, payload in enumerate(payloads):
            yield Piece(
                payload=payload,
                first=i == 0,
                last=i == len(payloads) - 1,
                events=outcome.events if i else parked.events,
                before=before,
                after=outcome.after,
                preamble=outcome.preamble,
                server_id=outcome.server_id,
                file=outcome.file,
                offset=outcome.offset,
                step_time_us=outcome.step_time_us,
                accounts=accounts,
            )


def _unknown(what: str, outcome: Taken) -> CaptureStopped:
    return CaptureStopped(
        "capture-xa-unknown",
        f"{outcome.after} {what} an XA transaction that was not seen to be prepared: that was before the lineage began and the "
        "source's log does not hold it any more, or it was logged compressed (MySQL)",
        "its rows are in no baseline: take a new one; with XA, keep binlog_transaction_compression off",
    )


def _joined(one: Steps, other: Steps) -> Steps:
    """Both runs as one."""
    at = len(one.payload)
    return replace(
        other,
        payload=one.payload + other.payload,
        ends=[*one.ends, *(at + end for end in other.ends)],
        events=one.events + other.events,
    )
