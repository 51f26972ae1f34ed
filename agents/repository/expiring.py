"""The commands by which points go: by the repository's rules, or ahead of them when two agree.

A dry run says of every point why it stays or goes, and gives a digest of what would go. Dropping takes that digest: what goes is
what somebody has looked at. Dropping is one event a point, in which its reason stands, and a mark that says the same in the
repository; a death in between leaves the rest standing, and the command, resumed, goes on with it if what went already and what
would go now are together what was seen. A policy's command is unattended: it goes by the repository's rules of that moment, which
somebody has set, and takes no digest. Content goes with the next collection.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, Final

from blake3 import blake3

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository import marks, policies, reserve, retention
from agents.repository.handlers import held_of, say_mark
from agents.repository.keeping import rules_of
from agents.repository.ledger import Ledger, PointState
from agents.repository.marks import DROPPED, Mark
from agents.repository.node import Held
from agents.repository.retention import Candidate, Rules, Verdict
from agents.repository.sessions import bear_witness
from agents.repository.stores import StoreError
from streams.events import PointDropped, RepositoryDefined
from streams.publish import rfc3339

_SHOWN: Final = 2000
_log = logging.getLogger(__name__)


def set_retention(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.retention`."""
    held, keep = held_of(command, ctx), str(command.parameters["keep"])
    rules = rules_of(keep)
    was = held.defined
    held.sessions.prove(held.sessions.ledger())
    if was.options.get("keep", "") != keep:
        decided = {**{name: was.options[name] for name in policies.KNOWN if name in was.options}, "keep": keep}
        policies.decide(held.store, decided, held.repository.record_key)
        held.sessions.say(
            RepositoryDefined(
                repository=was.repository,
                identity=was.identity,
                state="changed",
                store=was.store,
                location=was.location,
                node=was.node,
                encrypted=was.encrypted,
                options={**was.options, "keep": keep},
                secrets=was.secrets,
                retention=retention.encode(rules),
                protected_from=was.protected_from,
                defined_us=held.sessions.clock(),
                by=command.requester,
            )
        )
    return {"keep": keep}


def expire(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.expire`."""
    p = command.parameters
    held = held_of(command, ctx)
    standing = held.sessions.ledger().standing()
    gone = _dropped_before(held.sessions.ledger(), command)
    standing |= gone
    keep = str(p["keep"]) if "keep" in p else held.defined.options.get("keep", "")
    verdicts = judged(standing, rules_of(keep), held.sessions.clock())
    going = [v for v in verdicts if not v.keep]
    digest = digest_of(held.name, keep, going)
    if not p["dry_run"]:
        if not p.get("unattended") and digest != p["digest"]:
            raise AgentError(
                "expiry-differs",
                "the points that would go now are others than were shown: time has passed, or points came",
                f"look again: `holdfast point expire {held.name} --dry-run`",
            )
        drop(held, going, command.requester, gone)
    shown = sorted(verdicts, key=lambda v: (v.keep, -standing[v.point].sealed.created_us))[:_SHOWN]
    return {
        "points": [
            {
                "point": v.point,
                "keep": v.keep,
                "why": list(v.why),
                "asset": standing[v.point].sealed.asset,
                "created": rfc3339(standing[v.point].sealed.created_us),
            }
            for v in shown
        ],
        "left_out": len(verdicts) - len(shown),
        "kept": len(verdicts) - len(going),
        "drop": len(going),
        "digest": digest,
        "keep": keep,
    }


def judged(standing: Mapping[str, PointState], rules: Rules, now_us: int) -> list[Verdict]:
    """A verdict for each point that stands."""
    return retention.decide((candidate(state) for state in standing.values()), rules, now_us)


def candidate(state: PointState) -> Candidate:
    said = {name: mark.number for name, mark in state.marks.items()}
    bad = max(said.get("suspect", 0), said.get("damaged", 0))
    sealed = state.sealed
    return Candidate(
        sealed.point,
        sealed.asset,
        sealed.created_us,
        starred=state.starred,
        holds=dict(state.holds),
        sound=bad <= said.get("verified", 0),
        content=frozenset({sealed.kind, *(f"{sealed.kind}/{disk.disk}" for disk in sealed.disks)}),
    )


def digest_of(repository: str, keep: str, going: list[Verdict]) -> str:
    """64 hexadecimal digits for what would go, under which rules."""
    lines = [repository, keep, *sorted(v.point for v in going)]
    return str(blake3("\n".join(lines).encode()).hexdigest())


def _dropped_before(ledger: Ledger, command: Command) -> dict[str, PointState]:
    """What an earlier run of a command dropped before it died."""
    if not command.resumed:
        return {}
    return {
        name: state
        for name, state in list(ledger.points.items())
        if (drop := state.drop) is not None
        and (drop.by, drop.early) == (command.requester, False)
        and drop.dropped_us >= command.requested_us
    }


def drop(held: Held, going: list[Verdict], by: str, gone: Mapping[str, PointState]) -> None:
    """Say of each that it is given up, and why; of those that are `gone` already, what a death left unsaid."""
    held.sessions.prove(held.sessions.ledger())
    reserve.give_up(held.store)  # points are dropped to make room, and the last drop's witness needs some
    _finish_drops(held, gone.values())
    going = [verdict for verdict in going if verdict.point not in gone]
    for number, verdict in enumerate(going, 1):
        event = PointDropped(
            repository=held.name,
            point=verdict.point,
            reason="; ".join(verdict.why),
            dropped_us=held.sessions.clock(),
            by=by,
        )
        say_drop(held, event, witness=number == len(going))


def _finish_drops(held: Held, gone: Collection[PointState]) -> None:
    """Marks and witness of drops that stand in the log, where a death kept them from being written."""
    for state in gone:
        assert state.drop is not None
        said, _ = marks.of_point(held.store, state.sealed.point, held.repository.record_key)
        if all(mark.mark != DROPPED for _, mark in said):
            _mark_dropped(held, state.drop)
    if last := max((state.dropped or 0 for state in gone), default=0):
        bear_witness(held.store, last, held.sessions.ledger().id_of(last))


def say_drop(held: Held, event: PointDropped, *, witness: bool) -> None:
    """Into the log, then as a mark into the repository, for whoever adopts it without the log. A place that is full takes none:
    points are dropped to make room."""
    held.sessions.prove(held.sessions.ledger())  # before the mark, which another log's adopter would find
    entry = held.sessions.say(event, witness=witness)
    failpoint("point-dropped")
    if held.sessions.counted(entry):
        _mark_dropped(held, event)


def _mark_dropped(held: Held, event: PointDropped) -> None:
    mark = Mark(event.point, DROPPED, event.by, event.dropped_us, note=event.reason)
    try:
        marks.add(held.store, mark, held.repository.record_key)
    except StoreError as error:
        _log.warning("an adoption before the next collection would bring point %s back: %s", event.point, error)


def agree(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.agree`: who asks here agrees with who asked for the point to go, and it goes."""
    p = command.parameters
    held, name = held_of(command, ctx), str(p["point"])
    now = held.sessions.clock()
    state = held.sessions.ledger().points.get(name)
    if state is None:
        raise AgentError("point-unknown", f"repository {held.name} has no point {name}", "`holdfast point list`")
    if state.dropped is not None and command.resumed:
        held.sessions.prove(held.sessions.ledger())
        _finish_drops(held, [state])
        return {"point": name}
    asked = state.marks.get("expiry-asked")
    if asked is None:
        raise AgentError("expiry-unasked", "nobody asked for this point to go", f"`holdfast point drop {name}` asks")
    if state.starred or state.held_at(now):
        what = "starred" if state.starred else f"held ({', '.join(sorted(state.holds))})"
        raise AgentError("point-kept", f"point {name} is {what}", "take that away first")
    since = {asked.by: asked.marked_us, command.requester: int(p["right_since_us"])}
    retention.check_early(name, asked.by, command.requester, since, now)
    say_mark(held, name, "expiry-agreed", command.requester, note=str(p.get("note", "")))
    event = PointDropped(
        repository=held.name,
        point=name,
        reason=f"ahead of policy, as {asked.by} asked: {asked.note}",
        early=True,
        agreed_by=command.requester,
        dropped_us=held.sessions.clock(),
        by=asked.by,
    )
    say_drop(held, event, witness=True)
    return {"point": name}
