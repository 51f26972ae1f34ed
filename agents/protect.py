"""The commands about sources: taking one under protection, pausing, resuming, removing it.

`source.add`, and what a death between two lines leaves for the next run, which is given the same command:

    preflight                                      nothing
    topics capture.<source>, schema.<source>       empty topics
    source.defined, source.changed(baseline)       a source that is being added
    the baseline's files, renamed into place       found again by the command's id: not made twice
    schema.recorded, ordinal 0                     found in the topic by the lineage: not said twice
    epoch.started, lineage.started                 found as the capture log's tail
    source.changed(capturing)                      done; the agent's loop starts capture and indexer

A command that fails leaves the source `stopped`, with its problems; adding it again begins with a new baseline.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import keystore, registry
from agents.baseline import manifest as baselines
from agents.baseline.manifest import Manifest
from agents.capture import spool
from agents.capture.takeover import start_lineage
from agents.commands import Command, Context, Interrupted, JobFailed
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.protocol import Preflight, source_settings
from agents.rollback import rights
from agents.schema.record import fold, split
from agents.sources import SourceEntry
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.errors import StreamError
from streams.events import (
    Problem,
    SchemaRecorded,
    SourceChanged,
    SourceDefined,
)
from streams.ids import now_us, slug, uuid7
from streams.topics import topic_name

# kind of source → module that makes its baselines.
BASELINES: Mapping[str, str] = {"mariadb": "agents.baseline.making", "mysql": "agents.baseline.making"}


def add(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `source.add`."""
    defined = _defined(command, ctx)
    found = _preflight(defined, ctx)
    if command.parameters.get("dry_run"):
        if found.problems:
            raise JobFailed(found.problems)
        ctx.warn(*found.warnings)
        return {"capability": list(found.capability), "server_version": found.server_version}
    entry = ctx.services.sources.find(defined.source)
    done = baselines.find(ctx.services.settings.data_dir, defined.source, command.id)
    if entry is not None and entry.state in ("capturing", "paused"):
        if done is None or entry.baseline != done[1].baseline:
            raise AgentError(
                "source-exists",
                f"{defined.source} is protected already ({entry.state})",
                f"`holdfast source remove {defined.source}` first",
            )
        return _result(done[1], entry.capability)
    try:
        if found.problems:
            raise JobFailed(found.problems)
        ctx.warn(*found.warnings)
        return _add(command, ctx, defined, found)
    except (Interrupted, StreamError):
        raise
    except AgentError as error:
        _say_stopped(ctx, defined.source, error.problems if isinstance(error, JobFailed) else (error.problem(),))
        raise


def _add(command: Command, ctx: Context, defined: SourceDefined, found: Preflight) -> Mapping[str, Any]:
    services = ctx.services
    source, kafka, data_dir = defined.source, services.settings.kafka, services.settings.data_dir
    ensure_topics(kafka, [("capture", source), ("schema", source), ("commits", None), ("rollbacks", None)])
    failpoint("add.topics")
    if not _is_defined(services.sources.find(source), defined):
        change(ctx, source, "baseline", defined=defined)
    failpoint("add.defined")
    made = _baseline(command, ctx, defined)
    failpoint("add.baseline")
    _record_schema(ctx, source, made[0], made[1])
    failpoint("add.schema")
    epoch = _start_lineage(ctx, source, made[1])
    failpoint("add.lineage")
    ctx.warn(*made[1].warnings)
    change(
        ctx,
        source,
        "capturing",
        lineage=made[1].lineage,
        epoch=epoch,
        server_version=made[1].server_version,
        capability=found.capability,
        position=made[1].position,
        baseline=made[1].baseline,
    )
    failpoint("add.capturing")
    keep = services.sources.get(source).baselines
    baselines.clean(data_dir, source, keep)
    return _result(made[1], found.capability)


def _result(made: Manifest, capability: tuple[str, ...]) -> Mapping[str, Any]:
    return {"lineage": made.lineage, "baseline": made.baseline, "capability": list(capability)}


def _defined(command: Command, ctx: Context) -> SourceDefined:
    """What the parameters say. Raises `AgentError` (`command-invalid`)."""
    p = command.parameters
    try:
        return SourceDefined(
            source=slug(command.asset),
            kind=str(p.get("kind", "mariadb")),
            host=str(p["host"]),
            port=int(p.get("port", 3306)),
            tls=str(p.get("tls", "off")),
            tls_ca=str(p.get("tls_ca") or ""),
            accounts=_texts(p["accounts"]),
            secrets=_texts(p.get("secrets") or {}),
            options=_texts(p.get("options") or {}),
            defined_us=now_us(),
            by=command.requester,
        )
    except StreamError as error:
        raise AgentError(error.code, error.message, error.hint) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgentError("command-invalid", f"the parameters of source.add do not make a source: {error!r}") from error


def _texts(mapping: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in mapping.items() if value is not None}


def _preflight(defined: SourceDefined, ctx: Context) -> Preflight:
    ctx.progress(f"checking {defined.host}:{defined.port}")
    if defined.kind not in BASELINES:
        known = ", ".join(sorted(BASELINES))
        raise AgentError("kind-unknown", f"there is no platform {defined.kind!r}", f"known are: {known}")
    settings = source_settings(defined, ctx.services.secrets)
    found = registry.source(settings).preflight()
    if found.problems:
        return found
    rollback = rights.preflight(settings)
    return replace(
        found,
        problems=rollback.problems,
        warnings=(*found.warnings, *rollback.warnings),
        capability=(*found.capability, *rollback.capability),
    )


def _is_defined(entry: SourceEntry | None, defined: SourceDefined) -> bool:
    """Whether the source stands defined like this, and being added: an earlier run of this command came so far."""
    if entry is None or entry.state != "baseline":
        return False
    names = ("kind", "host", "port", "tls", "tls_ca", "accounts", "secrets", "options", "by")
    return all(getattr(entry.defined, name) == getattr(defined, name) for name in names)


def change(ctx: Context, source: str, state: str, *, defined: SourceDefined | None = None, **fields: Any) -> None:
    """Say that a source is in a new state; returns when that is durable and the agent itself has read it back."""
    services = ctx.services
    if defined is not None:
        ctx.publish(defined)
    event = SourceChanged(source=source, state=state, at_us=now_us(), by=services.agent, **fields)
    identity = services.publisher.publish(event, correlation=ctx.command.id)
    services.publisher.flush(60.0)
    services.sources.await_event(identity)


def _say_stopped(ctx: Context, source: str, problems: tuple[Problem, ...]) -> None:
    entry = ctx.services.sources.find(source)
    if entry is not None and entry.state in ("defined", "baseline", "stopped"):
        change(ctx, source, "stopped", problems=problems)


def _baseline(command: Command, ctx: Context, defined: SourceDefined) -> tuple[Path, Manifest]:
    """The baseline that an earlier run of this command made, or a new one."""
    services = ctx.services
    data_dir, source = services.settings.data_dir, defined.source
    found = baselines.find(data_dir, source, command.id)
    if found is not None:
        return found
    entry = services.sources.find(source)
    baselines.clean(data_dir, source, entry.baselines if entry is not None else frozenset())
    maker = importlib.import_module(BASELINES[defined.kind])
    made: tuple[Path, Manifest] = maker.make(
        source_settings(defined, services.secrets),
        data_dir,
        baseline=uuid7(),
        lineage=uuid7(),
        job=command.id,
        progress=ctx.progress,
        check=ctx.check,
    )
    return made


def _record_schema(ctx: Context, source: str, folder: Path, made: Manifest) -> None:
    """`schema.recorded`, ordinal 0, unless the topic has all of it."""
    kafka = ctx.services.settings.kafka
    messages = read_topic(kafka, topic_name(kafka.prefix, "schema", source))
    recorded = [m.event for m in messages if isinstance(m.event, SchemaRecorded) and m.event.lineage == made.lineage]
    if fold(recorded).ordinal >= 0:
        return
    event = SchemaRecorded(
        lineage=made.lineage,
        source=source,
        ordinal=0,
        position=made.position,
        full=True,
        origin="baseline",
        statement="",
        tables=tuple(baselines.definitions(folder)),
        version=bytes.fromhex(made.schema_version),
        at_us=made.finished_us,
    )
    ctx.durable(*split(event), of=source)


def _start_lineage(ctx: Context, source: str, made: Manifest) -> int:
    """`lineage.started`, under an epoch of ours, unless it is the last lineage already; the epoch."""
    services = ctx.services
    with CaptureLog(services.settings.kafka, source) as log:
        tail = log.tail()
        if tail is not None and tail.lineage == made.lineage:
            return tail.epoch
        start_lineage(
            services.publisher,
            log,
            source=source,
            position=made.position,
            baseline=made.baseline,
            reason="new-baseline" if tail is not None and tail.lineage else "protected",
            server_id=made.server_id,
            server_version=made.server_version,
            agent=services.agent,
            lineage=made.lineage,
        )
        tail = log.tail()
        return tail.epoch if tail is not None else 0


def pause(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `source.pause`: capture ends; the source's own log keeps what is written meanwhile, as long as it does."""
    services, source = ctx.services, command.asset
    entry = services.sources.get(source)
    if entry.state == "paused":
        return _where(ctx, source)
    if entry.state != "capturing":
        raise AgentError("source-not-capturing", f"{source} is {entry.state}", "see `holdfast source show`")
    services.processes.want(source, frozenset({"index"}))
    try:
        if not services.processes.await_settled(source):
            raise AgentError("capture-not-ended", f"capture of {source} did not end", "try again")
        where = _where(ctx, source)
        failpoint("pause.ended")
        change(ctx, source, "paused", lineage=entry.lineage, **where)
    except BaseException:
        services.processes.want(source, frozenset({"capture", "index"}))
        raise
    return where


def resume(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `source.resume`: capture goes on where it ended, also where it had stopped by itself."""
    services, source = ctx.services, command.asset
    entry = services.sources.get(source)
    if entry.state == "capturing" and not services.processes.running(source, "capture"):
        services.processes.want(source, frozenset({"capture", "index"}), anew=True)
    elif entry.state in ("paused", "stopped"):
        if not entry.lineage:
            raise AgentError(
                "source-never-captured", f"{source} has no baseline", f"`holdfast source add {source}` makes one"
            )
        change(ctx, source, "capturing", lineage=entry.lineage)
    elif entry.state != "capturing":
        raise AgentError("source-not-paused", f"{source} is {entry.state}", "see `holdfast source show`")
    return _where(ctx, source)


def remove(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `source.remove`: capture ends for good. What was captured stays in the log, what is only spooled goes; with
    `purge` the baselines, the key index on disk and the accounts' passwords go too."""
    services, source = ctx.services, command.asset
    entry = services.sources.find(source)
    if entry is None or (entry.state == "removed" and not command.resumed):
        services.sources.get(source)
    if entry is not None and entry.state != "removed":
        services.processes.want(source, frozenset())
        if not services.processes.await_settled(source):
            raise AgentError("capture-not-ended", f"capture of {source} did not end", "try again")
        change(ctx, source, "removed")
    failpoint("remove.said")
    shutil.rmtree(spool.folder_of(services.settings.data_dir, source), ignore_errors=True)  # what the log did not get
    if command.parameters.get("purge") and entry is not None:
        shutil.rmtree(baselines.folder_of(services.settings.data_dir, source), ignore_errors=True)
        shutil.rmtree(keystore.folder_of(services.settings.data_dir, source), ignore_errors=True)
        for reference in entry.defined.secrets.values():
            services.secrets.remove(reference)
    return {}


def _where(ctx: Context, source: str) -> dict[str, Any]:
    """The native position and ordinal of the last step that is in the log."""
    with CaptureLog(ctx.services.settings.kafka, source) as log:
        tail = log.tail()
    if tail is None or not tail.lineage:
        return {"position": "", "ordinal": 0}
    if tail.record is not None:
        return {"position": tail.record.after, "ordinal": tail.ordinal}
    return {"position": tail.started.position if tail.started is not None else "", "ordinal": tail.ordinal}
