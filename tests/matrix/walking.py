"""The walk: writes with a trap in their midst, every state recorded, then back and forward at random, with writes between.

Everything is real: the agent, its capture, Kafka, the server. A state is what `CHECKSUM TABLE` says of each table.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

from agents.mysql import file_positions, whereabouts
from agents.mysql.coordinates import covers
from agents.mysql.dialects import dialect
from deploy.demo.server import DatabaseServer
from streams.capture_log import StepFragment
from streams.events import RollbackPlanned
from streams.formats.binlog.step import Summariser
from tests.matrix.cases import Case, Writer
from tests.stack.agent import await_it
from tests.stack.rolling import Rolling

State = dict[str, int | None]


@dataclass
class Walk:
    """One case on one server, whose source is protected."""

    case: Case
    rolling: Rolling
    rng: random.Random
    states: dict[int, State] = field(default_factory=dict)
    """By ordinal: each state that was."""
    trap: range = range(0)
    """The ordinals that the trap made."""

    def __post_init__(self) -> None:
        self._server: DatabaseServer = self.rolling.server
        self._writer = Writer(self.rng)
        self._sessions: dict[str, pymysql.Connection[Any]] = {}
        self._seen: list[tuple[str, State]] = []  # by native position, until their ordinals are known

    def run(self) -> list[RollbackPlanned]:
        """All of it; the plans that were refused. Raises AssertionError."""
        with self._set_up():
            self._note()
            self._write(self.case.before)
            first = self._settle() + 1
            for write in self.case.trap:
                self._do(self._writer.fill(write))
                self._note()
            self.trap = range(first, self._settle() + 1)
            self._write(self.case.after)
            self._settle()
            return self._turns()

    # -- writing

    @contextlib.contextmanager
    def _set_up(self) -> Iterator[None]:
        settings = self.case.settings
        before = [self._server.execute(f"select @@global.{name}")[0][0] for name, _ in settings]
        try:
            for name, value in settings:
                self._server.execute(f"set global {name} = {value}")
            self._do([("a", f"create database {self.case.database}"), ("a", f"use {self.case.database}")])
            self._do([s if isinstance(s, tuple) else ("a", s) for s in self.case.tables])
            yield
        finally:
            for session in self._sessions.values():
                session.close()
            for (name, _), value in zip(settings, before, strict=True):
                self._server.execute(f"set global {name} = {value if isinstance(value, int) else repr(value)}")

    def _do(self, statements: list[tuple[str, str]]) -> None:
        for session, text in statements:
            connection = self._sessions.get(session)
            if connection is None:
                connection = self._sessions[session] = self._server.connect(local_infile=True)
                if session != "a":
                    connection.select_db(self.case.database)
            with connection.cursor() as cursor:
                cursor.execute(text.replace("{file}", str(self._file())) if "{file}" in text else text)

    def _file(self) -> Path:
        """Rows for LOAD DATA."""
        path = self.rolling.settings.data_dir / "load.csv"
        path.write_text("".join(f"{900 + i},row {i},{i}\n" for i in range(300)))
        return path

    def _write(self, count: int) -> None:
        for _ in range(count):
            self._do(self._writer.draw(self.case.writes))
            self._note()

    # -- states

    def _note(self) -> None:
        """Keep what is there now, by the source's position."""
        with closing(self._server.connect()) as connection, connection.cursor() as cursor:
            position = whereabouts.position(cursor, dialect(connection))
        self._seen.append((position, self.state()))

    def state(self) -> State:
        with closing(self._server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select table_name from information_schema.tables where table_schema = %s"
                " and table_type in ('BASE TABLE', 'SYSTEM VERSIONED') order by 1",
                (self.case.database,),
            )
            names = [str(row[0]) for row in cursor.fetchall()]
            if self.case.compared:
                names = [n for n in names if n in self.case.compared]
            if not names:
                return {}
            cursor.execute("checksum table " + ", ".join(f"`{self.case.database}`.`{n}`" for n in names))
            return {self.case.renamed.get(n, n): s for n, (_, s) in zip(names, cursor.fetchall(), strict=True)}

    def _settle(self) -> int:
        """Wait for capture, and find which step each state that was noted came after; the newest step."""
        head = self.rolling.head()
        known = max(self.states, default=0)
        ends: dict[int, str] = {}
        step = None
        for f in self.rolling.log.steps(self.rolling.lineage, known + 1, head) if head > known else ():
            if step is None or f.number == 0:
                step = Summariser(f.preamble)
            step.feed(f.payload or b"")
            if f.last:
                ends[f.ordinal] = step.finish().gtid or _place(f)
        for position, state in self._seen:
            reached = [o for o, end in ends.items() if _behind(position, end)]
            self.states[max(reached, default=known)] = state
        self._seen.clear()
        return head

    # -- walking

    def _turns(self) -> list[RollbackPlanned]:
        refused = []
        for turn in range(self.case.turns):
            # First over the trap and back; after that wherever chance leads.
            before = [o for o in self.states if o < self.trap.start]
            after = [o for o in self.states if o >= self.trap.stop]
            choice = (before, after or before)[turn] if turn < 2 and self.trap else list(self.states)
            target = self.rng.choice(choice)
            planned = plan(self.rolling, "forward" if turn % 2 else "rollback", target, **self.case.options)
            codes = {o.code for o in planned.obstacles}
            if codes == {"nothing-to-do"}:
                continue
            crossed = any(r.first <= o <= r.last for r in (*planned.undo, *planned.redo) for o in self.trap)
            if crossed and self.case.refused and (codes or not self.case.sometimes):
                assert codes & set(self.case.refused), f"step {target}: {planned.obstacles}"
                assert all(o.message for o in planned.obstacles)
                refused.append(planned)
                continue
            assert not codes, f"turn {turn} to step {target}: {planned.obstacles}"
            done = self.rolling.run(planned)
            found = self.state()
            assert found == self.states[target], f"turn {turn} to step {target}: {planned.undo} {planned.redo} {done}"
            self.states[self.rolling.head()] = found
            assert self.rolling.leftovers() == []
            assert self.rolling.read_only() == 0
            if turn and self.rng.random() < 0.5:
                self._write(2)
                self._settle()
        return refused


def plan(rolling: Rolling, kind: str, target: int, **options: object) -> RollbackPlanned:
    """A plan, once the definitions that it needs are recorded, which on a busy machine may take a while."""

    def made() -> RollbackPlanned | None:
        planned = rolling.plan(kind, target, **options)
        return None if "schema-unknown" in {o.code for o in planned.obstacles} else planned

    return await_it(made, f"the definitions that a plan to step {target} needs", 120)


def _place(fragment: StepFragment) -> str:
    """File and offset after a step, whose last fragment this is."""
    at, offset, payload = 0, 0, fragment.payload or b""
    while at < len(payload):
        offset = int.from_bytes(payload[at + 13 : at + 17], "little")
        at += int.from_bytes(payload[at + 9 : at + 13], "little")
    return f"{fragment.file}:{offset}"


def _behind(position: str, end: str) -> bool:
    """Whether a server at `position` has the step that ends at `end` (a GTID, or a file and offset) behind it."""
    if file_positions.is_file_position(position):
        server = position.partition("/")[0]
        return file_positions.parse(position).order >= file_positions.parse(f"{server}/0/{end}").order
    return covers(position, end)


def stop(case: Case, rolling: Rolling, rng: random.Random) -> None:
    """Writes and the trap, after which capture is to stop."""
    walk = Walk(case, rolling, rng)
    with walk._set_up():
        walk._write(case.before)
        rolling.head()
        for write in case.trap:
            walk._do(walk._writer.fill(write))
