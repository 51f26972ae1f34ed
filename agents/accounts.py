"""The accounts that a source is reached with, changed while it is protected: `source.set-accounts`.

    the new password, sealed     in the secret store under a new version, which nothing refers to yet
    tried at the source          nothing; a password that does not fit is forgotten again, and nothing else changes
    source.defined               the source's accounts from now on; a resumed command finds them so
    earlier versions removed     likewise
    children started again       the agent's next start starts them anyhow

The left column is the order of work, the right one what a death after it leaves. Capture's gap is that of a restart: it goes
on from the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agents import registry
from agents.commands import Command, Context, JobFailed
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.protect import change
from agents.protocol import source_settings
from streams.events import Problem, SourceDefined
from streams.ids import now_us

PURPOSES: Final = ("capture", "rollback")
# What a wrong password stopped is mended by a right one.
_MENDED: Final = frozenset({"source-denied", "capture-denied"})


def set_accounts(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `source.set-accounts`: `{accounts: {purpose: user}, secrets: {purpose: ref}}`, what is to be changed."""
    services, source = ctx.services, command.asset
    entry = services.sources.get(source)
    defined = _defined(command, entry.defined)
    if defined is not entry.defined:
        ctx.progress(f"logging in at {defined.host}:{defined.port}")
        try:
            ctx.warn(*_tried(defined, ctx))
        except AgentError:
            for reference in _given(command).values():
                services.secrets.remove(reference)
            raise
        failpoint("accounts.tried")
        identity = services.publisher.publish(defined, correlation=command.id)
        services.publisher.flush(60.0)
        services.sources.await_event(identity)
        failpoint("accounts.defined")
    for reference in defined.secrets.values():
        name, _, version = reference.rpartition("@")
        for earlier in services.secrets.versions(name):
            if earlier < int(version):
                services.secrets.remove(f"{name}@{earlier}")
    stopped = entry.state == "stopped" and bool(entry.problems) and {p.code for p in entry.problems} <= _MENDED
    if stopped and entry.lineage:
        change(ctx, source, "capturing", lineage=entry.lineage)
    else:
        services.processes.restart(source)
    return {"accounts": dict(defined.accounts), "resumed": stopped}


def _given(command: Command) -> dict[str, str]:
    return {str(purpose): str(reference) for purpose, reference in (command.parameters.get("secrets") or {}).items()}


def _defined(command: Command, before: SourceDefined) -> SourceDefined:
    """The source as it is to be; `before` itself when it is that already. Raises `AgentError` (`command-invalid`)."""
    accounts = {str(p): str(user) for p, user in (command.parameters.get("accounts") or {}).items()}
    secrets = _given(command)
    for purpose in {*accounts, *secrets}:
        if purpose not in PURPOSES or not (accounts.get(purpose) or before.accounts.get(purpose)):
            raise AgentError(
                "command-invalid", f"{before.source} has no {purpose} account", "say which user it is as well"
            )
    accounts, secrets = {**before.accounts, **accounts}, {**before.secrets, **secrets}
    if (accounts, secrets) == (dict(before.accounts), dict(before.secrets)):
        return before
    return SourceDefined(
        source=before.source,
        kind=before.kind,
        host=before.host,
        port=before.port,
        tls=before.tls,
        tls_ca=before.tls_ca,
        accounts=accounts,
        secrets=secrets,
        options=before.options,
        defined_us=now_us(),
        by=command.requester,
    )


def _tried(defined: SourceDefined, ctx: Context) -> tuple[Problem, ...]:
    """What is to be said of the accounts though they do. Raises `JobFailed` when one cannot log in, `SourceUnavailable`."""
    found = registry.source(source_settings(defined, ctx.services.secrets)).preflight()
    if refused := tuple(p for p in found.problems if p.code not in _OF_THE_SERVER):
        raise JobFailed(refused)
    return (*found.problems, *found.warnings)


# Settings of the server that are not as they must be were so before, and are no account's doing.
_OF_THE_SERVER: Final = frozenset({
    "source-log-off", "source-binlog-format", "source-binlog-row-image", "source-binlog-row-metadata",
    "source-binlog-row-value-options", "source-gtid-mode", "source-gtid-strict-mode", "source-binlog-filter",
    "source-replica-unlogged",
})  # fmt: skip
