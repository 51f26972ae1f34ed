"""The commands `repository.collect`, `repository.verify` and `point.prove`: what is around the work of others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from agents.commands import Command, Context
from agents.repository import collection, proof, reserve
from agents.repository import verify as verifying
from agents.repository.collection import Proposal, Rules
from agents.repository.contents import RepositoryContents
from agents.repository.handlers import held_of
from agents.repository.node import Held, closing
from agents.repository.sessions import Session
from agents.repository.stores import StoreError

PATIENCE_S: Final = 600.0
_LOOK_S: Final = 0.5


def collect(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.collect`. What others have open is waited for, so long as it takes or `PATIENCE_S`."""
    held = held_of(command, ctx)
    for state in held.sessions.leftovers():  # of a run of ours that died: what it began to delete is carried on below
        if state.opened.kind == "collect":
            held.sessions.take_over(state.opened.session, command.requester).close("failed")
    session = held.sessions.open("collect", by=command.requester, job=command.id)

    def progress(stage: str, done: int, total: int) -> None:
        ctx.check()
        ctx.progress(_STAGES.get(stage, stage), done, total, "points" if stage == "mark" else "packs")

    def waits(what: str) -> None:
        ctx.check()
        ctx.progress(f"waiting for {what}")
        ctx.services.stop.wait(_LOOK_S)

    with closing(session):
        dry_run = bool(command.parameters.get("dry_run"))
        result = carry_out(held, session, dry_run=dry_run, progress=progress, waits=waits)
        session.close("done", figures={"freed_bytes": 0 if dry_run else int(result["freed"])})
    return result


def carry_out(
    held: Held,
    session: Session,
    *,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
    waits: Callable[[str], None] = lambda what: time.sleep(_LOOK_S),
) -> dict[str, Any]:
    """Finish what somebody began to delete, then a collection from proposal to end; what was freed, and what is waited for if
    that took longer than `PATIENCE_S`: then it was given up."""
    with contextlib.closing(RepositoryContents(held.repository)) as contents:
        if dry_run:
            plan, figures = collection.forecast(held.sessions, session, contents, progress)
            return _said(plan.bytes, len(plan.packs), figures, [])
        # Where nothing can be moved, what is dead as a whole still goes.
        rules = Rules(live_share=0.0) if reserve.give_up(held.store) else None
        begun = collection.finish(held.sessions, session, contents)
        freed = begun.get("freed_bytes", 0) if begun else 0
        packs = begun.get("packs_deleted", 0) if begun else 0
        done: dict[str, int] = {}
        while (proposal := collection.propose(held.sessions, session, contents, rules, progress)) is not None:
            if waiting := _wait(held, proposal, waits):
                collection.abandon(held.sessions, session, proposal)
                return _said(freed, packs, proposal.figures, waiting)
            done = collection.execute(held.sessions, session, contents, proposal)
            freed, packs = freed + done["freed_bytes"], packs + done["packs_deleted"]
            if not done["left_packs"] or not done["packs_deleted"]:  # else there was more than goes at a time
                break
        _tidy(held)
        return _said(freed, packs, done, [])


def _tidy(held: Held) -> None:
    """What can be done another time: fewer index runs, what crashes left, room for the next time that there is none."""
    with contextlib.suppress(StoreError):
        held.repository.merge_runs()
    with contextlib.suppress(StoreError):
        held.store.sweep(_SCRATCH_S)
    reserve.keep(held.store)


_SCRATCH_S: Final = 86_400.0  # nobody writes a small file for a day

_STAGES: Final = {
    "mark": "looking what is needed",
    "weigh": "looking what is not",
    "copy": "moving what is needed together",
}


def _wait(held: Held, proposal: Proposal, waits: Callable[[str], None]) -> list[str]:
    """Until nothing is in the way; what still is when patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while waiting := collection.waits_for(held.sessions, proposal):
        if time.monotonic() > deadline:
            return waiting
        waits(waiting[0])
    return []


def verify(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.verify`. What stands twice is put right; what is lost is marked on the points that need it."""
    p = command.parameters
    held = held_of(command, ctx)
    ledger = held.sessions.ledger()
    held.sessions.prove(ledger)  # it repairs and marks
    standing = ledger.standing()
    session = held.sessions.open("verify", by=command.requester, pins=standing, job=command.id)

    def progress(stage: str, done: int, total: int) -> None:
        ctx.check()
        ctx.progress(f"verifying: {stage}", done, total)

    with closing(session), contextlib.closing(RepositoryContents(held.repository)) as contents:
        report = verifying.verify(
            contents,
            session,
            {name: state.sealed.record for name, state in standing.items()},
            mode=_MODES[str(p["level"])],
            share=float(p["percent"]) / 100,
            seed=int(command.id[-8:], 16),
            progress=progress,
        )
        verifying.conclude(contents, session, report)
        session.close("done", figures=report.figures, problems=report.problems)
    ctx.warn(*report.problems[:_SHOWN_PROBLEMS])
    return {
        "mode": report.mode,
        "figures": report.figures,
        "points": [{"point": name, "why": why[:500]} for name, why in sorted(report.points.items())[:_SHOWN_POINTS]],
        "left_out": max(0, len(report.points) - _SHOWN_POINTS),
    }


def prove(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.prove`: a point's chain of digests, as far as files and log have it."""
    held = held_of(command, ctx)
    known = held.sessions.ledger().points
    said = {name: proof.Said(state.sealed.record, state.sealed.continues) for name, state in known.items()}
    found = proof.prove(held.store, str(command.parameters["point"]), held.repository.record_key, said)
    shown = found.links[:_SHOWN_POINTS]
    return {
        "links": [{"point": link.point, "record": link.record.hex(), "by": list(link.by)} for link in shown],
        "left_out": len(found.links) - len(shown),
        "captured": [
            {"source": c.source, "lineage": c.lineage, "ordinal": c.ordinal, "digest": c.digest.hex()}
            for c in found.captured
        ],
        "problems": list(found.problems[:_SHOWN_PROBLEMS]),
        "whole": found.whole,
    }


_MODES: Final[Mapping[str, verifying.Mode]] = {"metadata": "metadata", "sample": "sampled", "full": "full"}
_SHOWN_PROBLEMS: Final = 20
_SHOWN_POINTS: Final = 500


def _said(freed: int, packs: int, figures: Mapping[str, int], waiting: list[str]) -> dict[str, Any]:
    return {
        "freed": freed,
        "packs": packs,
        "live": figures.get("live_bytes", 0),
        "copied": figures.get("copied_bytes", 0),
        "waiting": waiting,
    }
