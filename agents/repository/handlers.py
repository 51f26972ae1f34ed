"""The commands about repositories: made, looked after, collected; points marked and dropped. And what a death leaves.

    repository.add      the place tried          nothing
                        wraps, definition files  a repository of ours: its wrap names a secret of this site, so the same command,
                                                 resumed, goes on with it
                        repository.defined       done
    repository.adopt    a site's wrap            a way in that nothing names; the same command, resumed, makes another
                        repository.defined       a repository without points; the same command goes on (`agents.repository.adopt`)
    point.star …        the mark's file          a mark without its event: the same command says it again, which changes nothing
                        point.marked             done

Backing up and restoring are in `agents.repository.backups`, dropping in `agents.repository.expiring`, keys in
`agents.repository.key_handlers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository import adopt as adoption
from agents.repository import escrow, keys, marks, mounts, policies, reserve, retention, watch
from agents.repository import repository as repositories
from agents.repository.errors import RepositoryError
from agents.repository.keeping import rules_of
from agents.repository.marks import Mark
from agents.repository.node import Held
from agents.repository.places import location_of
from agents.repository.stores import Store
from agents.repository.stores.recorded import RecordedStore
from streams.events import PointMarked, RepositoryDefined
from streams.ids import now_us, slug

_SHOWN_PROBLEMS: Final = 20
_OF_CREATION: Final = ("keys", "keys2", "check", repositories.SECOND)


def add(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.add`."""
    p = command.parameters
    name, node = slug(str(p["name"])), ctx.services.node
    known = node.defined(name)
    if known is not None and not command.resumed:
        raise AgentError(
            "repository-exists",
            f"there is a repository {name} at {known.location}",
            f"`holdfast repository show {name}`; another place needs another name",
        )
    _is_free_name(ctx, name)
    rules = rules_of(str(p.get("keep", "")))
    kind, location, options = location_of(p["store"])
    secrets = {purpose: str(reference) for purpose, reference in dict(p.get("secrets") or {}).items()}
    ctx.progress(f"trying {location}")
    if kind == "local" and not p.get("unmounted"):
        _is_mounted(location)
    store = node.store(name, kind, location, options, _secret(ctx, secrets, "store"))
    with contextlib.ExitStack() as undo:
        undo.callback(store.close)
        if not command.resumed:
            _is_free(store, location)
        protected = watch.protected_from(store, encrypted=bool(p["encrypted"]))
        if p.get("dry_run"):
            return {"protected_from": protected}
        if known is not None:
            undo.callback(_forget, ctx, secrets, "passphrase")
            return {"id": known.identity, "protected_from": list(known.protected_from)}
        site = ctx.services.secrets.put(f"repositories/{name}/site", keys.new_key()) if p["encrypted"] else ""
        definition = _created(ctx, command, store, site, _secret(ctx, secrets, "passphrase"))
        failpoint("repository-add-created")
        reserve.keep(store)
        site = site and _own_wrap(store, site)
        sessions = node.sessions(name, store)
        undo.callback(sessions.journal.close)
        repository = repositories.open(store, node.unlock(), node.cache, node.name)
        undo.callback(repository.close)
        keep = str(p.get("keep", ""))
        decided = {"keep": keep, "dedupe": str(p["dedupe"])}
        policies.decide(store, decided, repository.record_key)
        sessions.say(
            RepositoryDefined(
                repository=name,
                identity=str(definition.identity),
                state="added",
                store=kind,
                location=location,
                node=node.name,
                encrypted=definition.encrypted,
                options={**options, "block_size": str(definition.block_size), **decided},
                secrets={k: v for k, v in (("site", site), ("store", secrets.get("store", ""))) if v},
                retention=retention.encode(rules),
                protected_from=tuple(protected),
                defined_us=now_us(),
                by=command.requester,
            )
        )
        failpoint("repository-add-said")
        undo.pop_all()
    node.hold(name, store, repository, sessions)
    _forget(ctx, secrets, "passphrase")
    return {"id": str(definition.identity), "protected_from": protected}


def _is_free_name(ctx: Context, name: str, identity: str = "") -> None:
    """Raises `AgentError`: the log under a name is of one repository for good."""
    gone = ctx.services.node.removed(name)
    if gone is not None and gone.identity != identity:
        raise AgentError(
            "repository-name-used",
            f"{name} was the name of a repository at {gone.location}, which was removed from this site",
            f"choose another name, or take that one back: `holdfast repository adopt {name} {gone.location}`",
        )


def _is_mounted(location: str) -> None:
    """Raises `AgentError`: what is written below an empty mount point is hidden as soon as its file system is mounted."""
    if point := mounts.unmounted(Path(location)):
        raise AgentError(
            "store-unmounted",
            f"/etc/fstab mounts a file system on {point}, and nothing is mounted there: {location} is not the place it will be",
            f"`mount {point}`, and add it again; if the folder itself is meant: `--not-mounted`",
        )


def _is_free(store: Store, location: str) -> None:
    """Raises `AgentError`: a repository is nobody else's place. What a creation that died has left is in nobody's way."""
    if any(listed.name == repositories.FIRST for listed in store.list(repositories.FIRST)):
        raise AgentError(
            repositories.TAKEN,
            f"there is a repository in {location} already",
            "take it over, with all that is in it: `holdfast repository adopt NAME PLACE`; or choose another place",
        )
    for listed in store.list():
        folder = listed.name.partition("/")[0]
        if folder not in _OF_CREATION:
            raise AgentError(
                "store-not-empty", f"{location} is not empty: {listed.name!r} is in it", "choose or make an empty one"
            )


def adopt(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.adopt`: one that is there already, of another site or of this one under a log that lost it."""
    p = command.parameters
    name, node = slug(str(p["name"])), ctx.services.node
    kind, location, options = location_of(p["store"])
    secrets = {purpose: str(reference) for purpose, reference in dict(p.get("secrets") or {}).items()}
    known = node.defined(name)
    if known is not None and (known.store, known.location) != (kind, location):
        raise AgentError(
            "repository-exists", f"repository {name} is at {known.location}", "adopt this one under another name"
        )
    held = node.get(name) if known is not None and known.node == node.name else None
    if held is None:
        held = _taken_over(
            ctx, command, node.store(name, kind, location, options, _secret(ctx, secrets, "store")), secrets
        )
    ctx.progress("telling the log what is there")
    adopted = adoption.adopt(held.repository, held.sessions, by=command.requester, job=command.id)
    ctx.warn(*adopted.problems[:_SHOWN_PROBLEMS])
    _forget(ctx, secrets, "passphrase", "code")
    standing = held.sessions.ledger().standing()
    return {
        "id": str(held.repository.identity),
        "points": len(standing),
        "assets": len({state.sealed.asset for state in standing.values()}),
        "new": len(adopted.points),
        "marks": adopted.marks,
        "left_out": len(adopted.left_out),
    }


def _taken_over(ctx: Context, command: Command, store: RecordedStore, secrets: Mapping[str, str]) -> Held:
    """Opened by what was given, from now on by this site, and defined in the log."""
    name, node = str(command.parameters["name"]), ctx.services.node
    kind, location, options = location_of(command.parameters["store"])
    code = _secret(ctx, secrets, "code")
    unlock = node.unlock(_secret(ctx, secrets, "passphrase") or None, escrow.secret_of(code) if code else None)
    with contextlib.ExitStack() as undo:
        undo.callback(store.close)
        found = repositories.define(store)
        if (called := node.called(str(found.identity))) not in ("", name):
            raise AgentError(
                "repository-exists", f"this repository is {called} here", f"`holdfast repository show {called}`"
            )
        _is_free_name(ctx, name, str(found.identity))
        protected = watch.protected_from(store, encrypted=found.encrypted)
        sessions = node.sessions(name, store)
        undo.callback(sessions.journal.close)
        repository = repositories.open(store, unlock, node.cache, node.name)
        undo.callback(repository.close)
        definition, site = repository.definition, ""
        if definition.encrypted:
            site = ctx.services.secrets.put(f"repositories/{name}/site", keys.new_key())
            own = ctx.services.secrets.get(site)
            keys.add_wrap(store, definition.identity.bytes, unlock(store), "site", own, reference=site)
        failpoint("repository-adopt-opened")
        decided = policies.newest(store, repository.record_key)
        sessions.say(
            RepositoryDefined(
                repository=name,
                identity=str(definition.identity),
                state="adopted",
                store=kind,
                location=location,
                node=node.name,
                encrypted=definition.encrypted,
                options={**options, "block_size": str(definition.block_size), "dedupe": "repository", **decided},
                secrets={k: v for k, v in (("site", site), ("store", secrets.get("store", ""))) if v},
                retention=retention.encode(rules_of(decided.get("keep", ""))),
                protected_from=tuple(protected),
                defined_us=now_us(),
                by=command.requester,
            )
        )
        failpoint("repository-adopt-said")
        undo.pop_all()
    return node.hold(name, store, repository, sessions)


def _created(ctx: Context, command: Command, store: Store, site: str, passphrase: str) -> repositories.Definition:
    """A new repository, or the one that an earlier run of this command made."""
    p = command.parameters

    def wrap(store: Store, identity: UUID, key: bytes) -> None:
        keys.add_wrap(store, identity.bytes, key, "site", ctx.services.secrets.get(site), reference=site)
        if passphrase:
            keys.add_wrap(store, identity.bytes, key, "passphrase", passphrase.encode())

    try:
        return repositories.create(store, wrap=wrap if p["encrypted"] else None, block_size=int(p["block_size"]))
    except RepositoryError as error:
        if error.code != repositories.TAKEN or not command.resumed:
            raise
        definition = repositories.define(store)
        if definition.encrypted:
            ctx.services.node.unlock()(store)  # raises when it is not one of ours
        return definition


def _own_wrap(store: Store, reference: str) -> str:
    """The reference that this site's wrap names: of a creation that died it is an earlier one."""
    found = [w.reference for w in keys.wraps(store, lambda *_: None) if w.kind == "site"]
    return reference if reference in found or not found else found[0]


def _secret(ctx: Context, secrets: Mapping[str, str], purpose: str) -> str:
    reference = secrets.get(purpose, "")
    return ctx.services.secrets.get(reference).decode() if reference else ""


def _forget(ctx: Context, secrets: Mapping[str, str], *purposes: str) -> None:
    """What was only needed once is kept no longer."""
    for purpose in purposes:
        if secrets.get(purpose):
            ctx.services.secrets.remove(secrets[purpose])


def usage(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.usage`: what takes how much room, by a listing of now."""
    held = held_of(command, ctx)
    sizes: dict[str, int] = {}
    pack_files = 0
    for count, listed in enumerate(held.store.list(), 1):
        folder = listed.name.partition("/")[0]
        sizes[folder] = sizes.get(folder, 0) + listed.size
        pack_files += folder == "packs"
        if not count % 1000:
            ctx.progress(f"{count:,} files")
            ctx.check()
    standing = held.sessions.ledger().standing()
    records = sum(sizes.get(folder, 0) for folder in ("points", "points2", "marks"))
    total = sum(sizes.values())
    return {
        "points": len(standing),
        "logical": sum(size_of(state.sealed) for state in standing.values()),
        "packs": sizes.get("packs", 0),
        "pack_files": pack_files,
        "index": sizes.get("index", 0),
        "records": records,
        "others": total - records - sizes.get("packs", 0) - sizes.get("index", 0),
        "total": total,
        "free": held.store.free_bytes(),
    }


def size_of(sealed: Any) -> int:
    """What a point restores to, by its event."""
    return sum(d.size for d in sealed.disks) or int(sealed.figures.get("size_bytes", 0))


def held_of(command: Command, ctx: Context) -> Held:
    """The repository a command is about, which is where it was. Raises `AgentError`, `StoreError`."""
    held: Held = ctx.services.node.get(str(command.parameters["repository"]))
    held.repository.in_place()
    return held


# --- marks ------------------------------------------------------------------------------------------------------------


def star(command: Command, ctx: Context) -> Mapping[str, Any]:
    return _mark(command, ctx, "star")


def unstar(command: Command, ctx: Context) -> Mapping[str, Any]:
    return _mark(command, ctx, "unstar")


def hold(command: Command, ctx: Context) -> Mapping[str, Any]:
    return _mark(command, ctx, "hold")


def release(command: Command, ctx: Context) -> Mapping[str, Any]:
    p = command.parameters
    point = held_of(command, ctx).sessions.ledger().points.get(str(p["point"]))
    if point is not None and str(p["name"]) not in point.holds and not command.resumed:
        there = ", ".join(point.holds) or "none"
        raise AgentError("hold-unknown", f"no hold {p['name']!r} stands on the point", f"there is: {there}")
    return _mark(command, ctx, "release")


def ask_expiry(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.drop`: ahead of policy, so somebody else has to agree."""
    return _mark(command, ctx, "expiry-asked")


def _mark(command: Command, ctx: Context, mark: str) -> Mapping[str, Any]:
    p = command.parameters
    return say_mark(
        held_of(command, ctx), str(p["point"]), mark, command.requester, str(p.get("name", "")), str(p.get("note", "")),
        p.get("until_us"),
    )  # fmt: skip


def say_mark(
    held: Held, point: str, mark: str, by: str, name: str = "", note: str = "", until_us: int | None = None
) -> Mapping[str, Any]:
    """Into the repository, then into the log. Raises `AgentError` (`point-unknown`, `point-dropped`)."""
    ledger = held.sessions.ledger()
    held.sessions.prove(ledger)  # before the mark's file, which another log's adopter would find
    state = ledger.points.get(point)
    if state is None or state.dropped is not None:
        code = "point-unknown" if state is None else "point-dropped"
        raise AgentError(code, f"repository {held.name} has no point {point}", "`holdfast point list` shows them")
    at_us = now_us()
    number = marks.add(held.store, Mark(point, mark, by, at_us, name, note, until_us), held.repository.record_key)
    held.sessions.say(
        PointMarked(
            repository=held.name,
            point=point,
            mark=mark,
            number=number,
            name=name,
            note=note,
            until_us=until_us,
            marked_us=at_us,
            by=by,
        ),
        witness=True,
    )
    return {"point": point, "mark": mark, "number": number}
