"""The type zoo on real servers, byte for byte: decoded, rolled back, redone, walked through at random; and what is refused.

The log is the server's own binlog (`tests.stand_ins.rollback_bench`); the matrix does the same through Kafka.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.baseline import load, making
from agents.protocol import SourceSettings
from deploy.demo.accounts import create_accounts
from deploy.demo.server import DatabaseServer
from streams.formats.binlog import table_map as t
from streams.formats.binlog.charsets import SAME_AS_SERVER, encode_text
from streams.formats.binlog.inverse import binlog_statement, encode_event, native_batches, rows_head
from streams.formats.binlog.step import decode_step
from streams.formats.binlog.table_map import Column, Declared, TableMap, with_declared
from streams.formats.binlog.values import EnumValue, JsonBinary, SetValue, Undecoded, Value, display
from tests.matrix import types as zoo
from tests.stack.servers import DATABASES
from tests.stand_ins.rollback_bench import RollbackBench

Contents = dict[str, list[tuple[Any, ...]]]


def server_of(database: DatabaseServer) -> zoo.Server:
    return zoo.Server.of(database.execute("SELECT VERSION()")[0][0])


@pytest.mark.parametrize(
    ("database", "method"),
    [
        *((server, "native") for server in DATABASES),
        ("mariadb-11.4", "bound"),
        ("mysql-9", "bound"),
        ("mysql-5.5", "bound"),
    ],
    indirect=["database"],
)
def test_every_value_goes_back_and_forth(database: DatabaseServer, method: str) -> None:
    """All values in, all out again, all in again; then a random walk with writes in between. By bound statements without
    MySQL's JSON, which such a plan refuses."""
    tables = zoo.zoo(server_of(database))
    if method == "bound":
        tables = tuple(t for t in tables if not t.name.startswith("json") or database.kind == "mariadb")
    rng = random.Random(7)
    with contextlib.closing(RollbackBench(database, zoo.statements(tables), method)) as bench:
        load = zoo.Load(database.connect(), rng, tables)
        states = {0: _contents(bench, tables)}
        for filled in load.fill():
            states[bench.head()] = states[max(states)] | _contents(bench, (filled,))
        full = bench.head()
        assert all(states[full].values())

        def go(target: int) -> None:
            plan = bench.plan("rollback" if target < bench.head() else "forward", target)
            assert plan.event.obstacles == (), plan.event.obstacles
            outcome = bench.run(plan)
            found = _contents(bench, tables)
            different = [name for name in found if found[name] != states[target][name]]
            assert not different, {name: (found[name], states[target][name]) for name in different[:1]}
            states[outcome.ordinal] = found

        go(0)
        go(full)
        for _ in range(4):
            for _ in range(10):
                load.transaction()
                states[bench.head()] = _contents(bench, tables)
            standing = [o for r in bench.path() for o in range(r.first, r.last + 1) if o in states]
            go(rng.choice(standing[-25:]))


def _contents(bench: RollbackBench, tables: tuple[zoo.Table, ...]) -> Contents:
    return {table.name: zoo.contents(bench.admin, table) for table in tables}


@pytest.mark.parametrize("database", list(DATABASES), indirect=True)
def test_every_value_is_decoded_as_the_server_has_it(database: DatabaseServer) -> None:
    tables = zoo.zoo(server_of(database))
    with contextlib.closing(RollbackBench(database, zoo.statements(tables))) as bench:
        load = zoo.Load(database.connect(), random.Random(1), tables)
        for _ in load.fill():
            pass
        bench.head()
        described = {
            name: [Declared(c["name"], c["type"], c["charset"]) for c in json.loads(d.definition)["columns"]]
            for (_, name), d in bench.schema.tables.items()
        }

        def describe(table_map: TableMap) -> TableMap:
            declared = described[table_map.table]
            hidden = [Declared(f"hidden {i}") for i in range(len(table_map.columns) - len(declared))]
            return with_declared(table_map, [*declared, *hidden])

        found: dict[str, list[tuple[Any, ...]]] = {}
        texts: set[tuple[str, str, str]] = set()
        for step in bench.log.recorded:
            for change in decode_step(step.preamble, step.payload or b"", describe=describe):
                assert change.after is not None
                pairs = list(zip(change.after, change.columns, strict=True))[: len(described[change.table])]
                found.setdefault(change.table, []).append(tuple(_exact(value, column) for value, column in pairs))
                if change.table == "charsets":
                    texts |= {(c.label, _exact(v, c), v) for v, c in pairs if isinstance(v, str)}
        for table in tables:
            columns = [*([table.key] if table.key else []), *table.columns]
            said = [
                tuple(_said(value, column) for value, column in zip(row, columns, strict=True))
                for row in zoo.contents(bench.admin, table)
            ]
            assert sorted(found[table.name], key=repr) == sorted(said, key=repr), table.name
        # And text reads as the server reads it, where its character set means the same to both.
        for column in next(t for t in tables if t.name == "charsets").columns:
            if ("utf8mb3" if column.name == "utf8" else column.name) not in SAME_AS_SERVER:
                continue
            name, source = zoo.quoted(column.name), f"{zoo.DATABASE}.charsets"
            said = zoo.run(bench.admin, f"SELECT HEX({name}), HEX(CONVERT({name} USING utf8mb4)) FROM {source}")
            known = {raw: bytes.fromhex(text) for raw, text in said if raw is not None}
            ours = {raw: text.encode("utf-8", "surrogatepass") for label, raw, text in texts if label == column.name}
            assert ours
            assert {raw: known[raw] for raw in ours} == ours, column.name


def _said(value: Any, column: zoo.Column) -> Any:
    """What the server said, in the form of `_exact`."""
    if value is None or not column.declared.startswith(("float", "double")):
        return value
    # 5.5 writes the largest double as one digit more than there is.
    return f"{max(-sys.float_info.max, min(sys.float_info.max, float(value))):.13e}"


def _exact(value: Value, column: Column) -> Any:
    """A value in the form that `zoo.exact` asks the server for."""
    if isinstance(value, EnumValue | SetValue):
        return str(value.index if isinstance(value, EnumValue) else value.bits)
    if isinstance(value, float):
        return f"{value:.13e}"
    if isinstance(value, bytes) and column.declared not in ("uuid", "inet4", "inet6"):
        return value.hex().upper()
    if isinstance(value, JsonBinary):
        return value.text().encode().hex().upper()
    if isinstance(value, Undecoded):
        return value.raw.hex().upper()
    if isinstance(value, str) and column.charset is not None:
        raw = encode_text(value, column.charset)
        assert raw is not None
        return raw.hex().upper()
    if isinstance(value, int) and column.type == t.BIT:
        return str(value)
    if isinstance(value, int) and "zerofill" in (column.declared or ""):
        return f"{value:07d}"
    return None if value is None else display(value, column)


@pytest.mark.parametrize("database", ["mariadb-10.11", "mysql-9", "mysql-5.5"], indirect=True)
def test_a_baseline_holds_every_value(
    database: DatabaseServer, make_database: Callable[..., DatabaseServer], tmp_path: Path
) -> None:
    """Made on one server, loaded into another. Rows go as text there, which cannot say which types values of MySQL's JSON
    were of that JSON does not have (docs/guides/types.md)."""
    tables = [t for t in zoo.zoo(server_of(database), obstacles=True) if t.name != "jsontyped"]
    version = database.version
    copy = make_database(
        next(n for n in DATABASES if n.startswith(database.kind) and version.startswith(n.split("-")[1]))
    )
    with contextlib.closing(database.connect()) as admin, contextlib.closing(copy.connect(autocommit=False)) as other:
        for statement in zoo.statements(tables):
            zoo.run(admin, statement)
        for _ in zoo.Load(database.connect(), random.Random(1), tuple(tables)).fill():
            pass
        passwords = create_accounts(admin)
        settings = SourceSettings(
            "shop", database.kind, database.host, database.port, accounts={"capture": "hf_capture"}, passwords=passwords
        )
        folder, _ = making.make(settings, tmp_path, baseline="b1", lineage="l1", job="j1")
        load.load(other, folder)
    with contextlib.closing(database.connect()) as admin, contextlib.closing(copy.connect()) as other:
        for session in (admin, other):
            zoo.run(session, zoo.SESSION)
        for table in tables:
            assert zoo.contents(other, table) == zoo.contents(admin, table), table.name


@pytest.mark.parametrize("database", list(DATABASES), indirect=True)
def test_what_cannot_be_undone_exactly_is_refused_with_the_reason(database: DatabaseServer) -> None:
    tables = [t for t in zoo.zoo(server_of(database), obstacles=True) if t.obstacle]
    documents = zoo.Table("docs", (zoo.Column("j", "json", ("'{}'",)),))
    partial = database.kind == "mysql" and server_of(database).version >= (8, 0)
    with contextlib.closing(RollbackBench(database, zoo.statements([*tables, *[documents] * partial]))) as bench:
        for table in tables:
            before = bench.head()
            for statement in table.rows():
                bench.sql(statement)
            plan = bench.plan("rollback", before)
            assert {o.code for o in plan.event.obstacles} == {table.obstacle}
            assert all(o.hint for o in plan.event.obstacles)
        if partial:
            bench.sql('INSERT INTO docs VALUES (1, \'{"a": 1, "b": "......................................"}\')')
            before = bench.head()
            bench.sql("SET SESSION binlog_row_value_options = 'PARTIAL_JSON'")
            bench.sql("UPDATE docs SET j = json_set(j, '$.a', 2)")
            bench.sql("SET SESSION binlog_row_value_options = ''")
            (obstacle,) = bench.plan("rollback", before).event.obstacles
            assert obstacle.code == "partial-image"
            assert "binlog_row_value_options" in obstacle.hint


@pytest.mark.parametrize("database", ["mariadb-10.11", "mysql-9"], indirect=True)
def test_text_that_is_none_goes_back_and_forth(database: DatabaseServer) -> None:
    """Bytes that no client could have put into a column of this character set, but a replica or an import did."""
    tables = (zoo.Table("broken", (
        zoo.Column("u", "varchar(20) character set utf8mb4", ("'x'",)), zoo.Column("a", "char(8) character set ascii", ("'y'",)),
        zoo.Column("w", "varchar(20) character set utf16", ("'z'",)),
    )),)  # fmt: skip
    with contextlib.closing(RollbackBench(database, zoo.statements(tables))) as bench:
        bench.sql(f"USE {zoo.DATABASE}")
        bench.sql(tables[0].insert(1, ["'x'", "'y'", "'z'"]))
        empty = bench.head()
        recorded = bench.log.recorded[empty - 1]
        (batch,) = native_batches([(recorded.preamble, recorded.payload or b"")], "redo")
        version = 1 if batch.rows_event[4] < 30 else 2
        image = bytes(batch.rows_event[19 + len(rows_head(1, version, 4, None, b"\x0f")) :])
        assert image.endswith(b"\x01x\x01y\x02\0z")
        broken = image[:1] + b"\2\0\0\0" + b"\x03\xff\xfe\xc3" + b"\x02\x80y" + b"\x03\xd8\x00A"
        events = batch.rows_event[: -len(image)][19:] + broken
        worse = batch.__class__(
            batch.table_map_event, encode_event(batch.rows_event[4], events), batch.table, "insert", 1
        )
        bench.sql(binlog_statement(recorded.preamble, []).decode())
        if database.kind == "mysql":
            bench.sql("SET gtid_next = 'AUTOMATIC'")
        bench.sql(binlog_statement(None, [worse]).decode())
        full, state = bench.head(), zoo.contents(bench.admin, tables[0])
        (change,) = decode_step(bench.log.recorded[full - 1].preamble, bench.log.recorded[full - 1].payload or b"")
        assert change.after is not None
        assert change.after[1] == Undecoded(b"\xff\xfe\xc3", "utf8mb4")
        assert display(change.after[1], change.columns[1]) == "0xfffec3"
        assert state[1][1:] == ("FFFEC3", "8079", "D80041")
        bench.run(bench.plan("rollback", empty))
        assert len(zoo.contents(bench.admin, tables[0])) == 1
        bench.run(bench.plan("forward", full))
        assert zoo.contents(bench.admin, tables[0]) == state
