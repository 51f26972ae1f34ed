"""The commands `host.add`, `host.remove` and `asset.discover`: which hosts there are, and which machines on them.

    host.add        preflight         nothing
                    host.defined      a host of which no machine is known; the same command goes on
                    asset.changed …   those that are missing are said by the same command, or the next `asset.discover`
    host.remove     asset.changed …   some of its machines are said to be gone; the same command says the rest
                    marks on the host some of them, which are of no use any more
                    host.defined      done
    asset.discover  asset.changed …   the same: only what is different from what was said is said

What is not said again costs nothing, so a command that died is simply carried out again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from agents import registry
from agents.backup import choosing
from agents.commands import Command, Context, JobFailed
from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.hosts import host_settings
from agents.machines import DiskSeen, Host, MachineSeen, NicSeen
from streams.events import AssetChanged, AssetDisk, AssetNic, HostDefined, Problem
from streams.ids import now_us, slug

_NAME: Final = 44  # characters of a slug that are left for a number
_UNTOLD: Final = frozenset({"lineage", "epoch", "seen_us", "by"})  # of an asset's event: no change of the machine


def open_host(ctx: Context, name: str) -> Host:
    """A host that is defined. Raises `AgentError` (`host-unknown`, `kind-unknown`, `extra-missing`)."""
    return registry.host(host_settings(ctx.services.hosts.get(name), ctx.services.secrets))


def add(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `host.add`. A host that is there is defined anew: another account, other options."""
    p = command.parameters
    defined = HostDefined(
        host=slug(str(p["host"])),
        kind=str(p["kind"]),
        state="added",
        url=str(p["url"]),
        account=str(p.get("account", "")),
        tls_ca=str(p.get("tls_ca", "")),
        secrets={str(k): str(v) for k, v in dict(p.get("secrets") or {}).items() if v},
        options={str(k): str(v) for k, v in dict(p.get("options") or {}).items()},
        defined_us=now_us(),
        by=command.requester,
    )
    known = ctx.services.hosts.find(defined.host)
    if known is not None and known.kind != defined.kind:
        raise AgentError(
            "host-exists",
            f"{defined.host} is a host of kind {known.kind}",
            f"`holdfast host remove {defined.host}` first",
        )
    ctx.progress(f"looking at {defined.url}")
    host = registry.host(host_settings(defined, ctx.services.secrets))
    found = host.preflight()
    if found.problems:
        raise JobFailed(found.problems)
    ctx.warn(*found.warnings)
    machines = list(host.discover())
    if p.get("dry_run"):
        return {"version": found.server_version, "machines": len(machines)}
    defined = replace(
        defined, state="changed" if known else "added", version=found.server_version, problems=found.warnings
    )
    if known is None or _told(known) != _told(defined):
        _say(ctx, defined)
    failpoint("host-defined")
    there = {defined.host: (defined.kind, machines)}
    said = changes(ctx.services.hosts.assets(), there, _kinds(ctx), command.requester, _others(ctx))
    _say(ctx, *said.events)
    return {"version": found.server_version, "machines": len(machines)}


def remove(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `host.remove`. Its points stay; what it keeps track of for us is let go if it can be reached."""
    name = str(command.parameters["host"])
    known = ctx.services.hosts.find(name)
    if known is None and command.resumed:
        return {"machines": 0}
    defined = ctx.services.hosts.get(name)
    mine = [a for a in ctx.services.hosts.assets().values() if a.host == name and a.state != "gone"]
    _say(ctx, *(replace(a, state="gone", seen_us=now_us(), by=command.requester) for a in mine))
    failpoint("host-assets-gone")
    try:
        _let_go(ctx, open_host(ctx, name))
    except AgentError as error:
        why = f"marks of points may be left on {name}: {error.message}"
        ctx.warn(
            Problem(
                "host-not-tidied", why, "they do no harm, and go when the host is added again and a machine backed up"
            )
        )
    _say(ctx, replace(defined, state="removed", defined_us=now_us(), by=command.requester))
    return {"machines": len(mine)}


def _let_go(ctx: Context, host: Host) -> None:
    """Take away everything of ours but what jobs are at work on: nobody will ask since these marks any more."""
    found = host.leftovers()
    for one in choosing.dead(found, {f.native for f in found}, ctx.services.node.ledgers(), (), ctx.command.id):
        host.remove(one)


def discover(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `asset.discover`: of one host, or all. A host that is away is left as it was known, and said."""
    chosen = str(command.parameters.get("host") or "")
    names = [ctx.services.hosts.get(chosen).host] if chosen else sorted(ctx.services.hosts.all())
    found: dict[str, tuple[str, list[MachineSeen]]] = {}
    away = []
    for name in names:
        ctx.check()
        ctx.progress(f"looking at {name}", len(found), len(names), "hosts")
        try:
            found[name] = (ctx.services.hosts.get(name).kind, list(open_host(ctx, name).discover()))
        except AgentError as error:
            if chosen or not isinstance(error, SourceUnavailable):
                raise
            away.append(name)
            ctx.warn(error.problem())
    said = changes(ctx.services.hosts.assets(), found, _kinds(ctx), command.requester, _others(ctx))
    _say(ctx, *said.events)
    machines = sum(len(seen) for _, seen in found.values())
    return {"machines": machines, "new": said.new, "changed": said.changed, "gone": said.gone, "away": away}


def note(ctx: Context, asset: AssetChanged, seen: MachineSeen) -> AssetChanged:
    """Say how a machine was seen, if it is different from how it was known."""
    event = described(asset.asset, asset.host, seen, ctx.command.requester)
    if _told(event) == _told(asset):
        return asset
    _say(ctx, event)
    return event


def _kinds(ctx: Context) -> Mapping[str, str]:
    return {name: host.kind for name, host in ctx.services.hosts.all().items()}


def _others(ctx: Context) -> set[str]:
    """Assets that are no machines, and have points: directories and images."""
    return {
        state.sealed.asset
        for ledger in ctx.services.node.ledgers()
        for state in ledger.standing().values()
        if "native" not in state.sealed.facts
    }


def _say(ctx: Context, *events: HostDefined | AssetChanged) -> None:
    """What is durable is known here at once, not only when it has come back through the log."""
    if events:
        ctx.durable(*events)
    for event in events:
        ctx.services.hosts.apply(event)


def _told(event: HostDefined | AssetChanged) -> dict[str, Any]:
    """What an event says of a machine or host, so that two can be compared."""
    if isinstance(event, HostDefined):
        event = replace(event, state="", defined_us=0, by="")
    return {name: getattr(event, name) for name in event.__dataclass_fields__ if name not in _UNTOLD}


# --- pure -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """What there is to say, and how many machines are new, changed, gone."""

    events: list[AssetChanged]
    new: int
    changed: int
    gone: int


def changes(
    known: Mapping[str, AssetChanged],
    found: Mapping[str, tuple[str, Iterable[MachineSeen]]],
    kinds: Mapping[str, str],
    by: str,
    others: Collection[str] = (),
) -> Changes:
    """What is different between `known` assets and what was `found` (host → its kind, and all its machines). `kinds`: all hosts'.
    `others`: names that are those of no machines.

    A machine is known by its host and its native identity there. One that is gone from a host, or was not found there just now,
    and has turned up on another of the same kind under the same identity, has moved and keeps its name.
    """
    names = {(a.host, a.native): a.asset for a in known.values()}
    taken = {*known, *others}
    seen = {(host, m.native): (kind, m) for host, (kind, machines) in found.items() for m in machines}
    for place, (kind, machine) in seen.items():
        if place not in names:
            moved = _moved(known, found, seen, kinds, kind, machine.native)
            names[place] = moved or _free(machine.name, taken)
            taken.add(names[place])
    events, new, changed = [], 0, 0
    for (host, _), (_, machine) in seen.items():
        event = described(names[host, machine.native], host, machine, by)
        before = known.get(event.asset)
        if before is None or _told(before) != _told(event):
            events.append(event)
            new += before is None
            changed += before is not None
    said = {event.asset for event in events}
    gone = [
        replace(a, state="gone", seen_us=now_us(), by=by)
        for a in known.values()
        if a.host in found and a.state != "gone" and (a.host, a.native) not in seen and a.asset not in said
    ]
    return Changes([*events, *gone], new, changed, len(gone))


def _moved(
    known: Mapping[str, AssetChanged],
    found: Collection[str],
    seen: Collection[tuple[str, str]],
    kinds: Mapping[str, str],
    kind: str,
    native: str,
) -> str:
    for asset in known.values():
        left = asset.state == "gone" or (asset.host in found and (asset.host, native) not in seen)
        if asset.native == native and left and kinds.get(asset.host, kind) == kind:
            return asset.asset
    return ""


def _free(name: str, taken: Collection[str]) -> str:
    """A slug of a machine's name, with a number behind it where that is taken."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not made or not made[0].isalpha():
        made = f"machine-{made}".rstrip("-")
    made = made[:_NAME].rstrip("-")
    number = 1
    while (free := made if number == 1 else f"{made}-{number}") in taken:
        number += 1
    return free


def described(asset: str, host: str, seen: MachineSeen, by: str) -> AssetChanged:
    """A machine as its event has it."""
    return AssetChanged(
        asset=asset,
        state="seen",
        host=host,
        native=seen.native,
        name=seen.name,
        folder=seen.folder,
        tags=seen.tags,
        power=seen.power,
        cpus=seen.cpus,
        memory=seen.memory,
        firmware=seen.firmware,
        disks=tuple(_disk(disk) for disk in seen.disks),
        nics=tuple(_nic(nic) for nic in seen.nics),
        seen_us=now_us(),
        by=by,
    )


def _disk(disk: DiskSeen) -> AssetDisk:
    return AssetDisk(**{name: getattr(disk, name) for name in disk.__slots__})


def _nic(nic: NicSeen) -> AssetNic:
    return AssetNic(nic.mac, nic.network, nic.model)
