"""The SQL of the guard: tables that hold what a plan expects, and the questions that compare them with the source.

`BINLOG` finds rows by key and compares nothing else, so what is to be changed is compared first: the expected images are
loaded natively into a table of the same layout (`CREATE TABLE … LIKE`), and joined with the real one in key order, row by
row, with locks. Values are compared as they are stored: collations that call `a` and `A` equal do not.

Pure: builds text, runs nothing. One plan has these guard tables for each table it changes:

    before   rows that must be there now, as they are expected
    after    rows that will be inserted, where foreign keys want to know whether their parents exist afterwards
             (that their keys are free the server finds out by itself; `after` then tells what stands there)
    removed  rows whose referenced columns' values go away: no child may point at them

and for changes by bound statements (`bound`), where everything that is written comes from a guard table:

    deleted  keys of rows that go
    updated  rows that change, as they will be
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from agents.mysql.definitions import quoted
from agents.rollback.schema import ColumnDefinition, Definition, ForeignKey

OWN_SCHEMA: Final = "holdfast"
GUARD_PREFIX: Final = "guard_"
Role = Literal["before", "after", "removed", "deleted", "updated"]

# Statements that make the schema. Their first words are what `agents.rollback.fold.own_definition` knows them by.
SCHEMA_DDL: Final = "CREATE DATABASE IF NOT EXISTS `holdfast`"
MARKER_DDL: Final = (
    "CREATE TABLE IF NOT EXISTS `holdfast`.`marker` (plan varchar(36) CHARACTER SET ascii NOT NULL PRIMARY KEY,"
    " digest varbinary(32) NOT NULL, kind varchar(16) CHARACTER SET ascii NOT NULL, at_us bigint NOT NULL) ENGINE=InnoDB"
)


def guard_name(plan: str, table: int, role: Role) -> str:
    """The name of a guard table, unquoted and without schema. Unique to the plan, at most 64 characters."""
    return f"{GUARD_PREFIX}{plan.replace('-', '')}_{table}{role[0]}"


def temporary(definition: Definition, name: str, columns: Sequence[str], *, keyed: bool) -> str:
    """Makes a temporary guard table: plain columns of the same types, and the key, so that rows are found by it."""
    text = f"CREATE TEMPORARY TABLE {quoted(OWN_SCHEMA, name)}"
    if keyed and definition.key is not None:
        types = {c.name: c.type.lower() for c in definition.columns}
        long = [types[n].split("(")[0].endswith(("blob", "text")) for n in definition.key[1]]
        parts = ", ".join(quoted(n) + ("(100)" if cut else "") for n, cut in zip(definition.key[1], long, strict=True))
        text += f" ({'KEY' if any(long) else 'PRIMARY KEY'} ({parts}))"
    return f"{text} ENGINE = InnoDB SELECT {', '.join(map(quoted, columns))} FROM {quoted(*definition.name)} LIMIT 0"


def drop_temporary(name: str) -> str:
    return f"DROP TEMPORARY TABLE IF EXISTS {quoted(OWN_SCHEMA, name)}"


def insert_head(name: str, columns: Sequence[str]) -> bytes:
    return f"INSERT INTO {quoted(OWN_SCHEMA, name)} ({', '.join(map(quoted, columns))}) VALUES ".encode()


def _written(definition: Definition) -> list[ColumnDefinition]:
    return [c for c in definition.columns if c.generated is None]


def _copied(column: ColumnDefinition) -> str:
    """A guard's value of this column as it is to be written: ENUM and SET by number, since by name an empty member of a SET
    is no member."""
    name = f"g.{quoted(column.name)}"
    return f"CAST({name} AS UNSIGNED)" if _kind(column) in ("enum", "set") else name


def _kind(column: ColumnDefinition) -> str:
    return column.type.lower().split("(")[0].split()[0]


def has_blob_key(definition: Definition) -> bool:
    """The key that rows are found by holds the beginning of a BLOB or TEXT."""
    _, key = _key(definition)
    return any(_kind(c).endswith(("blob", "text")) for c in definition.columns if c.name in key)


def delete(definition: Definition, deleted: str) -> str:
    """Deletes the rows of a guard, each found by its key."""
    index, key = _key(definition)
    return (
        f"DELETE t FROM {quoted(OWN_SCHEMA, deleted)} AS g STRAIGHT_JOIN {quoted(*definition.name)} AS t"
        f" FORCE INDEX FOR JOIN ({quoted(index)}) ON {_on('t', key, 'g', key)}"
    )


def update(definition: Definition, updated: str) -> str:
    """Sets every column of the rows of a guard: a column left out might be set by the server (ON UPDATE)."""
    index, key = _key(definition)
    values = ", ".join(f"t.{quoted(c.name)} = {_copied(c)}" for c in _written(definition) if c.name not in key)
    return (
        f"UPDATE {quoted(OWN_SCHEMA, updated)} AS g STRAIGHT_JOIN {quoted(*definition.name)} AS t"
        f" FORCE INDEX FOR JOIN ({quoted(index)}) ON {_on('t', key, 'g', key)} SET {values}"
    )


def insert(definition: Definition, after: str) -> str:
    written = _written(definition)
    columns = ", ".join(quoted(c.name) for c in written)
    values = ", ".join(map(_copied, written))
    return f"INSERT INTO {quoted(*definition.name)} ({columns}) SELECT {values} FROM {quoted(OWN_SCHEMA, after)} AS g"


def same(left: str, right: str, column: ColumnDefinition) -> str:
    """An expression that is true when both sides of this column are stored alike, NULL included."""
    name = quoted(column.name)
    a, b = f"{left}.{name}", f"{right}.{name}"
    kind = _kind(column)
    if kind in ("enum", "set"):
        return f"{a} + 0 <=> {b} + 0"
    if column.charset is not None or kind in ("binary", "varbinary") or kind.endswith(("blob", "text", "char")):
        return f"BINARY {a} <=> BINARY {b}"
    return f"{a} <=> {b}"


def all_same(left: str, right: str, definition: Definition) -> str:
    """The same for all columns that are stored."""
    return " AND ".join(same(left, right, c) for c in definition.columns if c.generated != "virtual")


def _on(left: str, left_columns: Iterable[str], right: str, right_columns: Iterable[str]) -> str:
    pairs = zip(left_columns, right_columns, strict=True)
    return " AND ".join(f"{left}.{quoted(a)} = {right}.{quoted(b)}" for a, b in pairs)


def _key(definition: Definition) -> tuple[str, tuple[str, ...]]:
    if definition.key is None:
        raise ValueError(f"{definition.text} has no key")
    return definition.key


def _joined(definition: Definition, guard: str, alias: str) -> str:
    """`guard AS g LEFT JOIN table AS t` by key, each guard row looked up in the table, in the guard's order."""
    index, key = _key(definition)
    return (
        f"{quoted(OWN_SCHEMA, guard)} AS {alias} LEFT JOIN {quoted(*definition.name)} AS t"
        f" FORCE INDEX FOR JOIN ({quoted(index)}) ON {_on('t', key, alias, key)}"
    )


def compare(definition: Definition, before: str) -> str:
    """Counts (expected, missing, different) and locks every row found, and the place of each one missing."""
    _, key = _key(definition)
    there = f"t.{quoted(key[0])}"
    return (
        f"SELECT COUNT(*), COALESCE(SUM({there} IS NULL), 0),"
        f" COALESCE(SUM({there} IS NOT NULL AND NOT ({all_same('g', 't', definition)})), 0)"
        f" FROM {_joined(definition, before, 'g')} FOR UPDATE"
    )


def differences(definition: Definition, before: str, most: int) -> str:
    """At most `most` rows that differ or are missing: all columns expected, then all columns found."""
    _, key = _key(definition)
    there = f"t.{quoted(key[0])}"
    columns = ", ".join(f"{side}.{quoted(c.name)}" for side in "gt" for c in definition.columns)
    return (
        f"SELECT {columns} FROM {_joined(definition, before, 'g')}"
        f" WHERE {there} IS NULL OR NOT ({all_same('g', 't', definition)}) LIMIT {most} FOR UPDATE"
    )


def occupied(definition: Definition, after: str, before: str | None, most: int) -> str:
    """Rows of the source whose key the plan inserts though it does not remove them: all their columns."""
    index, key = _key(definition)
    columns = ", ".join(f"t.{quoted(c.name)}" for c in definition.columns)
    text = (
        f"SELECT {columns} FROM {quoted(OWN_SCHEMA, after)} AS g STRAIGHT_JOIN {quoted(*definition.name)} AS t"
        f" FORCE INDEX FOR JOIN ({quoted(index)}) ON {_on('t', key, 'g', key)}"
    )
    if before is not None:
        text += (
            f" LEFT JOIN {quoted(OWN_SCHEMA, before)} AS b ON {_on('b', key, 'g', key)}"
            f" WHERE b.{quoted(key[0])} IS NULL"
        )
    return f"{text} LIMIT {most}"


def children(child: Definition, fk: ForeignKey, removed: str, child_before: str | None, most: int) -> str:
    """Children that point at rows which go away and that the plan does not change: all their columns. Locks the range."""
    columns = ", ".join(f"c.{quoted(c.name)}" for c in child.columns)
    text = (
        f"SELECT {columns} FROM {quoted(OWN_SCHEMA, removed)} AS r STRAIGHT_JOIN {quoted(*child.name)} AS c"
        f" ON {_on('c', fk.columns, 'r', fk.references)}"
    )
    if child_before is not None:
        _, key = _key(child)
        text += (
            f" LEFT JOIN {quoted(OWN_SCHEMA, child_before)} AS b ON {_on('b', key, 'c', key)}"
            f" WHERE b.{quoted(key[0])} IS NULL"
        )
    return f"{text} LIMIT {most} FOR UPDATE"


def still_pointing(child: Definition, fk: ForeignKey, parent: Definition, removed: str, most: int) -> str:
    """After the changes: children that point at a row which is gone."""
    columns = ", ".join(f"c.{quoted(c.name)}" for c in child.columns)
    return (
        f"SELECT {columns} FROM {quoted(OWN_SCHEMA, removed)} AS r STRAIGHT_JOIN {quoted(*child.name)} AS c"
        f" ON {_on('c', fk.columns, 'r', fk.references)}"
        f" LEFT JOIN {quoted(*parent.name)} AS p ON {_on('p', fk.references, 'r', fk.references)}"
        f" WHERE p.{quoted(fk.references[0])} IS NULL LIMIT {most} LOCK IN SHARE MODE"
    )


def without_parent(child: Definition, fk: ForeignKey, after: str, most: int) -> str:
    """After the changes: inserted rows whose parent is not there. Locks the parents against being deleted."""
    columns = ", ".join(f"g.{quoted(c.name)}" for c in child.columns)
    pointing = " AND ".join(f"g.{quoted(c)} IS NOT NULL" for c in fk.columns)
    return (
        f"SELECT {columns} FROM {quoted(OWN_SCHEMA, after)} AS g"
        f" LEFT JOIN {quoted(fk.schema, fk.table)} AS p ON {_on('p', fk.references, 'g', fk.columns)}"
        f" WHERE {pointing} AND p.{quoted(fk.references[0])} IS NULL LIMIT {most} LOCK IN SHARE MODE"
    )


def drop(names: Sequence[str]) -> str:
    return "DROP TABLE IF EXISTS " + ", ".join(quoted(OWN_SCHEMA, n) for n in names)
