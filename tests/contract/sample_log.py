"""Logs to project: random but plausible histories of a site, as the records that consumers see.

A history is a list of events in the order they were published. `records` puts them on partitions by key; `interleave`
delivers them as Kafka may: each partition in order, partitions in any; `with_duplicates` has some delivered twice.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from streams.consume import Message
from streams.events import (
    AssetChanged,
    AssetDisk,
    AssetNic,
    CallAudited,
    CollectionChanged,
    CommandRequested,
    DiskSealed,
    Event,
    GranuleClosed,
    GranuleKeys,
    HealthReported,
    HostDefined,
    JobChanged,
    KeyedTable,
    Landmark,
    NodeChanged,
    OrdinalRange,
    PointDropped,
    PointMarked,
    PointSealed,
    PolicyDefined,
    PolicyRemoved,
    PolicyRun,
    Problem,
    ProtectionChanged,
    RepositoryChecked,
    RepositoryDefined,
    RollbackChanged,
    RollbackPlanned,
    ScratchChanged,
    SessionClosed,
    SessionFenced,
    SessionOpened,
    SourceChanged,
    SourceDefined,
    Stamp,
    TableCount,
    TableEffect,
    TableRollbackChanged,
    TableRollbackPlanned,
    Ticked,
    TokenIssued,
    TokenRevoked,
)
from streams.key_runs import run_of
from streams.topics import BY_NAME, topic_name

PREFIX = "holdfast."
START_US = 1_780_000_000_000_000
SECOND = 1_000_000


class History:
    """Writes a history, event by event; the clock is its own."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.events: list[Event] = []
        self._clock = START_US
        self._ids = 0
        self._salt = rng.getrandbits(32)
        self._heads: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._jobs: list[tuple[str, str]] = []
        self._plans: list[tuple[str, str, bytes]] = []
        self._tokens: list[str] = []
        self._table_plans: list[tuple[str, str, bytes]] = []
        self._sessions: list[tuple[str, str]] = []
        self._points: list[tuple[str, str]] = []
        self._versions: dict[str, int] = {}
        self._runs: list[tuple[str, str]] = []
        self._named: dict[str, str] = {}

    def now(self) -> int:
        self._clock += self.rng.randrange(1, 20 * SECOND)
        return self._clock

    def id(self, kind: str) -> str:
        self._ids += 1
        return f"0199{self._ids:04x}-{self._salt >> 16:04x}-7000-{self._salt & 0xFFFF:04x}-{zlib.crc32(kind.encode()):012x}"

    def source(self) -> str:
        return self.rng.choice(["shop", "billing", "crm"])

    def lineage(self, source: str) -> str:
        return f"{zlib.crc32(source.encode()):08x}-0000-7000-8000-000000000001"

    def write(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def anything(self) -> None:
        kinds: list[Callable[[], object]] = [
            *[self.granule] * 3,
            *[self.job] * 2,
            self.source_defined,
            self.source_changed,
            *[self.asset_changed] * 2,
            self.host_defined,
            self.command,
            self.plan,
            self.plan_changed,
            self.scratch_changed,
            *[self.repository] * 3,
            *[self.policy] * 3,
            self.node,
            self.protection,
            self.table_plan,
            self.table_plan_changed,
            self.call,
            self.token,
            self.revocation,
            self.health,
        ]
        self.rng.choice(kinds)()

    def source_defined(self) -> None:
        source = self.source()
        self.write(
            SourceDefined(
                source=source,
                kind="mariadb",
                host="127.0.0.1",
                port=self.rng.randrange(1024, 65536),
                accounts={"capture": "hf", "rollback": "hr"},
                secrets={"capture": f"sources/{source}/capture@1"},
                options={"size": str(self.rng.randrange(9))},
                defined_us=self.now(),
                by="ada",
            )
        )

    def source_changed(self) -> None:
        source = self.source()
        epoch = self._epochs.get(source, 1)
        if self.rng.random() < 0.3:
            epoch = self._epochs[source] = epoch + 1
        elif self.rng.random() < 0.2:
            epoch = max(1, epoch - 1)  # a zombie speaks
        state = self.rng.choice(["baseline", "capturing", "paused", "stopped", "removed"])
        problems = (Problem("capture-purged", "gone", "take a baseline"),) if state == "stopped" else ()
        by_agent = self.rng.random() < 0.8
        self.write(
            SourceChanged(
                lineage=self.lineage(source) if by_agent else None,
                epoch=epoch if by_agent else 0,
                source=source,
                state=state,
                at_us=self.now(),
                by="agent-1",
                server_version=self.rng.choice(["", "10.11.6-MariaDB"]),
                capability=self.rng.choice([(), ("row-image-full",)]),
                position=self.rng.choice(["", f"0-1-{self.rng.randrange(100)}"]),
                ordinal=self.rng.randrange(100),
                baseline=self.rng.choice(["", "baselines/1"]),
                problems=problems,
            )
        )

    def command(self) -> None:
        job = self.id("job")
        asset = self.source()
        self._jobs.append((job, asset))
        self.write(
            CommandRequested(
                command=job,
                kind="rollback.plan",
                asset=asset,
                parameters='{"steps":3}',
                requester="ada",
                requested_us=self.now(),
                deadline_us=self.rng.choice([None, self._clock + 60 * SECOND]),
            )
        )

    def job(self) -> None:
        if not self._jobs or self.rng.random() < 0.1:
            self._jobs.append((self.id("job"), self.source()))  # whose command is not in this log
        job, asset = self.rng.choice(self._jobs)
        state = self.rng.choice(
            ["accepted", "claimed", "started", "progressed", "progressed", "warned", "finished", "failed"]
        )
        self.write(
            JobChanged(
                job=job,
                kind="rollback.plan",
                asset=asset,
                state=state,
                at_us=self.now(),
                by="agent-1",
                message=self.rng.choice(["", "working", "nul \0 inside"]),
                done=self.rng.choice([0, 5, 7]),
                total=self.rng.choice([0, 10]),
                unit=self.rng.choice(["", "rows"]),
                problems=(Problem("slow", "slow", ""),) if state == "warned" else (),
                result='{"plan":"p"}' if state == "finished" else "",
            )
        )

    def granule(self, source: str | None = None, steps: int | None = None) -> GranuleClosed:
        source = source or self.source()
        first = self._heads.get(source, 0) + 1
        last = first + (steps or self.rng.randrange(1, 4097)) - 1
        self._heads[source] = last
        tables = self.rng.sample(["orders", "items", "customers", "stock"], self.rng.randrange(0, 4))
        marks = [Landmark(first, "ddl", "ALTER TABLE shop.orders ADD x int")] if self.rng.random() < 0.2 else []
        if self.rng.random() < 0.2:
            marks += [Landmark(last, "own"), Landmark(last, "account")]
        if self._plans and self.rng.random() < 0.2:
            marks.append(Landmark(first, "marker", "", self.rng.choice(self._plans)[0]))
        self.keys(source, first, last, tables)
        began = self.now()
        event = GranuleClosed(
            lineage=self.lineage(source),
            epoch=self._epochs.get(source, 1),
            source=source,
            first_ordinal=first,
            last_ordinal=last,
            first_time_us=began,
            last_time_us=self.now(),
            captured_us=self._clock + 2000,
            first_position=f"0-1-{first}",
            last_position=f"0-1-{last}",
            payload_bytes=self.rng.randrange(100, 4_000_000),
            events=5 * (last - first + 1),
            tables=tuple(
                TableCount("shop", t, *(self.rng.randrange(1, 500) for _ in range(4))) for t in sorted(tables)
            ),
            landmarks=tuple(marks),
            topic_id="dG9waWM",
            first_offset=first // 10,
            last_offset=last // 10,
            digest=self.rng.randbytes(32),
        )
        self.write(event)
        return event

    def keys(self, source: str, first: int, last: int, tables: list[str]) -> None:
        """The key run that goes before a granule; sometimes it is said twice."""
        entries = {
            self.rng.randbytes(8) + self.rng.randrange(last - first + 1).to_bytes(4, "big")
            for _ in range(self.rng.randrange(20))
        }
        event = GranuleKeys(
            lineage=self.lineage(source),
            epoch=self._epochs.get(source, 1),
            source=source,
            first_ordinal=first,
            last_ordinal=last,
            key_id="0123456789abcdef",
            tables=tuple(
                KeyedTable("shop", t, self.rng.choice([("id",), ()]), self.rng.random() < 0.2) for t in sorted(tables)
            ),
            entries=run_of(entries),
        )
        self.write(event)
        if self.rng.random() < 0.1:
            self.write(event)

    def plan(self) -> None:
        source = self.source()
        head = self._heads.get(source, 0)
        target = self.rng.randrange(0, head + 1)
        plan, digest = self.id("plan"), self.rng.randbytes(32)
        self._plans.append((plan, source, digest))
        self.write(
            RollbackPlanned(
                lineage=self.lineage(source),
                plan=plan,
                source=source,
                kind="rollback",
                target=f"{head - target} steps",
                target_ordinal=target,
                target_time_us=self.now(),
                head_ordinal=head,
                path_before=(OrdinalRange(1, head),),
                path_after=(OrdinalRange(1, target),),
                undo=(OrdinalRange(target + 1, head),),
                redo=(),
                steps=head - target,
                rows=self.rng.randrange(1000),
                payload_bytes=self.rng.randrange(100_000),
                tables=(TableEffect("shop", "orders", 1, 2, 3, True),),
                obstacles=self.rng.choice([(), (Problem("ddl", "a table was dropped", "use a scratch copy"),)]),
                schema_version=self.rng.randbytes(32),
                digest=digest,
                planned_us=self._clock,
                by="ada",
            )
        )

    def plan_changed(self) -> None:
        if not self._plans:
            return
        plan, source, digest = self.rng.choice(self._plans)
        state = self.rng.choice(["confirmed", "fenced", "applying", "applied", "failed", "abandoned"])
        applied = state == "applied"
        self.write(
            RollbackChanged(
                lineage=self.lineage(source),
                plan=plan,
                source=source,
                state=state,
                digest=digest,
                at_us=self.now(),
                by="agent-1",
                read_only_before="OFF" if state == "fenced" else "",
                position="0-1-77" if applied else "",
                ordinal=self._heads.get(source, 0) + 1 if applied else 0,
                rows=9 if applied else 0,
                problems=(Problem("conflict", "rows differ", ""),) if state == "failed" else (),
            )
        )

    def scratch_changed(self) -> None:
        name, state = self.rng.choice(["look", "compare"]), self.rng.choice(["making", "ready", "ended", "failed"])
        self.write(
            ScratchChanged(
                scratch=name,
                source=self.source(),
                state=state,
                ordinal=self.rng.randrange(100),
                position="0-1-7",
                tables=self.rng.choice([(), ("shop.orders",)]),
                host="127.0.0.1",
                port=self.rng.randrange(1024, 65536),
                expires_us=self.rng.choice([None, self._clock + SECOND]),
                job=self.id("job"),
                at_us=self.now(),
                by="agent-1",
                problems=(Problem("disk-full", "no room", ""),) if state == "failed" else (),
            )
        )

    def host_defined(self) -> None:
        host = self.rng.choice(["h1", "h2"])
        self.write(
            HostDefined(
                host=host,
                kind="kvm",
                state=self.rng.choice(["added", "changed", "removed"]),
                url=f"qemu+tls://{host}/system",
                secrets={"password": f"hosts/{host}/password@1"},
                options={"disks": "2"},
                version="9.0",
                defined_us=self.now(),
                by="ada",
            )
        )

    def asset_changed(self) -> None:
        """Machines come, change and go; sometimes another machine is said to have a name that is taken."""
        asset = self.rng.choice(["web", "db", "mail"])
        self.write(
            AssetChanged(
                asset=asset,
                state=self.rng.choice(["seen", "seen", "gone"]),
                host=self.rng.choice(["h1", "h2"]),
                native=self.rng.choice([f"{asset}-1", f"{asset}-1", f"{asset}-2"]),
                name=f"{asset}\0",
                tags=("gold",),
                power="running",
                cpus=self.rng.randrange(1, 5),
                memory=1 << 33,
                disks=(AssetDisk("vda", 1 << 40, "qcow2", tracked=True),),
                nics=(AssetNic("52:54:00:00:00:01"),),
                seen_us=self.now(),
                by="node-1",
            )
        )

    def node(self) -> None:
        """A run takes a name, or lets go of it; also runs that come second, and those that have it no more."""
        name, rng = self.rng.choice(["agent-one", "agent-two"]), self.rng
        has = self._named.get(name, "")
        stops = bool(has) and rng.random() < 0.3
        run = has if stops and rng.random() < 0.8 else self.id("writer")
        replaces = "" if stops else has if rng.random() < 0.8 else self.id("writer")
        if not stops and replaces == has:
            self._named[name] = run
        self.write(
            NodeChanged(
                node=name,
                state="stopped" if stops else "started",
                run=run,
                replaces=replaces,
                home="home",
                machine="host-1",
                version="0.1.0",
                names=(name, "one"),
                lease_s=60,
                at_us=self.now(),
                by=name,
            )
        )

    def protection(self) -> None:
        """Somebody says how well something is protected; also what was said before."""
        self.write(
            ProtectionChanged(
                asset=self.rng.choice(["web", "db"]),
                kind=self.rng.choice(["machine", "database"]),
                state=self.rng.choice(["late", "late", "covered"]),
                before=self.rng.choice(["", "late"]),
                policy="nightly",
                late_s=self.rng.randrange(100),
                at_us=self.now(),
                by="api-1",
            )
        )

    def policy(self) -> None:
        """Something is said of a policy; also what does not count: versions that are taken, instants that are decided."""
        name, rng = self.rng.choice(["nightly", "hourly"]), self.rng
        version = self._versions.get(name, 0)
        if not version or rng.random() < 0.15:
            version += rng.choice([0, 1, 1])
            document = '{"kind":"repository.collect","repository":"vault","schedule":["daily 02:00"]}'
            self.write(PolicyDefined(policy=name, version=version, document=document, defined_us=self.now(), by="root"))
            self._versions[name] = max(version, self._versions.get(name, 0))
            return
        if rng.random() < 0.1:
            self.write(PolicyRemoved(policy=name, version=version, removed_us=self.now(), by="root"))
            return
        state = rng.choice(["asked", "fired", "fired", "skipped", "ended", "ended", "rewound"])
        known = [run for run, of in self._runs if of == name]
        run = rng.choice(known) if known and (state == "ended" or rng.random() < 0.4) else self.id("run")
        if (run, name) not in self._runs:
            self._runs.append((run, name))
        at = self.now()
        self.write(
            PolicyRun(
                policy=name,
                version=version - (rng.random() < 0.1),
                run=run,
                state=state,
                instant_us=at - rng.randrange(100 * SECOND),
                until_us=at - rng.randrange(50 * SECOND) if state == "skipped" else 0,
                closes_us=rng.choice([None, at + SECOND]),
                reason=rng.choice(["due", "asked", "late"]),
                assets=("web", "db") if state == "fired" else (),
                left_out=rng.choice([{}, {"mail": "still-running"}]),
                figures={"done": 2} if state == "ended" else {},
                at_us=at,
                by="agent-1",
            )
        )

    def repository(self) -> None:
        """Something happens in a repository; also what does not count: words of sessions that ended, points dropped twice."""
        name = self.rng.choice(["vault", "near"])
        if not self._sessions or self.rng.random() < 0.2:
            session = self.id("session")
            self._sessions.append((session, name))
            self.write(
                SessionOpened(
                    repository=name,
                    session=session,
                    kind=self.rng.choice(["backup", "collect"]),
                    node="node-1",
                    asset="web",
                    lease_ticks=3,
                    seen=len(self.events),
                    opened_us=self.now(),
                    by="node-1",
                )
            )
            return
        session, name = self.rng.choice(self._sessions[-4:])
        kinds: list[Callable[[str, str], object]] = [
            self.point_sealed,
            self.session_ended,
            self.collection,
            self.looked,
        ]
        if self._points:
            kinds += [self.point_marked, self.point_dropped]
        self.rng.choice(kinds)(session, name)

    def point_sealed(self, session: str, name: str) -> None:
        point = self.id("point")
        self._points.append((point, name))
        self.write(
            PointSealed(
                repository=name,
                session=session,
                point=point,
                asset=self.rng.choice(["web", "mail"]),
                asset_name="Web",
                kind="disks",
                created_us=self.now(),
                sealed_us=self.now(),
                disks=(DiskSealed("0", "root", 1 << 30, 131_072, self.rng.randbytes(32), changed=7),),
                record=self.rng.randbytes(32),
                files_root=self.rng.choice([b"", b"\1" * 32]),
                figures={"stored_bytes": self.rng.randrange(10_000)},
                facts={"os": "nul \0 inside"},
                by="node-1",
            )
        )

    def session_ended(self, session: str, name: str) -> None:
        if self.rng.random() < 0.5:
            self.write(
                SessionClosed(
                    repository=name,
                    session=session,
                    outcome="done",
                    figures={"chunks": 3},
                    closed_us=self.now(),
                    by="node-1",
                )
            )
        else:
            self.write(
                SessionFenced(repository=name, session=session, reason="silent", fenced_us=self.now(), by="node-2")
            )

    def point_marked(self, session: str, name: str) -> None:
        point, name = self.rng.choice(self._points)
        self.write(
            PointMarked(
                repository=name,
                point=point,
                mark=self.rng.choice(["star", "unstar", "hold", "release", "verified"]),
                number=self.rng.randrange(100),
                name=self.rng.choice(["", "case-7"]),
                note="kept",
                until_us=self.rng.choice([None, self._clock + SECOND]),
                marked_us=self.now(),
                by="ada",
            )
        )

    def point_dropped(self, session: str, name: str) -> None:
        point, name = self.rng.choice(self._points)
        self.write(PointDropped(repository=name, point=point, reason="too old", dropped_us=self.now(), by="node-1"))

    def collection(self, session: str, name: str) -> None:
        state = self.rng.choice(["proposed", "executing", "done", "abandoned"])
        self.write(
            CollectionChanged(
                repository=name,
                collection=self.rng.choice(["c1", "c2"]),
                session=session,
                state=state,
                marked=self.rng.randrange(100),
                digest=self.rng.randbytes(32),
                freed_bytes=self.rng.randrange(1000),
                at_us=self.now(),
                by="node-1",
            )
        )

    def looked(self, session: str, name: str) -> None:
        kind = self.rng.randrange(3)
        if kind == 0:
            self.write(
                RepositoryDefined(
                    repository=name,
                    identity=self.id("repository"),
                    state=self.rng.choice(["added", "changed", "removed"]),
                    store="local",
                    location="/backups",
                    node="node-1",
                    encrypted=self.rng.random() < 0.5,
                    secrets={"passphrase": f"repositories/{name}/passphrase@1"},
                    protected_from=("site loss",),
                    defined_us=self.now(),
                    by="ada",
                )
            )
        elif kind == 1:
            self.write(
                RepositoryChecked(
                    repository=name,
                    session=session,
                    what="verify",
                    mode="full",
                    figures={"chunks": 9},
                    problems=(Problem("damaged", "a pack", ""),),
                    checked_us=self.now(),
                    by="node-1",
                )
            )
        else:
            self.write(
                Ticked(
                    repository=name,
                    node="node-1",
                    ticker="t",
                    number=len(self.events),
                    interval_us=SECOND,
                    at_us=self.now(),
                )
            )

    def table_plan(self) -> None:
        source = self.source()
        plan, digest = self.id("table plan"), self.rng.randbytes(32)
        self._table_plans.append((plan, source, digest))
        self.write(
            TableRollbackPlanned(
                lineage=self.lineage(source),
                plan=plan,
                source=source,
                schema="shop",
                table="orders",
                target="to step 3",
                target_ordinal=3,
                target_time_us=self.now(),
                head_ordinal=9,
                rows_now=self.rng.choice([None, 0, 17]),
                rows_then=self.rng.randrange(1000),
                definition_now="",
                definition_then="CREATE TABLE `orders` (`id` int(11))",
                foreign_keys=("orders.customer -> shop.customer.id",),
                shadow="_hf_new_1",
                kept="_hf_old_1",
                scratch="undo-1",
                content=self.rng.randbytes(32),
                obstacles=self.rng.choice([(), (Problem("foreign-key-to", "a table points at it", ""),)]),
                digest=digest,
                planned_us=self._clock,
                by="ada",
            )
        )

    def table_plan_changed(self) -> None:
        if not self._table_plans:
            return
        plan, source, digest = self.rng.choice(self._table_plans)
        state = self.rng.choice(["confirmed", "loading", "fenced", "applied", "failed", "abandoned"])
        self.write(
            TableRollbackChanged(
                lineage=self.lineage(source),
                plan=plan,
                source=source,
                state=state,
                digest=digest,
                at_us=self.now(),
                by="agent-1",
                read_only_before="OFF" if state == "fenced" else "",
                kept="_hf_old_1" if state == "applied" else "",
                rows=7 if state == "applied" else 0,
            )
        )

    def call(self) -> None:
        self.write(
            CallAudited(
                request=self.id("call"),
                actor=self.rng.choice(["ada", "bob", "eve"]),
                role="operator",
                token="t1",
                action=self.rng.choice(["source.list", "rollback.run"]),
                object=self.source(),
                outcome=self.rng.choice([200, 202, 403, 409]),
                detail="{}",
                remote="127.0.0.1",
                at_us=self.now(),
            )
        )

    def token(self) -> None:
        token = self.id("token")
        self._tokens.append(token)
        self.write(
            TokenIssued(
                token=token,
                actor=self.rng.choice(["ada", "bob"]),
                role="viewer",
                digest=self.rng.randbytes(32),
                issued_us=self.now(),
                expires_us=self.rng.choice([None, self._clock + 3600 * SECOND]),
                by="root",
            )
        )

    def revocation(self) -> None:
        if self._tokens:
            self.write(TokenRevoked(token=self.rng.choice(self._tokens), at_us=self.now(), by="root"))

    def health(self) -> None:
        source = self.source()
        self.write(
            HealthReported(
                agent=self.rng.choice(["agent-1", "agent-2"]),
                source=source,
                state="capturing",
                at_us=self.now(),
                ordinal=self._heads.get(source, 0),
                position="0-1-5",
                figures={"lag_ms": float(self.rng.randrange(1000)), "steps": 5.0} if self.rng.random() < 0.9 else {},
            )
        )


def history(rng: random.Random, size: int) -> list[Event]:
    """About `size` events of every kind, in the order they were published."""
    h = History(rng)
    while len(h.events) < size:
        h.anything()
    return h.events


def records(events: Sequence[Event], prefix: str = PREFIX) -> list[Message]:
    """The events as records, put on the partitions of their topics by key."""
    ends: dict[tuple[str, int], int] = {}
    out = []
    for i, event in enumerate(events):
        topic = topic_name(prefix, event.TOPIC)
        partition = zlib.crc32(event.key.encode()) % BY_NAME[event.TOPIC].partitions
        offset = ends.get((topic, partition), 0)
        ends[topic, partition] = offset + 1
        headers = {"ce_id": f"event-{i:06d}".encode(), "hlc": f"{(START_US // 1000 + i) << 16:016x}".encode()}
        out.append(Message(topic, partition, offset, event.key, event, Stamp("w", i, bytes(32)), headers, START_US))
    return out


def interleave(messages: Sequence[Message], rng: random.Random) -> list[Message]:
    """One order in which they may be delivered: each partition in order, partitions in any."""
    queues: dict[tuple[str, int], list[Message]] = {}
    for m in messages:
        queues.setdefault((m.topic, m.partition), []).append(m)
    left = [iter(queue) for _, queue in sorted(queues.items())]
    out = []
    while left:
        queue = rng.choice(left)
        message = next(queue, None)
        if message is None:
            left.remove(queue)
        else:
            out.append(message)
    return out


def cut_up(messages: Sequence[Message], rng: random.Random, most: int = 40) -> list[list[Message]]:
    """Batches of 1 to `most` records."""
    out, at = [], 0
    while at < len(messages):
        size = rng.randrange(1, most + 1)
        out.append(list(messages[at : at + size]))
        at += size
    return out


def with_duplicates(messages: Sequence[Message], rng: random.Random, share: float = 0.3) -> list[Message]:
    """Some records stand a second time in their partition, somewhere after the first; offsets are numbered anew."""
    queues: dict[tuple[str, int], list[Message]] = {}
    for m in messages:
        queues.setdefault((m.topic, m.partition), []).append(m)
    out = []
    for queue in queues.values():
        for m in [m for m in queue if rng.random() < share]:
            queue.insert(rng.randrange(queue.index(m) + 1, len(queue) + 1), m)
        out += [replace(m, offset=i) for i, m in enumerate(queue)]
    return out
