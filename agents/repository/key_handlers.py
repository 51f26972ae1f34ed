"""The commands about a repository's keys: other ways in are added, proven, removed; nothing is encrypted anew.

A recovery code is made here and leaves this machine once, through the API: in between it lies in the secret store under
`repositories/<name>/recovery-<key>`, and no event, log or argument has it. A passphrase or a code that is given lies there until
the command is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.repository import escrow, keys
from agents.repository.handlers import held_of
from agents.repository.node import Held
from streams.events import RepositoryChecked


def _encrypted(command: Command, ctx: Context) -> Held:
    held = held_of(command, ctx)
    if not held.repository.definition.encrypted:
        raise AgentError("repository-clear", f"{held.name} is not encrypted: it has no keys", "nothing is to be done")
    return held


def _given(command: Command, ctx: Context, purpose: str) -> str:
    return ctx.services.secrets.get(str(command.parameters["secrets"][purpose])).decode()


def _forget(command: Command, ctx: Context) -> None:
    for reference in dict(command.parameters.get("secrets") or {}).values():
        ctx.services.secrets.remove(str(reference))


def add(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `key.add`. A death after the wrap leaves a key that nobody was told of; `key list` shows it."""
    held = _encrypted(command, ctx)
    store, identity = held.store, held.repository.identity.bytes
    key = ctx.services.node.unlock()(store)
    if command.parameters["kind"] == "passphrase":
        secret = _given(command, ctx, "passphrase")
        wrap = keys.add_wrap(store, identity, key, "passphrase", secret.encode())
        _forget(command, ctx)
        return {"key": wrap.id, "kind": wrap.kind}
    code = escrow.new_code()
    wrap = keys.add_wrap(store, identity, key, "recovery", escrow.secret_of(code))
    ctx.services.secrets.put(f"repositories/{held.name}/recovery-{wrap.id}", code.encode())
    return {"key": wrap.id, "kind": wrap.kind}


def list_all(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `key.list`."""
    held = _encrypted(command, ctx)
    damaged: list[str] = []
    found = sorted(keys.wraps(held.store, lambda name, _: damaged.append(name)), key=lambda w: w.created)
    return {
        "keys": [{"key": w.id, "kind": w.kind, "made": w.created, "label": w.label} for w in found],
        "damaged": damaged,
    }


def drill(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `key.drill`: opened with the code alone, as somebody would who has nothing else."""
    held = _encrypted(command, ctx)
    done = escrow.drill(held.store, _given(command, ctx, "code"), ctx.services.node.cache / "drill", check=ctx.check)
    held.sessions.say(
        RepositoryChecked(
            repository=held.name,
            what="key-drill",
            figures=done,
            checked_us=held.sessions.clock(),
            by=command.requester,
        )
    )
    _forget(command, ctx)
    return dict(done)


def remove(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `key.remove`. The site's own is what opens the repository here, so it has to open it after that."""
    held = _encrypted(command, ctx)
    wanted = str(command.parameters["key"])
    found = {w.id: w for w in keys.wraps(held.store, lambda *_: None)}
    if wanted not in found:
        if command.resumed:
            return {"key": wanted}
        raise AgentError(
            "key-unknown", f"{held.name} has no key {wanted}", f"`holdfast repository key list {held.name}`"
        )
    opens = {w.id: ctx.services.secrets.get(w.reference) for w in found.values() if w.kind == "site" and w.id != wanted}
    keys.remove_wrap(held.store, wanted, ctx.services.node.unlock()(held.store), opens)
    return {"key": wanted}
