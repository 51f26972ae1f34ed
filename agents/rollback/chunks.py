"""Large rollbacks in chunks: a plan is carried out as several smaller ones, one after the other, with time to breathe.

A chunk is whole steps. What is undone goes newest first, what is redone oldest first, so each chunk leaves the source in a
state that it once had (beside what others wrote since), foreign keys and unique keys included; net changes cut by key would
leave states that never were. So a chunk is a plan of its own, with marker and turn, and the timeline needs to know nothing:

    plan P     undo 1..900 of 1..900       chunking ──> chunked        no marker, no turn of its own
    chunk 1    undo 601..900               planned, confirmed, applying, applied
    chunk 2    undo 301..600               …
    chunk 3    undo 1..300

What is left of P is what of its `undo` still stands and of its `redo` does not: after a death, or a failure that was
mended, P goes on from there; to reverse what is done is to take the chunks back, newest first. Between chunks replicas must
have caught up (`Breath`). Only where later steps may stay (`whole_source` off): between chunks others write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agents.errors import AgentError, SourceUnavailable
from agents.protocol import SourceSettings
from agents.rollback.history import Log
from agents.rollback.plan import Request
from agents.rollback.target import Target
from streams.events import OrdinalRange, RollbackPlanned
from streams.formats.binlog.step import summarise
from streams.ids import uuid7
from streams.paths import Path, normalise

BREATH_WAIT_S: Final = 600.0
MOST_UNDO: Final = 1_000_000
"""Undo records that the source may still have to purge when a chunk begins."""
_TURN_S: Final = 0.2
_WITHOUT: Final = "run the plan again when it is well, or with --without-replica {} to wait for it no more"


def remaining(planned: RollbackPlanned, standing: Path) -> tuple[Path, Path]:
    """(undo, redo) that is left of a plan where `standing` is the path now."""
    return _common(planned.undo, standing), _without(planned.redo, standing)


def _common(a: Path, b: Path) -> Path:
    found = (OrdinalRange(max(x.first, y.first), min(x.last, y.last)) for x in a for y in b)
    return normalise(r for r in found if r.first <= r.last)


def _without(a: Path, b: Path) -> Path:
    out = list(a)
    for y in b:
        out = [
            piece
            for x in out
            for piece in (
                (x,)
                if y.last < x.first or x.last < y.first
                else (OrdinalRange(x.first, y.first - 1), OrdinalRange(y.last + 1, x.last))
            )
            if piece.first <= piece.last
        ]
    return normalise(out)


def count_rows(log: Log, lineage: str, paths: Sequence[Path]) -> dict[int, int]:
    """Rows that each step changed, by ordinal."""
    rows: dict[int, int] = {}
    for path in paths:
        for r in path:
            for fragment in log.steps(lineage, r.first, r.last):
                found = 0
                if fragment.payload is not None:
                    changes = summarise(fragment.preamble, fragment.payload).changes
                    found = sum(sum(counts) for counts in changes.values())
                rows[fragment.ordinal] = rows.get(fragment.ordinal, 0) + found
    return rows


def next_chunk(undo: Path, redo: Path, rows: Mapping[int, int], most: int) -> tuple[Path, Path]:
    """The steps of the next chunk: about `most` rows, one step at least. Undone ones come before redone ones."""
    order = _descending(undo) if undo else (o for r in redo for o in range(r.first, r.last + 1))
    taken: list[int] = []
    size = 0
    for ordinal in order:
        size += rows.get(ordinal, 0)
        if taken and size > most:
            break
        taken.append(ordinal)
    path = normalise(OrdinalRange(o, o) for o in taken)
    return (path, ()) if undo else ((), path)


def _descending(path: Path) -> Iterator[int]:
    return (o for r in reversed(path) for o in range(r.last, r.first - 1, -1))


def request_of_chunk(
    planned: RollbackPlanned, whole: Request, standing: Path, head: int, chunk: tuple[Path, Path], number: int
) -> Request:
    """What the plan of one chunk is asked with."""
    undo, redo = chunk
    after = normalise([*_without(standing, undo), *redo])
    return replace(
        whole,
        plan=uuid7(),
        target=f"chunk {number} of {planned.target}",
        target_ordinal=after[-1].last if after else 0,
        target_time_us=0,
        head_ordinal=head,
        path_before=standing,
        path_after=after,
        undo=undo,
        redo=redo,
        part_of=planned.plan,
        approval=False,
        chunk_rows=0,
        pause_ms=0,
    )


@dataclass(slots=True)
class Breath:
    """What is waited for between two chunks: the pause, every replica at the last chunk, undo that was purged."""

    target: Callable[[SourceSettings], Target]
    settings: SourceSettings
    replicas: Sequence[SourceSettings]
    pause_ms: int
    check: Callable[[], None]
    say: Callable[[str], None]

    def take(self, plan: str) -> None:
        """Return when the next chunk may begin after the one that was `plan`.

        Raises `AgentError`: `replica-broken` at once, `replica-behind` and `undo-growing` after ten minutes. What was done
        stays, and the plan can be run again.
        """
        self._until(time.monotonic() + self.pause_ms / 1000)
        for where in self.replicas:
            name = f"{where.host}:{where.port}"
            self._wait(
                where,
                f"replica {name}",
                lambda there, name=name: _behind(there, plan, name),  # type: ignore[misc]
                AgentError(
                    "replica-behind", f"replica {name} has not applied the last chunk in 10 min", _WITHOUT.format(name)
                ),
            )
        self._wait(
            self.settings,
            "the source",
            _unpurged,
            AgentError(
                "undo-growing",
                f"the source does not purge its undo: more than {MOST_UNDO:,} transactions are kept for somebody to read",
                "end the long transaction that keeps it (information_schema.INNODB_TRX shows it), then run the plan again",
            ),
        )

    def _wait(self, where: SourceSettings, name: str, look: Callable[[Target], str], late: AgentError) -> None:
        """Until `look` has nothing to say any more of why the next chunk must wait."""
        deadline = time.monotonic() + BREATH_WAIT_S
        there = self.target(where)
        try:
            while True:
                try:
                    why = look(there)
                    if not why:
                        return
                except SourceUnavailable as error:
                    why = f"waiting for {name}, which does not answer: {error.message}"
                    there.close()
                if time.monotonic() > deadline:
                    raise AgentError(late.code, f"{late.message} ({why})", late.hint)
                self.say(why)
                self.check()
                time.sleep(_TURN_S)
        finally:
            there.close()

    def _until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _TURN_S))


def _behind(there: Target, plan: str, name: str) -> str:
    """Why replica `name` does not have the chunk yet; empty when it has. Raises `AgentError` (`replica-broken`)."""
    if there.has_marker(plan):
        return ""
    state = there.replication()
    if state is not None and state.broken:
        raise AgentError("replica-broken", f"replica {name}: {state.text}", f"mend it; {_WITHOUT.format(name)}")
    return f"waiting for replica {name}" + (f": {state.text}" if state is not None and state.text else "")


def _unpurged(there: Target) -> str:
    kept = there.undo_length() or 0
    return f"waiting for the source to purge undo of {kept:,} transactions" if kept > MOST_UNDO else ""


def replicas(settings: SourceSettings, without: Sequence[str] = ()) -> list[SourceSettings]:
    """The source's option `replicas`: `host:port,host:port`, reached with the source's rollback account and TLS; less those
    that are not to be waited for.

    Raises `AgentError` (`option-invalid`, `replica-unknown`)."""
    out = []
    left = set(without)
    for text in filter(None, (t.strip() for t in settings.options.get("replicas", "").split(","))):
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit():
            raise AgentError(
                "option-invalid", f"replicas of {settings.source}: {text!r} is no host:port", "host:port,host:port"
            )
        if text in left:
            left.remove(text)
        else:
            out.append(replace(settings, host=host, port=int(port)))
    if left:
        raise AgentError(
            "replica-unknown",
            f"{', '.join(sorted(left))} is none of the replicas of {settings.source} that are waited for",
            f"they are: {settings.options.get('replicas') or 'none'}",
        )
    return out
