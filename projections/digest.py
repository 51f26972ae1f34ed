"""What a view says, as one number: equal digests at equal cuts mean equal rows.

The digest of a table is BLAKE3-256 over a JSON line (table, columns in order, primary key) and its rows in primary-key
order (texts by Unicode code point: collation C). A row is the number of its columns (u16), then for each its length in
bytes (i32, -1 for NULL) and its value: text in UTF-8, bigint as 8 bytes, bytea as it is, all big-endian; after the
last row comes -1 (i16). That is PostgreSQL's binary COPY format without its header (PostgreSQL manual, COPY, "Binary
Format"), so the server writes it. The digest of a view is BLAKE3-256 over a JSON line (name, version) and its tables'
digests by table name.

The *cut* is how far the view had read each partition, of the topics with these ids. Tables and topics that only
`health` feeds are in neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from blake3 import blake3
from psycopg import sql

from projections import generations, offsets
from projections.database import Connection, live_schema
from projections.errors import ProjectionError
from projections.log import is_ephemeral
from projections.offsets import Cut
from projections.views.base import View, canonical

_HEADER = 19  # signature (11 bytes), flags (4), length of the header's extension (4), which is 0
_TYPES = {"text", "bigint", "bytea"}
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Digest:
    """A view's digest (64 hexadecimal digits) at a cut. `tables` has each table's own, `rows` how many rows it has."""

    view: str
    version: int
    generation: int
    cut: Cut
    topics: Mapping[str, str]
    digest: str
    tables: Mapping[str, str]
    rows: Mapping[str, int]

    def same_as(self, other: Digest) -> bool:
        """Whether both say the same. Raises `ProjectionError` (`cut-differs`) when they are not of the same moment."""
        if (self.view, self.cut, self.topics) != (other.view, other.cut, other.topics):
            raise ProjectionError("cut-differs", f"digests of view {self.view} at different cuts do not compare")
        return self.version == other.version and self.digest == other.digest

    def to_json(self) -> str:
        return canonical(
            {
                "view": self.view,
                "version": self.version,
                "generation": self.generation,
                "cut": [[topic, partition, at] for (topic, partition), at in sorted(self.cut.items())],
                "topics": dict(self.topics),
                "digest": self.digest,
                "tables": dict(self.tables),
                "rows": dict(self.rows),
            }
        )

    @staticmethod
    def from_json(stored: str) -> Digest:
        raw = json.loads(stored)
        cut = {(topic, partition): at for topic, partition, at in raw.pop("cut")}
        return Digest(**raw, cut=cut)


def digest(conn: Connection, view: View) -> Digest:
    """The live generation's digest, of one moment (repeatable read); processors go on meanwhile. `conn` is in
    autocommit.

    Raises `ViewAbsent`, `ProjectionError`: `view-outdated`; `view-restless` when it is swapped again and again
    meanwhile.
    """
    for _ in range(_TRIES):
        generation = offsets.live_generation(conn, view.NAME)
        found = generations.status(conn, view.NAME)
        if found is None or found.version != view.VERSION:
            raise ProjectionError(
                "view-outdated",
                f"the tables of view {view.NAME} are of another version than this process",
                f"`holdfast projections rebuild {view.NAME}`",
            )
        try:
            answer = of_generation(conn, view, generation, live_schema(view.NAME))
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            offsets.live_generation(conn, view.NAME)  # dropped meanwhile: says so
            continue
        # Names are looked up as of now, rows as of the snapshot: were they of different generations, begin again.
        if offsets.live_generation(conn, view.NAME) == generation:
            return answer
    raise ProjectionError(
        "view-restless", f"view {view.NAME} was swapped {_TRIES} times while it was read", "try again"
    )


def of_generation(conn: Connection, view: View, generation: int, schema: str) -> Digest:
    """The digest of the generation whose tables are in `schema`, in a transaction of its own, or within the
    caller's."""
    if conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return _digest(conn, view, generation, schema)
    return _digest(conn, view, generation, schema)


def _digest(conn: Connection, view: View, generation: int, schema: str) -> Digest:
    cut = {p: at for p, at in offsets.read(conn, view.NAME, generation).items() if not is_ephemeral(p[0])}
    ids = {t: tid for t, tid in offsets.topic_ids(conn, view.NAME, generation).items() if not is_ephemeral(t)}
    whole = blake3(canonical([view.NAME, view.VERSION]).encode() + b"\n")
    tables, rows = {}, {}
    for table, key in sorted(view.TABLES.items()):
        tables[table], rows[table] = _table(conn, schema, table, key)
        whole.update(bytes.fromhex(tables[table]))
    return Digest(view.NAME, view.VERSION, generation, cut, ids, whole.hexdigest(), tables, rows)


def _table(conn: Connection, schema: str, table: str, key: tuple[str, ...]) -> tuple[str, int]:
    columns = conn.execute(
        """
        SELECT column_name, data_type FROM information_schema.columns
        WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position
        """,
        (schema, table),
    ).fetchall()
    if not columns:
        raise psycopg.errors.UndefinedTable(f"{schema}.{table}")
    names = [name for name, _ in columns]
    assert {kind for _, kind in columns} <= _TYPES, f"{table} has a column whose bytes are not defined here"
    hashed = blake3(canonical([table, names, list(key)]).encode() + b"\n")
    order = sql.SQL(", ").join(
        sql.SQL('{} COLLATE "C"').format(sql.Identifier(k)) if dict(columns)[k] == "text" else sql.Identifier(k)
        for k in key
    )
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(schema, table), order
    )
    with conn.cursor() as cur:
        skip = _HEADER
        with cur.copy(query) as copy:
            for chunk in copy:
                hashed.update(chunk[skip:])
                skip = max(0, skip - len(chunk))
        return hashed.hexdigest(), cur.rowcount
