"""Random rows on a real server: decoded they are what SELECT says, and undone and done again the tables are as they were.

One history serves both: two tables of random columns, transactions that insert, update (keys too) and delete in them, the
state of both tables noted after each. The log is decoded and replayed on a model; then some steps are taken back on the
server through `BINLOG`, and done again, and the tables are compared with what they held at that time.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pymysql
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pymysql.connections import Connection
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from deploy.demo.mariadb import MariaDB
from streams.formats.binlog.inverse import Part, binlog_fragments, binlog_statements, native_batches
from streams.formats.binlog.sql import SQL_PREAMBLE, quote_name, to_sql
from streams.formats.binlog.step import decode_step, summarise
from streams.formats.binlog.table_map import Declared, TableMap, with_declared
from streams.formats.binlog.values import display
from tests.unit.streams.formats.recorded import Log, recording, run, selected, session, shown

Table = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Kind:
    """A column type and how to make values for it."""

    declared: str
    value: Callable[[random.Random], Any]


def integer(declared: str, bits: int) -> list[Kind]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return [
        Kind(declared, lambda r: r.choice([low, high, 0, -1, r.randint(low, high)])),
        Kind(f"{declared} unsigned", lambda r: r.choice([0, (1 << bits) - 1, 1 << bits - 1, r.randrange(1 << bits)])),
    ]


def decimal(precision: int, scale: int) -> Kind:
    def value(r: random.Random) -> Decimal:
        digits = r.choice(
            [0, 10**precision - 1, r.randrange(10**precision), r.randrange(10 ** r.randint(1, precision))]
        )
        return Decimal((r.randint(0, 1), tuple(int(d) for d in str(digits)), -scale))

    return Kind(f"decimal({precision},{scale})", value)


def single(r: random.Random) -> float:
    (value,) = struct.unpack("<f", struct.pack("<f", r.choice([0.0, 0.1, r.gauss(0, 1e6), r.random() * 1e-30])))
    return float(value)


def moment(r: random.Random, digits: int, kind: str) -> str:
    fraction = f".{r.randrange(10**digits):0{digits}d}" if digits else ""
    if kind == "time":
        sign = r.choice(["", "-"])
        return f"{sign}{r.randint(0, 837)}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}{fraction}"
    if kind == "datetime" and r.random() < 0.2:
        return r.choice(["0000-00-00 00:00:00", "2023-02-30 01:02:03", "9999-12-31 23:59:59"])
    year = r.randint(1971, 2037) if kind == "timestamp" else r.randint(1, 9999)
    day = f"{year:04d}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    return f"{day} {r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}{fraction}"


def words(alphabet: str, most: int) -> Callable[[random.Random], str]:
    return lambda r: "".join(r.choice(alphabet) for _ in range(r.choice([0, 1, most, r.randint(0, most)])))


def octets(most: int) -> Callable[[random.Random], bytes]:
    return lambda r: r.randbytes(r.choice([0, 1, most, r.randint(0, most)]))


ASCII = "abc XYZ09'\"\\`%\n\0\t"
WESTERN = ASCII + "éüß€Œ"
WORLD = WESTERN + "日本語привет🦆ﬁ"
KINDS = [
    *integer("tinyint", 8), *integer("smallint", 16), *integer("mediumint", 24), *integer("int", 32),
    *integer("bigint", 64), decimal(1, 0), decimal(10, 2), decimal(18, 9), decimal(65, 30), decimal(30, 30),
    Kind("float", single), Kind("double", lambda r: r.choice([0.0, 0.1, -1e300, 5e-324, r.gauss(0, 1)])),
    *[Kind(f"bit({n})", lambda r, n=n: r.choice([0, (1 << n) - 1, r.randrange(1 << n)])) for n in (1, 9, 64)],  # type: ignore[misc]
    Kind("year", lambda r: r.choice([0, 1901, 2155, 2023])),
    Kind("date", lambda r: moment(r, 0, "datetime")[:10]),
    *[
        Kind(f"{kind}({n})", lambda r, n=n, kind=kind: moment(r, n, kind))  # type: ignore[misc]
        for kind in ("time", "datetime", "timestamp") for n in range(7)
    ],
    Kind("char(10)", lambda r: words(WORLD, 10)(r).rstrip(" ")), Kind("char(255)", lambda r: words(WORLD, 255)(r).rstrip(" ")),
    Kind("varchar(20)", words(WORLD, 20)), Kind("varchar(500)", words(WORLD, 500)),
    Kind("varchar(20) charset latin1", words(WESTERN, 20)), Kind("varchar(20) charset ucs2", words(ASCII + "日é", 20)),
    Kind("varchar(20) charset utf16", words(WORLD, 20)), Kind("varchar(20) charset cp1251", words(ASCII + "привет", 20)),
    Kind("varchar(20) charset gbk", words(ASCII + "中文", 20)), Kind("varchar(300) compressed", words(WORLD, 200)),
    Kind("tinytext", words(WORLD, 50)), Kind("text", words(WORLD, 400)), Kind("longtext", words(WORLD, 3000)),
    Kind("binary(9)", octets(9)), Kind("varbinary(20)", octets(20)), Kind("varbinary(600)", octets(600)),
    Kind("tinyblob", octets(200)), Kind("blob", octets(900)), Kind("mediumblob", octets(3000)),
    Kind("enum('a','b c','','ü')", lambda r: r.choice(["a", "b c", "", "ü"])),
    Kind("set('a','b','c d','ü')", lambda r: ",".join(m for m in ("a", "b", "c d", "ü") if r.random() < 0.5)),
    Kind("uuid", lambda r: str(__import__("uuid").UUID(bytes=r.randbytes(16)))),
    Kind("inet6", lambda r: str(__import__("ipaddress").IPv6Address(r.randbytes(16)))),
    Kind("point", lambda r: struct.pack("<IBIdd", 4326, 1, 1, r.gauss(0, 1), r.gauss(0, 1))),
]  # fmt: skip
KEYS = [
    kind
    for kind in KINDS
    if kind.declared.split("(")[0] in ("int", "bigint", "mediumint unsigned", "varbinary", "uuid")
]
KEYS += [
    Kind("varchar(20) collate utf8mb4_bin", words("abcdé日", 20)),
    Kind("datetime(6)", lambda r: moment(r, 6, "datetime")),
]


@dataclass(frozen=True)
class Shape:
    """A table: its key's columns (perhaps none) and the others. Columns c1, c2 …; the keys come where `keys_at` says."""

    name: str
    kinds: list[Kind]
    nullable: list[bool]
    key: list[int]

    @property
    def ddl(self) -> str:
        columns = [
            f"c{i} {kind.declared}{' NULL' if null else ' NOT NULL'}{'' if null else self._default(kind)}"
            for i, (kind, null) in enumerate(zip(self.kinds, self.nullable, strict=True))
        ]
        if self.key:
            columns.append(f"PRIMARY KEY ({', '.join(f'c{i}' for i in self.key)})")
        return f"CREATE OR REPLACE TABLE {self.name} ({', '.join(columns)}) ENGINE=InnoDB CHARACTER SET utf8mb4"

    @staticmethod
    def _default(kind: Kind) -> str:
        return " DEFAULT '2000-01-01'" if kind.declared.startswith("timestamp") else ""

    def row(self, r: random.Random) -> list[Any]:
        return [
            None if null and r.random() < 0.25 else kind.value(r)
            for kind, null in zip(self.kinds, self.nullable, strict=True)
        ]

    @property
    def columns(self) -> str:
        return ", ".join(f"c{i}" for i in range(len(self.kinds)))


@st.composite
def shapes(draw: st.DrawFn, name: str, keyed: bool | None = None) -> Shape:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    nullable = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    key: list[int] = []
    if keyed if keyed is not None else draw(st.booleans()):
        for kind in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)):
            at = draw(st.integers(0, len(kinds)))
            kinds.insert(at, kind)
            nullable.insert(at, False)
            key = [i + (i >= at) for i in key] + [at]
    return Shape(name, kinds, nullable, key)


@dataclass
class History:
    """What was done: the log of it, and the tables' contents before it and after each step."""

    log: Log
    steps: list[bytes]
    states: list[dict[str, Table]]


def state(connection: Connection[Any], tables: list[Shape]) -> dict[str, Table]:
    return {table.name: selected(connection, table.name) for table in tables}


def live(server: MariaDB, connection: Connection[Any], tables: list[Shape], r: random.Random, steps: int) -> History:
    states = []
    with recording(server) as recorded:
        states.append(state(connection, tables))
        for _ in range(steps):
            position = run(connection, "SELECT @@gtid_binlog_pos")
            run(connection, "START TRANSACTION")
            for _ in range(r.choice([1, 1, 1, 3])):
                change(connection, r.choice(tables), r)
            run(connection, "COMMIT")
            if run(connection, "SELECT @@gtid_binlog_pos") != position:  # else all it tried were duplicates
                states.append(state(connection, tables))
    return History(recorded.log, recorded.log.steps, states)


def change(connection: Connection[Any], table: Shape, r: random.Random) -> None:
    """Statements that touch some rows, or none where keys are taken."""
    marks = ", ".join(["%s"] * len(table.kinds))
    what = r.random()
    present = run(connection, f"SELECT COUNT(*) FROM {table.name}")[0][0]
    if present and what < 0.35:
        row, at = table.row(r), r.sample(range(len(table.kinds)), r.randint(1, len(table.kinds)))
        if set(at) & set(table.key) and present > 1:
            limit = 1
        else:
            limit = r.choice([1, 2, 50])
        assign = ", ".join(f"c{i} = %s" for i in at)
        with contextlib.suppress(pymysql.err.IntegrityError):
            run(
                connection,
                f"UPDATE {table.name} SET {assign} ORDER BY RAND({r.randrange(1000)}) LIMIT {limit}",
                [row[i] for i in at],
            )
    elif present and what < 0.55:
        run(connection, f"DELETE FROM {table.name} ORDER BY RAND({r.randrange(1000)}) LIMIT {r.choice([1, 1, 3, 100])}")
    rows = [table.row(r) for _ in range(r.choice([1, 1, 2, 30]))]
    values = ", ".join([f"({marks})"] * len(rows))
    run(
        connection,
        f"INSERT IGNORE INTO {table.name} ({table.columns}) VALUES {values}",
        [v for row in rows for v in row],
    )


def replay(history: History, tables: list[Shape], first: int, last: int, direction: str) -> list[bytes]:
    """Statements that undo or redo steps first..last-1."""
    parts: list[Part] = [(history.log.fde, step) for step in history.steps[first:last]]
    if direction == "undo":
        parts.reverse()
    batches = native_batches(parts, "undo" if direction == "undo" else "redo", max_rows=7, max_event_bytes=70_000)
    return list(binlog_statements(history.log.fde, batches, max_batches=5))


def apply(server: MariaDB, statements: list[bytes]) -> None:
    with session(server, "rnd") as connection:
        run(connection, "SET sql_log_bin = 0")
        run(connection, "START TRANSACTION")
        for statement in statements:
            run(connection, statement)
        run(connection, "COMMIT")


def modelled(history: History, tables: list[Shape]) -> list[dict[str, Table]]:
    """The states that the decoded log leads through, beginning with none."""
    declared = {
        ("rnd", t.name): [
            Declared(f"c{i}", kind.declared.split(" ")[0] if kind.declared in ("uuid", "inet6") else "")
            for i, kind in enumerate(t.kinds)
        ]
        for t in tables
    }

    def describe(table_map: TableMap) -> TableMap:
        return with_declared(table_map, declared[table_map.key])

    now: dict[str, Table] = {table.name: [] for table in tables}
    states = []
    for step in history.steps:
        for changed in decode_step(history.log.fde, step, describe=describe):
            for values, add in ((changed.before, False), (changed.after, True)):
                if values is not None:
                    row = tuple(shown(v, c) for v, c in zip(values, changed.columns, strict=True))
                    rows = now[changed.table]
                    rows.append(row) if add else rows.remove(row)
        states.append({name: sorted(rows, key=repr) for name, rows in now.items()})
    return states


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(shapes("one", keyed=True), shapes("two"), st.integers(0, 2**32))
def test_random_histories(mariadb: MariaDB, one: Shape, two: Shape, seed: int) -> None:
    r, tables = random.Random(seed), [one, two]
    with session(mariadb, "rnd") as connection:
        run(connection, "SET sql_mode = 'ALLOW_INVALID_DATES'")
        for table in tables:
            run(connection, table.ddl)
        history = live(mariadb, connection, tables, r, steps=r.randint(2, 12))
        states, steps = history.states, history.steps
        assert len(states) == len(steps) + 1
        assert modelled(history, tables) == states[1:]
        assert all(summarise(history.log.fde, step).kind == "rows" for step in steps)
        at = len(steps)
        for _ in range(3):
            target = r.randint(0, len(steps))
            if target < at:
                apply(mariadb, replay(history, tables, target, at, "undo"))
            else:
                apply(mariadb, replay(history, tables, at, target, "redo"))
            at = target
            assert state(connection, tables) == states[at]
        # And the same by SQL: back to the beginning, statement by statement.
        run(connection, "SET sql_log_bin = 0")
        for line in SQL_PREAMBLE.strip().splitlines():
            run(connection, line)
        for step in reversed(steps[:at]):
            for changed in reversed(decode_step(history.log.fde, step)):
                with connection.cursor() as cursor:
                    statement = to_sql(changed, inverse=True)
                    assert cursor.execute(statement) == 1 or "UPDATE" in statement, statement
        assert state(connection, tables) == states[0]


def test_the_oracle_reads_the_same(mariadb: MariaDB) -> None:
    """mysql-replication, where it can read a type at all, gives the same values."""
    columns = (
        "id int primary key, u bigint unsigned, d decimal(20,5), f double, dt datetime(6), v varchar(50), b blob, n int"
    )
    with session(mariadb, "rnd") as connection:
        run(connection, f"CREATE OR REPLACE TABLE oracle ({columns})")
        run(connection, "RESET MASTER")
        with recording(mariadb) as recorded:
            run(
                connection,
                "INSERT INTO oracle VALUES "
                "(1, 18446744073709551615, -12345.67891, 1e100, '2023-06-15 10:20:30.123456', 'ü🦆', x'00ff', NULL), "
                "(2, 0, 0, -0.5, '1000-01-01', '', x'01', -1)",
            )
            run(connection, "UPDATE oracle SET v = 'changed', n = 5")
            run(connection, "DELETE FROM oracle WHERE id = 2")
    stream = BinLogStreamReader(
        connection_settings={"host": mariadb.host, "port": mariadb.port, "user": "root", "password": mariadb.root_password},
        server_id=4711, is_mariadb=False, only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
        log_file="binlog.000001", log_pos=4, resume_stream=True,
    )  # fmt: skip
    theirs: list[tuple[Any, Any]] = []
    try:
        for event in stream:
            for row in event.rows:
                both = "values" not in row
                before = row["before_values"] if both else row["values"] if isinstance(event, DeleteRowsEvent) else None
                after = row["after_values"] if both else row["values"] if isinstance(event, WriteRowsEvent) else None
                theirs.append((before, after))
    finally:
        stream.close()
    ours = [
        (before, after)
        for step in recorded.log.steps
        for change in decode_step(recorded.log.fde, step)
        for before, after in [tuple(
            dict(zip([c.label for c in change.columns], values, strict=True)) if values is not None else None
            for values in (change.before, change.after)
        )]
    ]  # fmt: skip

    def plain(row: Any) -> Any:
        if row is None:
            return None
        return {
            name: value.isoformat(" ", "microseconds") if hasattr(value, "isoformat") else value
            for name, value in row.items()
        }

    assert [(plain(a), plain(b)) for a, b in theirs] == ours
    assert len(ours) == 5


def test_one_row_transactions_are_undone_in_few_events(mariadb: MariaDB) -> None:
    with session(mariadb, "rnd") as connection:
        run(connection, "CREATE OR REPLACE TABLE many (id int primary key, v varchar(300) null, n int)")
        with recording(mariadb) as recorded:
            for i in range(300):
                run(connection, "INSERT INTO many VALUES (%s, %s, %s)", (i, "x" * (i % 280) if i % 7 else None, i))
            before = selected(connection, "many")
            for i in range(300):
                run(connection, "UPDATE many SET v = %s, n = n + 1 WHERE id = %s", ("y" * (i % 13), i))
        log = recorded.log
        steps = log.steps
        assert len(steps) == 600
        batches = list(native_batches([(log.fde, b"".join(steps[300:]))]))
        assert [(b.kind, b.rows) for b in batches] == [("update", 300)]
        apply(mariadb, list(binlog_statements(log.fde, batches)))
        assert selected(connection, "many") == before
        apply(mariadb, list(binlog_statements(log.fde, native_batches([(log.fde, s) for s in reversed(steps[:300])]))))
        assert selected(connection, "many") == []


def test_order_between_tables_is_kept_for_foreign_keys(mariadb: MariaDB) -> None:
    with session(mariadb, "rnd") as connection:
        run(connection, "DROP TABLE IF EXISTS child, parent")
        run(connection, "CREATE TABLE parent (id int primary key)")
        run(connection, "CREATE TABLE child (id int primary key, p int, FOREIGN KEY (p) REFERENCES parent (id))")
        with recording(mariadb) as recorded:
            run(connection, "SET foreign_key_checks = 0")
            for i in range(20):
                run(connection, "START TRANSACTION")
                run(connection, "INSERT INTO parent VALUES (%s)", [i])
                run(connection, "INSERT INTO child VALUES (%s, %s)", (i, i))
                run(connection, "COMMIT")
        log = recorded.log
        batches = list(native_batches([(log.fde, s) for s in reversed(log.steps)]))
        assert [b.table[1] for b in batches] == ["child", "parent"] * 20
        apply(mariadb, list(binlog_statements(log.fde, batches)))
        assert selected(connection, "parent") == selected(connection, "child") == []
        # Checks are on again although the session had them off: a parent with children cannot be taken away.
        apply(mariadb, list(binlog_statements(log.fde, native_batches([(log.fde, s) for s in log.steps], "redo"))))
        parents = [b for b in batches if b.table[1] == "parent"]
        with pytest.raises(pymysql.err.IntegrityError):
            apply(mariadb, list(binlog_statements(log.fde, parents)))
        assert len(selected(connection, "parent")) == 20


def test_an_event_as_large_as_a_packet_goes_in_two_variables(mariadb: MariaDB) -> None:
    with session(mariadb, "rnd") as connection:
        run(connection, "CREATE OR REPLACE TABLE big (id int primary key, v longblob)")
        with recording(mariadb) as recorded:
            run(connection, "INSERT INTO big VALUES (1, REPEAT('a', 3000000)), (2, REPEAT('b', 10))")
        log = recorded.log
        batches = list(native_batches([(log.fde, log.steps[0])], max_event_bytes=3_100_000))
        apply(mariadb, list(binlog_fragments(log.fde, batches)))
        assert selected(connection, "big") == []


def test_the_rollbacks_own_step_has_the_time_of_now(mariadb: MariaDB) -> None:
    """Replayed events carry no time: else the server would log the rollback under the time of what it undoes."""
    with session(mariadb, "rnd") as connection:
        run(connection, "CREATE OR REPLACE TABLE clock (id int primary key)")
        run(connection, "SET timestamp = 1000000000")
        with recording(mariadb) as recorded:
            run(connection, "INSERT INTO clock VALUES (1)")
        run(connection, "SET timestamp = DEFAULT")
        assert summarise(recorded.log.fde, recorded.log.steps[0]).commit_time == 1_000_000_000
        with recording(mariadb) as undone:
            run(connection, "START TRANSACTION")
            for statement in binlog_statements(
                recorded.log.fde, native_batches([(recorded.log.fde, recorded.log.steps[0])])
            ):
                run(connection, statement)
            run(connection, "COMMIT")
            (now,) = run(connection, "SELECT UNIX_TIMESTAMP()")[0]
        summary = summarise(undone.log.fde, undone.log.steps[0])
        assert abs(summary.commit_time - now) < 60
        assert summary.changes == {("rnd", "clock"): (0, 0, 1)}
        gtid = summary.gtid.split("-")
        assert gtid[1] == str(mariadb.server_id)


def test_display_is_what_the_client_shows(mariadb: MariaDB) -> None:
    with session(mariadb, "rnd") as connection:
        run(
            connection,
            "CREATE OR REPLACE TABLE shown (f float, d double, y year, b bit(4), m decimal(10,3), e enum('a'))",
        )
        with recording(mariadb) as recorded:
            run(
                connection,
                "INSERT INTO shown VALUES (0.1, 0.1, 0, b'101', 1.5, 'a'), (NULL, -1e30, 1999, 0, -0.001, NULL)",
            )
        first, second = decode_step(recorded.log.fde, recorded.log.steps[0])
        texts = [[display(v, c) for v, c in zip(x.after or (), x.columns, strict=True)] for x in (first, second)]
        assert texts == [
            ["0.1", "0.1", "0000", "b'0101'", "1.500", "a"],
            ["NULL", "-1e+30", "1999", "b'0000'", "-0.001", "NULL"],
        ]
        assert quote_name("a`b") == "`a``b`"
