"""A private MySQL replays the captured log by its own replication, up to any step: every table is what it was then."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents import registry
from agents.baseline import making
from agents.baseline.manifest import read_manifest
from agents.errors import AgentError
from agents.mysql import gtid_sets
from agents.mysql.replay_mysql import program, replay
from agents.protocol import SourceSettings
from agents.replay.feed import Served
from agents.replay.feed_mysql import gtids_in, position_after
from agents.scratch.engine import Server
from agents.scratch.keeper import free_port
from deploy.demo.server import DatabaseServer
from streams.formats.binlog.step import summarise
from streams.formats.errors import FormatError
from tests.stack.agent import grant_capture
from tests.stack.contents import everything
from tests.stack.servers import program_of
from tests.stand_ins import walk_load
from tests.unit.agents.replay.test_replay import Sealed

DEFINITIONS = (
    "CREATE TABLE walk.made_{n} (id INT PRIMARY KEY, v VARCHAR(20), j JSON)",
    "INSERT INTO walk.made_{n} SELECT id, LEFT(a, 5), JSON_OBJECT('n', {n}) FROM walk.plain LIMIT 5",
    "ALTER TABLE walk.plain ADD COLUMN extra_{n} INT DEFAULT {n} FIRST",
    "SET SESSION binlog_row_value_options = 'PARTIAL_JSON'",
    "UPDATE walk.made_{n} SET j = JSON_SET(j, '$.more', REPEAT('x', 99))",
    "UPDATE walk.made_{n} SET j = JSON_REMOVE(j, '$.more')",
    "SET SESSION binlog_row_value_options = ''",
    "ALTER TABLE walk.plain DROP COLUMN extra_{n}",
    "CREATE OR REPLACE VIEW walk.seen AS SELECT id, n + {n} AS n FROM walk.plain",
    "DROP PROCEDURE IF EXISTS walk.act",
    "CREATE PROCEDURE walk.act() BEGIN SELECT {n}; END",
    "SET SESSION binlog_transaction_compression = ON",
    "INSERT INTO walk.made_{n} VALUES (100, REPEAT('z', 20), NULL)",
    "SET SESSION binlog_transaction_compression = OFF",
    "CREATE USER somebody_{n} IDENTIFIED BY 'secret {n}'",
    "CREATE TRIGGER walk.bare_{n} BEFORE INSERT ON walk.bare FOR EACH ROW SET NEW.a = NEW.a + {n}",
    "SET SESSION time_zone = '+05:00', @kept = 'v{n}'",
    "FLUSH BINARY LOGS",
    "DROP TRIGGER walk.bare_{n}",
    "TRUNCATE TABLE walk.made_{n}",
    "RENAME TABLE walk.made_{n} TO walk.called_{n}",
    "DROP TABLE walk.called_{n}",
    "CREATE TABLE walk.copied_{n} AS SELECT * FROM walk.pair",
    "DROP USER somebody_{n}",
)
# Prepared, and with steps in between committed or not; what was rolled back has a GTID that no step has.
XA = (
    "xa start 'a{n}'", "insert into walk.bare values ({n}, 'xa')", "xa end 'a{n}'", "xa prepare 'a{n}'",
    "xa start 'b{n}'", "insert into walk.bare values ({n}, 'not')", "xa end 'b{n}'", "xa prepare 'b{n}'",
    "insert into walk.bare values ({n}, 'between')", "xa commit 'a{n}'", "xa rollback 'b{n}'",
    "xa start 'c{n}'", "insert into walk.bare values ({n}, 'one phase')", "xa end 'c{n}'", "xa commit 'c{n}' one phase",
)  # fmt: skip
UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


def test_a_copy_is_the_source_at_every_step_that_was_remembered(
    make_database: Callable[..., DatabaseServer], tmp_path: Path
) -> None:
    source = make_database("mysql-9")
    rng = random.Random(7)
    source.execute(*walk_load.statements("mysql-9"))
    work = walk_load.Load(source.connect(), rng)
    for _ in range(20):
        work.transaction()
    grant_capture(source)
    settings = SourceSettings(
        "shop",
        "mysql",
        "127.0.0.1",
        source.port,
        accounts={"capture": "capture"},
        passwords={"capture": "capture secret"},
    )
    log = WithXa(source.connect(), source.datadir)
    folder, manifest = making.make(settings, tmp_path, baseline="b1", lineage=log.lineage, job="j1")
    states: dict[int, dict[str, Any]] = {}

    def remember() -> None:
        with contextlib.closing(source.connect()) as conn:
            states[log.tail().ordinal] = everything(conn, "walk")

    remember()
    with contextlib.closing(source.connect()) as conn, conn.cursor() as cursor:
        for n in range(1, 3):
            for statement in (*DEFINITIONS, *XA):
                for _ in range(0 if statement in XA else rng.randrange(3)):  # what is prepared holds locks
                    work.transaction()
                cursor.execute(statement.format(n=n))
            remember()
    at = sorted(states)
    replayer = registry.replayer("mysql")
    mysqld = replayer.program(read_manifest(folder), program_of(source, tmp_path))
    assert mysqld is not None
    server = replayer.server(mysqld, tmp_path / "copy", manifest.variables, free_port())
    try:
        server.create()
        server.start_filling()
        replayer.load(server, folder, None, lambda rows: None, lambda: None)
        # As far as a step in the middle, then further, in one server, which was ended in order and started again in between.
        for ordinal in (0, at[1] - 7, at[1], at[-1]):
            served = Served(log, log.lineage, manifest.position, ordinal, version=source.version, mysql=True)  # type: ignore[arg-type]
            replay(server, served)
            if ordinal in states:
                assert holds(server) == states[ordinal], f"step {ordinal}"
            assert gtid_sets.contains(gtid_sets.parse(position_after(served)), gtid_sets.parse(executed(server)))
            if ordinal == at[1] - 7:
                server.stop()
                server.start_filling()
        server.stop()
        server.start()
        assert holds(server) == states[at[-1]]
    finally:
        server.stop()
    # Some tables alone, with what they need: altered, made of a query, pointing at another.
    asked = [("walk", name) for name in ("plain", "copied_1", "child")]
    wanted = replayer.needed(log, folder, manifest, at[-1], asked)  # type: ignore[arg-type]
    assert wanted == {*asked, ("walk", "parent")}
    server = replayer.server(mysqld, tmp_path / "some", manifest.variables, free_port())
    try:
        server.create()
        server.start_filling()
        replayer.load(server, folder, wanted, lambda rows: None, lambda: None)
        replayer.replay(server, log, manifest, at[-1], wanted, lambda *_: None, lambda: None)  # type: ignore[arg-type]
        assert replayer.keep_only(server, wanted) == wanted
        found = holds(server)
        tables = {table for _, table in wanted}
        assert {name for name in found if name in states[at[-1]] and " " not in name} == tables
        assert {name: found[name] for name in tables} == {name: states[at[-1]][name] for name in tables}
    finally:
        server.stop()


class WithXa(Sealed):
    """Groups of XA transactions as capture hands them over: both in one step, where it was committed, or none."""

    _prepared: dict[bytes, bytes]
    _settled = 0

    def refresh(self) -> None:
        super().refresh()
        new, self.recorded[self._settled :] = self.recorded[self._settled :], []
        if not self._settled:
            self._prepared = {}
        for step in new:
            payload = step.payload or b""
            verb, name = words(payload)
            if verb == b"START" and summarise(step.preamble, payload).kind == "xa":  # not committed in one phase
                self._prepared[name] = payload
                continue
            first = self._prepared.pop(name, b"")
            if verb != b"ROLLBACK":
                kept = dataclasses.replace(step, ordinal=len(self.recorded) + 1, payload=first + payload)
                self.recorded.append(kept)
        self._settled = len(self.recorded)


def words(payload: bytes) -> tuple[bytes, bytes]:
    at = payload.find(b"\0XA ")
    verb, _, rest = payload[at + 4 :].partition(b" ") if at >= 0 else (b"", b"", b"")
    return verb, rest[: rest.find(b",1") + 2]


def holds(server: Server) -> dict[str, Any]:
    with contextlib.closing(server.connect()) as conn:
        return everything(conn, "walk")


def executed(server: Server) -> str:
    with contextlib.closing(server.connect()) as conn, conn.cursor() as cursor:
        cursor.execute("select @@global.gtid_executed")
        return str(cursor.fetchone()[0]).replace("\n", "")


def test_what_is_no_step_is_refused() -> None:
    for payload in (bytes(40), bytes(9) + (41).to_bytes(4, "little") + bytes(27)):
        with pytest.raises(FormatError):
            list(gtids_in(payload))


def test_gtid_sets_are_read_as_they_are_sent() -> None:
    for text in ("", f"{UUID}:1-5:7", f"{UUID}:1-5:some_tag:2,{UUID[:-1]}0:9"):
        there = gtid_sets.parse(text)
        assert gtid_sets.decode(gtid_sets.encode(there)) == there
    for raw in (b"", bytes(7), bytes([1]) + bytes(7), b"\xff" * 40):
        with pytest.raises(AgentError):
            gtid_sets.decode(raw)


@pytest.mark.parametrize(("version", "position"), [("8.0.40", f"{UUID}:1"), ("9.7.0", "s/1/binlog.000001:4")])
def test_sources_whose_copies_cannot_be_replayed_are_refused(version: str, position: str) -> None:
    manifest: Any = SimpleNamespace(server_version=version, position=position)
    with pytest.raises(AgentError) as refused:
        program(manifest, "")
    assert refused.value.code == "kind-unsupported"
