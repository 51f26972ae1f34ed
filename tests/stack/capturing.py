"""A source under capture, for tests: protected, captured by a process of its own, compared with what its binlog files hold.

The oracle reads the source's binlog files from disk with code of its own: it shares nothing with capture.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

from agents import registry
from agents.capture.takeover import start_lineage
from agents.mysql import whereabouts
from agents.mysql.coordinates import covers
from agents.mysql.dialects import dialect
from agents.protocol import SourceSettings, source_settings
from deploy.demo.accounts import create_accounts
from deploy.demo.server import DatabaseServer
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.events import HealthReported, SourceChanged, SourceDefined
from streams.ids import now_us
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name
from tests.stack.publishing import publisher_of
from tests.stack.servers import config_file

QUERY, XID, XA_PREPARE, ANNOTATE, GTID = 2, 16, 38, 160, 162
LEADING = (5, 13, 14, 19, 160)


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """A step as the source's binlog file has it. MySQL: `gtid` is empty, `place` file and offset after it."""

    gtid: str
    payload: bytes
    place: tuple[str, int] = ("", 0)


def logged_steps(server: DatabaseServer, after: str = "") -> list[LoggedStep]:
    """All complete steps in the server's binlog files, oldest first, beyond position `after`."""
    if server.kind == "mysql":
        return _logged_by_mysql(server, after)
    behind = _sequences(after)
    index = (server.datadir / "binlog.index").read_text().split()
    steps: list[LoggedStep] = []
    prepared: dict[bytes, list[bytes]] = {}  # first groups of XA transactions, until their outcome
    for name in index:
        steps += _steps_of((server.datadir / name).read_bytes(), prepared)
    return [s for s in steps if int(s.gtid.split("-")[2]) > behind.get(int(s.gtid.split("-")[0]), 0)]


def _logged_by_mysql(server: DatabaseServer, after: str) -> list[LoggedStep]:
    index = (server.datadir / "binlog.index").read_text().split()
    steps: list[LoggedStep] = []
    prepared: dict[bytes, list[bytes]] = {}
    for name in index:
        steps += _steps_of_mysql(Path(name).name, (server.datadir / name).read_bytes(), prepared)
    if "/" in after:
        file, _, offset = after.rpartition("/")[2].partition(":")
        return [s for s in steps if s.place > (file, int(offset))]
    last = int(after.rpartition(":")[2].rpartition("-")[2] or 0)  # one server, no gaps
    return [s for s in steps if int.from_bytes(s.payload[36:44], "little") > last]


def _steps_of_mysql(name: str, data: bytes, prepared: dict[bytes, list[bytes]]) -> Iterator[LoggedStep]:
    at, events, begun, xa = 4, list[bytes](), False, b""
    tail = 4 if data[4 + 19 + 2 : 4 + 19 + 4] != b"5." else 0  # bytes of checksum; 5.5 has none
    while at + 19 <= len(data):
        kind, size = data[at + 4], int.from_bytes(data[at + 9 : at + 13], "little")
        event = data[at : at + size]
        if size < 19 or len(event) < size:
            return
        at += size
        text = event[: len(event) - tail]
        if kind in (4, 15, 3, 35):
            continue
        events.append(event)
        verb, _, name_of_xa = text.rpartition(b"\0XA ")[2].partition(b" ") if b"\0XA " in text else (b"", b"", b"")
        if kind == QUERY and text.endswith(b"\0BEGIN"):
            begun = True
        elif kind == QUERY and verb == b"START":
            begun, xa = True, name_of_xa.strip()
        elif kind == XA_PREPARE:
            prepared[xa], events, begun = events, [], False
        elif kind == QUERY and verb in (b"COMMIT", b"ROLLBACK"):
            first = prepared.pop(name_of_xa.strip())
            if verb == b"COMMIT":
                yield LoggedStep("", b"".join([*first, *events]), (name, at))
            events = []
        elif kind in (XID, 40) or (kind == QUERY and (not begun or text.endswith((b"\0COMMIT", b"\0ROLLBACK")))):
            yield LoggedStep("", b"".join(events), (name, at))
            events, begun = [], False


def _steps_of(data: bytes, prepared: dict[bytes, list[bytes]]) -> Iterator[LoggedStep]:
    assert data[:4] == b"\xfebin"
    at = 4
    gtid, events, standalone, flags, xid = "", [], False, 0, b""
    while at + 19 <= len(data):
        kind, server, size = data[at + 4], *struct.unpack_from("<II", data, at + 5)
        event = data[at : at + size]
        if size < 19 or len(event) < size:
            return  # cut off by a crash, or being written
        at += size
        if kind == GTID:
            sequence, domain, flags = struct.unpack_from("<QIB", event, 19)
            gtid, events, standalone = f"{domain}-{server}-{sequence}", [event], bool(flags & 1)
            if flags & 0x20 and event[32] & 0x0A:
                events = []  # START ALTER and ROLLBACK ALTER: COMMIT ALTER says all
            xid = event[32 : 38 + event[36] + event[37]] if flags & 0xC0 else b""
        elif events and kind == XA_PREPARE:
            prepared[xid] = [*events, event]
            events = []
        elif events and kind != ANNOTATE:
            events.append(event)
            ends = kind == XID or (kind == QUERY and event[-11:-4] in (b"\0COMMIT",))
            ends = ends or (kind == QUERY and event[-13:-4] == b"\0ROLLBACK") or (standalone and kind not in LEADING)
            if ends:
                first = prepared.pop(xid, []) if flags & 0x80 else []
                if not flags & 0x80 or b"XA COMMIT" in event:
                    yield LoggedStep(gtid, b"".join([*first, *events]))
                events = []


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A step as a reader of the log gets it. `payload` None: sealed, and the reader had no key."""

    ordinal: int
    gtid: str
    payload: bytes | None
    accounts: bool
    preamble: bytes


def captured_steps(site: Settings, source: str, *, keyed: bool = True) -> list[CapturedStep]:
    """All complete steps of the current lineage in the log."""
    with CaptureLog(site.kafka, source, SecretStore(site) if keyed else None) as log:
        tail = log.tail()
        assert tail is not None
        out: list[CapturedStep] = []
        parts: list[bytes] = []
        for f in log.steps(tail.lineage, 1, tail.ordinal) if tail.ordinal else ():
            if f.payload is not None:
                parts.append(f.payload)
            if f.last:
                payload = None if f.payload is None else b"".join(parts)
                out.append(CapturedStep(f.ordinal, _gtid_of(payload), payload, f.accounts, f.preamble))
                parts = []
        return out


def _gtid_of(payload: bytes | None) -> str:
    """Of its last group: an XA transaction has two."""
    gtid, at = "", 0
    while payload and at + 19 <= len(payload):
        size = int.from_bytes(payload[at + 9 : at + 13], "little")
        if payload[at + 4] == GTID:
            sequence, domain = struct.unpack_from("<QI", payload, at + 19)
            gtid = f"{domain}-{int.from_bytes(payload[at + 5 : at + 9], 'little')}-{sequence}"
        at += size
    return gtid


def captured_to(site: Settings, source: str) -> str:
    """The native position that the log has reached."""
    with CaptureLog(site.kafka, source) as log:
        return _reached(log)


def _reached(log: CaptureLog) -> str:
    tail = log.tail()
    return "" if tail is None or tail.record is None else tail.record.after


def _sequences(gtids: str) -> dict[int, int]:
    return {int(g.split("-")[0]): int(g.split("-")[2]) for g in gtids.split(",") if g}


def position(server: DatabaseServer) -> str:
    with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
        return whereabouts.position(cursor, dialect(admin))


def eventually(holds: Callable[[], bool], timeout: float = 180.0, what: str = "it") -> None:
    """Poll until `holds()`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout:g} s"
        time.sleep(0.05)


def await_captured(site: Settings, source: str, server: DatabaseServer, timeout: float = 180.0) -> None:
    """Wait until everything that the source has committed is in the log."""
    wanted = position(server)
    with CaptureLog(site.kafka, source) as log:
        eventually(lambda: covers(_reached(log), wanted), timeout, f"capture up to {wanted}")


def assert_same(site: Settings, source: str, server: DatabaseServer, after: str) -> list[CapturedStep]:
    """The promise: every committed step is in the log once, in order, as the source logged it."""
    has = captured_steps(site, source)
    wanted = logged_steps(server, after)
    assert [s.ordinal for s in has] == list(range(1, len(has) + 1))
    assert [s.gtid for s in has] == [s.gtid for s in wanted]
    assert [s.payload for s in has] == [s.payload for s in wanted]
    return has


@dataclass
class Protected:
    """A source with a lineage, and the processes that capture it."""

    site: Settings
    server: DatabaseServer
    source: str
    start: str
    passwords: Mapping[str, str]
    settings: SourceSettings
    lineage: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def capture(self, failpoint: str = "", log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a capture process; `stop` ends it."""
        argv = [sys.executable, "-P", "-m", "agents.capture", "--config", str(config_file(self.site))]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOLDFAST_FAILPOINT": failpoint}
        target = (log or self.site.data_dir / f"capture-{len(self.processes)}.log").open("ab")
        with target:
            process = subprocess.Popen([*argv, "--source", self.source], env=env, stdout=target, stderr=target)
        self.processes.append(process)
        return process

    def words(self, number: int = -1) -> str:
        """What a capture process wrote."""
        number %= len(self.processes)
        return (self.site.data_dir / f"capture-{number}.log").read_text()

    def caught_up(self, timeout: float = 180.0) -> None:
        await_captured(self.site, self.source, self.server, timeout)

    def same(self) -> list[CapturedStep]:
        return assert_same(self.site, self.source, self.server, self.start)

    def changes(self) -> list[SourceChanged]:
        events = (m.event for m in read_topic(self.site.kafka, topic_name(self.site.kafka.prefix, "inventory")))
        return [e for e in events if isinstance(e, SourceChanged)]

    def health(self) -> list[HealthReported]:
        events = (m.event for m in read_topic(self.site.kafka, topic_name(self.site.kafka.prefix, "health")))
        return [e for e in events if isinstance(e, HealthReported)]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def protect(site: Settings, server: DatabaseServer, source: str = "shop", **more: Any) -> Protected:
    """Define `source` with accounts of its own and start a lineage at its present position. `more`: fields of its event."""
    ensure_topics(site.kafka, [("capture", source), ("inventory", None), ("health", None), ("commits", None)])
    with server.connect() as admin:
        passwords = create_accounts(admin)
    store = SecretStore(site)
    fields: dict[str, Any] = {
        "kind": server.kind,
        "host": server.host,
        "port": server.port,
        "accounts": {purpose: f"hf_{purpose}" for purpose in passwords},
        "secrets": {p: store.put(f"sources/{source}/{p}", w.encode()) for p, w in passwords.items()},
        **more,
    }
    defined = SourceDefined(source=source, defined_us=now_us(), by="test", **fields)
    publisher_of(site).sent_and_durable(defined)
    settings = source_settings(defined, store)
    protected = Protected(site, server, source, "", passwords, settings, "")
    new_lineage(protected, "protected")
    return protected


def new_lineage(protected: Protected, reason: str) -> None:
    """Begin a lineage at the source's present position, as a new baseline would."""
    facts = registry.source(protected.settings).facts()
    site, source = protected.site, protected.source
    with CaptureLog(site.kafka, source) as log:
        protected.lineage = start_lineage(
            publisher_of(site),
            log,
            source=source,
            position=facts.position,
            baseline="none",
            reason=reason,
            server_id=facts.server_id,
            server_version=facts.server_version,
            agent="test",
        )
    protected.start = facts.position


class Load:
    """One-row transactions against `server` from a thread of its own, through restarts of the server, until `stop`."""

    def __init__(self, server: DatabaseServer, table: str = "load_t", pause_s: float = 0.0) -> None:
        self.server = server
        self.table = table
        self.pause_s = pause_s
        self.committed = 0
        self.failure: BaseException | None = None
        self._end = threading.Event()
        server.execute(
            "create database if not exists load_db",
            f"drop table if exists load_db.{table}",
            f"create table load_db.{table} (id int primary key auto_increment, name varchar(200), n int) engine=InnoDB",
        )
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(120)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                try:
                    connection = self.server.connect(connect_timeout=2, read_timeout=10)
                except pymysql.err.OperationalError:
                    self._end.wait(0.1)
                    continue
                try:
                    with connection.cursor() as cursor:
                        while not self._end.is_set():
                            self._one(cursor)
                except (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError):
                    continue
                finally:
                    connection._force_close()  # type: ignore[attr-defined]
        except BaseException as error:  # noqa: BLE001 - raised where the test leaves the block
            self.failure = error

    def _one(self, cursor: Any) -> None:
        n = self.committed
        kind = n % 5
        if kind < 3:
            cursor.execute(f"insert into load_db.{self.table}(name, n) values (repeat('x', %s), %s)", (n % 150, n))
        elif kind == 3:
            cursor.execute(f"update load_db.{self.table} set n = -n where id = %s", (max(1, n // 2),))
        else:
            cursor.execute(f"delete from load_db.{self.table} where id = %s", (max(1, n // 3),))
        self.committed += 1
        if self.pause_s:
            self._end.wait(self.pause_s)

    def await_more(self, steps: int, timeout: float = 180.0) -> None:
        """Wait until that many more were committed."""
        wanted = self.committed + steps
        eventually(lambda: self.committed >= wanted or self.failure is not None, timeout, f"{steps} more commits")
