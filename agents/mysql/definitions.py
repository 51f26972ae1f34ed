"""Reading table definitions of a server: the canonical form in which schemas are recorded and compared.

Works on any connection — the source, a rollback's target, the scratch server — and changes nothing on it. The canonical
JSON is that of docs/design.md; counters (AUTO_INCREMENT) and row counts are no part of a definition. Base tables,
system-versioned tables and sequences have one; views, routines and events have none.

What an account may not see is missing from information_schema without a word. Foreign keys are told from two tables, of
which one needs more than SELECT, so that gap is found and raised; triggers need the TRIGGER privilege, which preflight
demands.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pymysql
from blake3 import blake3
from pymysql.cursors import Cursor

from agents.errors import AgentError
from agents.mysql.dialects import dialect
from streams.events import TableDefinition

SYSTEM_SCHEMAS = ("mysql", "sys", "information_schema", "performance_schema", "holdfast")

TableName = tuple[str, str]

# With more tables than this, all are asked for and the rest dropped: a question about one table opens that table only.
_ASK_EACH = 32
_COUNTER = re.compile(r"^(\) ENGINE=\S+) AUTO_INCREMENT=\d+", re.MULTILINE)
# A remote table's connection string holds a password, and definitions go into the log.
_CONNECTION = re.compile(r"^(\) ENGINE=.* CONNECTION=)'(?:[^'\\]|\\.|'')*'", re.MULTILINE)
_TABLE_TYPES = ("BASE TABLE", "SYSTEM VERSIONED", "SEQUENCE")


def read_definitions(
    conn: pymysql.Connection[Any], tables: Collection[TableName] | None = None
) -> list[TableDefinition]:
    """Definitions of `tables` ((schema, table) each), or of all outside system schemas; missing ones are left out.

    By schema and table, ascending. Reads several statements: what changes meanwhile may be half seen unless the caller
    holds the tables (an open transaction that touched them does). Raises `AgentError` (`privilege-missing`).
    """
    wanted = None if tables is None else frozenset(tables)
    if wanted is not None and not wanted:
        return []
    with _plain_session(conn):
        facts = _Facts(conn, wanted)
        names = sorted(facts.tables)
        return [_definition(conn, name, facts) for name in names]


@contextlib.contextmanager
def _plain_session(conn: pymysql.Connection[Any]) -> Iterator[None]:
    """How a definition is written depends on the session: give it ours, and put back what it had."""
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SELECT @@SESSION.sql_mode, @@SESSION.time_zone, @@SESSION.sql_quote_show_create")
        had = cursor.fetchone()
        cursor.execute("SET SESSION sql_mode = '', time_zone = '+00:00', sql_quote_show_create = 1")
        try:
            yield
        finally:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                cursor.execute("SET SESSION sql_mode = %s, time_zone = %s, sql_quote_show_create = %s", had)


def fingerprint(definition: str) -> bytes:
    """BLAKE3-256 of a canonical definition."""
    return blake3(definition.encode()).digest()


def schema_version(definitions: Iterable[TableDefinition]) -> bytes:
    """What identifies a whole schema (`SchemaRecorded.version`).

    BLAKE3-256 over the tables in ascending order of (schema, table), as UTF-8: schema, NUL, table, NUL, fingerprint.
    """
    digest = blake3()
    for d in sorted(definitions, key=lambda d: (d.schema.encode(), d.table.encode())):
        digest.update(d.schema.encode() + b"\0" + d.table.encode() + b"\0" + d.fingerprint)
    return digest.digest()


def quoted(*names: str) -> str:
    """`schema`.`table` as SQL."""
    return ".".join("`" + n.replace("`", "``") + "`" for n in names)


class _Facts:
    """Rows of information_schema about the wanted tables, by table."""

    def __init__(self, conn: pymysql.Connection[Any], wanted: frozenset[TableName] | None) -> None:
        self._conn = conn
        self._wanted = wanted
        # A schema that is named is looked into; any other way the server opens all it has, its own views too.
        self._schemas = self._all_schemas()
        self.tables = {
            (s, t): rest
            for s, t, *rest in self._rows(
                "TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE, TABLE_COLLATION, CREATE_OPTIONS",
                "TABLES",
                "TABLE_SCHEMA",
                "TABLE_NAME",
            )
            if rest[0] in _TABLE_TYPES
        }
        self.columns = self._by_table(
            "TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, EXTRA,"
            f" {dialect(conn).generated}, CHARACTER_SET_NAME, COLLATION_NAME, ORDINAL_POSITION",
            "COLUMNS",
            order="ORDINAL_POSITION",
        )
        self.keys = self._by_table(
            "TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, COLUMN_NAME, SUB_PART, SEQ_IN_INDEX",
            "STATISTICS",
            also="NON_UNIQUE = 0",
            order="INDEX_NAME, SEQ_IN_INDEX",
        )
        self.references = self._by_table(
            "TABLE_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME,"
            " REFERENCED_COLUMN_NAME, ORDINAL_POSITION",
            "KEY_COLUMN_USAGE",
            also="REFERENCED_TABLE_NAME IS NOT NULL",
            order="CONSTRAINT_NAME, ORDINAL_POSITION",
        )
        self.triggers = self._by_table(
            "EVENT_OBJECT_SCHEMA, EVENT_OBJECT_TABLE, TRIGGER_NAME, ACTION_TIMING, EVENT_MANIPULATION,"
            " ACTION_STATEMENT",
            "TRIGGERS",
            "EVENT_OBJECT_SCHEMA",
            "EVENT_OBJECT_TABLE",
        )
        self._read_rules()

    def _all_schemas(self) -> list[str]:
        named = {schema for schema, _ in self._wanted or ()}
        with self._conn.cursor(Cursor) as cursor:
            cursor.execute("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")
            return sorted(str(s) for (s,) in cursor.fetchall() if s not in SYSTEM_SCHEMAS or s in named)

    def _read_rules(self) -> None:
        """Rules of all foreign keys, which serve both ends: those of a child, and who references a parent."""
        rows: list[tuple[Any, ...]] = []
        with self._conn.cursor(Cursor) as cursor:
            for schema in self._schemas:
                cursor.execute(
                    "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, UNIQUE_CONSTRAINT_SCHEMA,"
                    " REFERENCED_TABLE_NAME, DELETE_RULE, UPDATE_RULE FROM information_schema.REFERENTIAL_CONSTRAINTS"
                    " WHERE CONSTRAINT_SCHEMA = %s",
                    (schema,),
                )
                rows += cursor.fetchall()
        self.rules = {(s, t, c): (on_delete, on_update) for s, t, c, _, _, on_delete, on_update in rows}
        self.referenced: dict[TableName, list[list[str]]] = defaultdict(list)
        for child_schema, child, constraint, schema, table, on_delete, on_update in rows:
            self.referenced[schema, table].append([child_schema, child, constraint, on_delete, on_update])

    def _by_table(
        self, columns: str, view: str, schema: str = "TABLE_SCHEMA", table: str = "TABLE_NAME", **more: str
    ) -> Mapping[TableName, list[Sequence[Any]]]:
        found: dict[TableName, list[Sequence[Any]]] = defaultdict(list)
        for s, t, *rest in self._rows(columns, view, schema, table, **more):
            found[s, t].append(rest)
        return found

    def _rows(
        self, columns: str, view: str, schema: str, table: str, also: str = "", order: str = ""
    ) -> list[tuple[Any, ...]]:
        ask = f"SELECT {columns} FROM information_schema.{view} WHERE " + (f"{also} AND " if also else "")
        tail = f" ORDER BY {order}" if order else ""
        wanted = self._wanted
        rows: list[tuple[Any, ...]] = []
        with self._conn.cursor(Cursor) as cursor:
            if wanted is not None and len(wanted) <= _ASK_EACH:
                for name in sorted(wanted):
                    cursor.execute(f"{ask}{schema} = %s AND {table} = %s{tail}", name)
                    rows += cursor.fetchall()
            else:
                for one in self._schemas:
                    cursor.execute(f"{ask}{schema} = %s{tail}", (one,))
                    rows += cursor.fetchall()
        return rows if wanted is None else [r for r in rows if (r[0], r[1]) in wanted]


def _definition(conn: pymysql.Connection[Any], name: TableName, facts: _Facts) -> TableDefinition:
    kind, engine, collation, options = facts.tables[name]
    columns = [_column(row) for row in facts.columns[name]]
    named = {c["name"] for c in columns}
    keys: dict[str, list[str]] = defaultdict(list)
    prefixes: dict[str, dict[str, int]] = defaultdict(dict)
    # An expression's values are not in the rows: nothing is found by such a key.
    by_expression = {key for key, column, _, _ in facts.keys[name] if column is None}
    for key, column, prefix, _ in facts.keys[name]:
        if column not in named or key in by_expression:
            continue  # the hidden row end that system versioning adds to each unique key
        keys[key].append(column)
        if prefix is not None:
            prefixes[key][column] = int(prefix)
    definition = {
        "engine": engine,
        "collation": collation,
        "columns": columns,
        "primary_key": keys.pop("PRIMARY", []),
        "unique_keys": dict(keys),
        "foreign_keys": _foreign_keys(name, facts),
        "referenced_by": sorted(facts.referenced.get(name, [])),
        "triggers": {
            trigger: {"timing": timing, "event": event, "statement": statement}
            for trigger, timing, event, statement in facts.triggers[name]
        },
        "partitioned": "partitioned" in (options or "").split(),
        "system_versioned": kind == "SYSTEM VERSIONED",
    }
    if prefixes:
        definition["prefixes"] = dict(prefixes)
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return TableDefinition(*name, _ddl(conn, name, kind), text, fingerprint(text))


def _column(row: Sequence[Any]) -> dict[str, Any]:
    name, declared, nullable, default, extra, generated, expression, charset, collation, _ = row
    extra = (extra or "").strip()
    return {
        "name": name,
        "type": declared,
        "nullable": nullable == "YES",
        "default": default,
        "extra": extra,
        "generated": None if generated != "ALWAYS" else "stored" if "STORED" in extra.upper() else "virtual",
        "expression": expression if generated == "ALWAYS" else None,
        "invisible": "INVISIBLE" in extra.upper().replace(",", " ").split(),
        "charset": charset,
        "collation": collation,
    }


def _foreign_keys(name: TableName, facts: _Facts) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for constraint, column, schema, table, referenced, _ in facts.references[name]:
        rules = facts.rules.get((*name, constraint))
        if rules is None:
            raise AgentError(
                "privilege-missing",
                f"the account may not see the foreign keys of {quoted(*name)}",
                "GRANT TRIGGER ON *.* to the account: information_schema shows them to none who may only SELECT",
            )
        entry = found.setdefault(
            constraint,
            {
                "columns": [],
                "schema": schema,
                "table": table,
                "references": [],
                "on_delete": rules[0],
                "on_update": rules[1],
            },
        )
        entry["columns"].append(column)
        entry["references"].append(referenced)
    return found


def _ddl(conn: pymysql.Connection[Any], name: TableName, kind: str) -> str:
    what = "SEQUENCE" if kind == "SEQUENCE" else "TABLE"
    with conn.cursor(Cursor) as cursor:
        cursor.execute(f"SHOW CREATE {what} {quoted(*name)}")
        row = cursor.fetchone()
    assert row is not None
    return _CONNECTION.sub(r"\1''", _COUNTER.sub(r"\1", str(row[1])))
