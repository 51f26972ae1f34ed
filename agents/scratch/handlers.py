"""The commands about scratch copies, and making one.

    scratch.changed(making)          a word without a copy; the same command, resumed, begins anew
    .making-<name>, baseline, log    a folder that nobody takes for a copy; likewise, after removing it
    server stopped in order, copy.json, renamed
                                     a copy that nobody was told of: the keeper starts it, the command says `ready`
    scratch.changed(ready)           done

The left column is the order of work, the right one what a death after it leaves, and who finds it.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import registry
from agents.baseline import manifest as baselines
from agents.baseline.manifest import Manifest
from agents.commands import Command, Context, Interrupted, Services
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.scratch import folder as folders
from agents.scratch.engine import Replayer, Server
from agents.scratch.folder import Copy
from agents.scratch.keeper import free_port
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.errors import DeliveryFailed, StreamError
from streams.events import Problem, ScratchChanged
from streams.ids import now_us, slug
from streams.topics import topic_name

# Room that is asked for beside the rows: logs, undo, indexes.
_SPARE_BYTES = 512 << 20
# With less than this a copy that is being made is given up. Servers wait on a full disk for somebody to make room; nobody
# will, and the copy is what takes it.
LEAST_BYTES = 8 << 20


def create(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `scratch.create`: `{name, source, lineage, ordinal, expires_s, tables}`."""
    p = command.parameters
    name, source = slug(str(p["name"])), str(p["source"])
    keeper, data_dir = ctx.services.copies, ctx.services.settings.data_dir
    known = keeper.find(name)
    if known is not None and known.job != command.id:
        raise AgentError("scratch-exists", f"there is a scratch copy {name}", f"`holdfast scratch drop {name}` first")
    if known is None:
        asked = [_name(t) for t in p.get("tables") or ()]
        known = make(ctx, name, source, str(p["lineage"]), int(p["ordinal"]), p.get("expires_s"), command.id, asked)
    keeper.adopt(known)
    failpoint("scratch.adopted")
    ready = keeper.event(known, "ready", size=folders.size(folders.parent(data_dir) / name))
    ctx.durable(ready)
    return {
        "name": name,
        "ordinal": known.ordinal,
        "position": known.position,
        "host": ready.host,
        "port": ready.port,
        "socket": ready.socket,
        "account": ready.account,
        "password_file": ready.password_file,
    }


def drop(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `scratch.drop`: `{name}`."""
    name = str(command.parameters["name"])
    if not ctx.services.copies.drop(name):
        folder = folders.parent(ctx.services.settings.data_dir) / slug(name)
        if not folder.exists() and not command.resumed:
            raise AgentError("scratch-unknown", f"there is no scratch copy {name}", "`holdfast scratch list`")
        folders.remove(folder)
    return {}


def recover(services: Services) -> None:
    """At the agent's start: copies that were said to be ready and are not there have ended."""
    said: dict[str, ScratchChanged] = {}
    for message in read_topic(services.settings.kafka, topic_name(services.settings.kafka.prefix, "inventory")):
        if isinstance(message.event, ScratchChanged):
            said[message.event.scratch] = message.event
    for name, last in said.items():
        if last.state == "ready" and last.by == services.agent and services.copies.find(name) is None:
            problem = Problem("scratch-gone", "it was not there any more when the agent started")
            services.publisher.publish(_again(last, "ended", problem))


def _again(last: ScratchChanged, state: str, problem: Problem) -> ScratchChanged:
    return ScratchChanged(
        lineage=last.lineage,
        scratch=last.scratch,
        source=last.source,
        state=state,
        ordinal=last.ordinal,
        position=last.position,
        tables=last.tables,
        expires_us=last.expires_us,
        job=last.job,
        at_us=now_us(),
        by=last.by,
        problems=(problem,),
    )


def _name(text: str) -> tuple[str, str]:
    schema, _, table = text.partition(".")
    if not schema or not table:
        raise AgentError("command-invalid", f"{text!r} is no schema.table")
    return schema, table


def make(
    ctx: Context,
    name: str,
    source: str,
    lineage: str,
    ordinal: int,
    expires_s: Any,
    job: str,
    asked: Sequence[tuple[str, str]] = (),
) -> Copy:
    """Make a copy and say how that goes; it does not run when this returns. `asked`: tables that it is to have, and what
    they need; empty: all. Raises `AgentError`."""
    services = ctx.services
    data_dir = services.settings.data_dir
    kind = services.sources.get(source).defined.kind
    baseline, manifest = baseline_of(data_dir, source, lineage)
    replayer = registry.replayer(kind)
    program = _program(services, source, replayer, manifest)
    expires_us = now_us() + int(float(expires_s) * 1e6) if expires_s else None
    port = free_port()
    tables = tuple(sorted(f"{schema}.{table}" for schema, table in asked))
    said = Copy(
        name, source, kind, lineage, ordinal, "", tables, port, expires_us, job, program, dict(manifest.variables)
    )
    ctx.durable(services.copies.event(said, "making"))
    server = None
    try:
        folder = folders.begin(data_dir, name)
        wanted = _wanted(ctx, replayer, baseline, manifest, ordinal, asked) if asked else None
        _room(data_dir, manifest, wanted)
        server = replayer.server(program, folder, manifest.variables, port)
        server.create()
        server.start_filling()
        failpoint("scratch.created")
        position = _fill(ctx, replayer, server, folder, baseline, manifest, ordinal, wanted)
        if wanted is not None:
            kept = replayer.keep_only(server, wanted)
            if missing := [f"{schema}.{table}" for schema, table in asked if (schema, table) not in kept]:
                raise AgentError(
                    "table-unknown",
                    f"after step {ordinal} there is no table {', '.join(missing)}",
                    "choose another step",
                )
            tables = tuple(sorted(f"{schema}.{table}" for schema, table in kept))
        server.stop()
        failpoint("scratch.settled")
        copy = replace(said, position=position, tables=tables)
        folders.complete(data_dir, copy)
        failpoint("scratch.whole")
        return copy
    except BaseException as error:
        told = _told(error, replayer, data_dir, name)  # while what took the room is still there
        if server is not None:
            server.kill()
        if not isinstance(error, Interrupted):
            folders.abandon(data_dir, name)
        if isinstance(error, (Interrupted, DeliveryFailed)):
            raise
        problem = (
            told.problem() if told is not None else Problem("internal", "the agent met a defect; its log says more")
        )
        ctx.durable(services.copies.event(said, "failed", problems=(problem,)))
        if told is None:
            raise
        raise told from error


def _wanted(
    ctx: Context, replayer: Replayer, baseline: Path, manifest: Manifest, ordinal: int, asked: Sequence[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    ctx.progress("looking for what the tables depend on")
    with CaptureLog(ctx.services.settings.kafka, manifest.source) as log:
        return replayer.needed(log, baseline, manifest, ordinal, asked)


def _fill(
    ctx: Context,
    replayer: Replayer,
    server: Server,
    folder: Path,
    baseline: Path,
    manifest: Manifest,
    ordinal: int,
    wanted: frozenset[tuple[str, str]] | None,
) -> str:
    """Baseline and log into a server that runs, with rows of `wanted` (None: all); the position reached."""

    def check() -> None:
        ctx.check()
        if shutil.disk_usage(folder).free < LEAST_BYTES:
            raise _full(folder)

    loading = "loading the baseline"
    total = sum(t.rows for t in manifest.tables if wanted is None or (t.schema, t.table) in wanted)
    ctx.progress(loading, 0, total, "rows")
    replayer.load(server, baseline, wanted, lambda rows: ctx.progress(loading, rows, total, "rows"), check)
    failpoint("scratch.loaded")
    pace = Pace()
    # No key: account statements are not applied to copies, so nothing of them is unsealed.
    with CaptureLog(ctx.services.settings.kafka, manifest.source) as log:
        position = replayer.replay(
            server,
            log,
            manifest,
            ordinal,
            wanted,
            lambda done, total: ctx.progress(pace.words(done, total), done, total, "steps"),
            check,
        )
    failpoint("scratch.replayed")
    return position


class Pace:
    """How fast something goes, over the last seconds, and how long what is left will take."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def words(self, done: int, total: int) -> str:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > 10:
            del self._seen[0]
        since, before = self._seen[0]
        elapsed = now - since
        if elapsed < 0.5 or done <= before:
            return "replaying the log"
        rate = (done - before) / elapsed
        return f"replaying the log, {rate:,.0f} steps a second, about {(total - done) / rate:,.0f} s left"


def baseline_of(data_dir: Path, source: str, lineage: str) -> tuple[Path, Manifest]:
    """The baseline that a lineage starts from. Raises `AgentError` (`baseline-missing`)."""
    there = baselines.folder_of(data_dir, source)
    for entry in sorted(there.iterdir(), reverse=True) if there.is_dir() else ():
        if not entry.name.startswith("."):
            manifest = baselines.read_manifest(entry)
            if manifest.lineage == lineage:
                return entry, manifest
    raise AgentError(
        "baseline-missing", f"this machine has no baseline of {source} for lineage {lineage}", "it was made elsewhere"
    )


def _program(services: Services, source: str, replayer: Replayer, manifest: Manifest) -> str:
    """A server program like the source's. Raises `AgentError` (`server-missing`)."""
    named = services.sources.get(source).defined.options.get("scratch_server", "")
    program = replayer.program(manifest, named)
    if program is None:
        raise AgentError(
            "server-missing",
            f"a scratch copy of {source} needs a server program of its series here ({manifest.server_version})",
            "install it (it need not run), or name it: HOLDFAST_MARIADBD=/usr/sbin/mariadbd, HOLDFAST_MYSQLD=/usr/sbin/mysqld",
        )
    return program


def _room(data_dir: Path, manifest: Manifest, tables: frozenset[tuple[str, str]] | None) -> None:
    taken = (t.raw_bytes for t in manifest.tables if tables is None or (t.schema, t.table) in tables)
    wanted = sum(taken) + _SPARE_BYTES
    there = folders.parent(data_dir)
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise AgentError(
            "disk-full",
            f"the copy needs about {wanted >> 20} MiB, {free >> 20} MiB are free",
            f"make room in {there}, or drop scratch copies",
        )


def _full(folder: Path) -> AgentError:
    free = shutil.disk_usage(folder).free >> 20
    return AgentError(
        "disk-full",
        f"there is no room for the copy: {free} MiB were left; what was made is removed",
        f"make room in {folder.parent}, or drop scratch copies",
    )


# What a server's failure is called that may have been the disk's.
_SERVERS = frozenset({"private-failed", "replay-failed", "scratch-failed"})


def _told(error: BaseException, replayer: Replayer, data_dir: Path, name: str) -> AgentError | None:
    """What a user is told; None for what is no answer (an interruption, a defect)."""
    if isinstance(error, (Interrupted, DeliveryFailed)):
        return None
    folder = folders.making(data_dir, name)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(folder)
    if isinstance(error, AgentError) and error.code in _SERVERS and shutil.disk_usage(folder).free < LEAST_BYTES:
        return _full(folder)
    if isinstance(error, StreamError):
        return AgentError(error.code, error.message, error.hint)
    return error if isinstance(error, AgentError) else replayer.told(error)
