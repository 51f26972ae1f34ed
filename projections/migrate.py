"""Migrations of the bookkeeping tables: numbered SQL files, applied once each, in order, one transaction each.

The views' own tables are not migrated: a changed view has a new `VERSION` and is rebuilt from the log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from blake3 import blake3

from projections.database import META, Connection
from projections.errors import ProjectionError
from projections.locks import migrating

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `checksum` is the BLAKE3-256 of its text, in hexadecimal."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return blake3(self.sql.encode()).hexdigest()


def known() -> list[Migration]:
    """The migrations that this Holdfast has, ascending and without gaps."""
    found = []
    for file in resources.files("projections").joinpath("migrations").iterdir():
        if match := _NAME.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    found.sort(key=lambda m: m.number)
    assert [m.number for m in found] == list(range(1, len(found) + 1)), "migrations are numbered without gaps"
    return found


def migrate(conn: Connection, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing (of `migrations`, all known ones by default), and return it. `conn` is in autocommit.

    Raises `ProjectionError`: `database-newer` when the database knows a migration that we do not, `migration-changed`
    when one that was applied read differently then. A crash leaves a migration applied with its record, or neither.
    """
    wanted = known() if migrations is None else migrations
    with migrating(conn):
        conn.execute(f"CREATE SCHEMA IF NOT EXISTS {META}")
        conn.execute(
            f"""
            CREATE TABLE IF NOT EXISTS {META}.migration (
                number bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL
            )
            """
        )
        rows = conn.execute(f"SELECT number, name, checksum FROM {META}.migration").fetchall()
        applied = {row[0]: (row[1], row[2]) for row in rows}
        _check(applied, wanted)
        missing = [m for m in wanted if m.number not in applied]
        for migration in missing:
            with conn.transaction():
                conn.execute(migration.sql.encode())
                conn.execute(
                    f"INSERT INTO {META}.migration (number, name, checksum) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.checksum),
                )
    return missing


def _check(applied: dict[int, tuple[str, str]], wanted: Sequence[Migration]) -> None:
    ours = {m.number: m for m in wanted}
    for number, (name, checksum) in sorted(applied.items()):
        if number not in ours:
            raise ProjectionError(
                "database-newer",
                f"the database has migration {number} ({name}), which this Holdfast does not know",
                "a newer Holdfast used this database: upgrade this one, or give it a database of its own",
            )
        if ours[number].checksum != checksum:
            raise ProjectionError(
                "migration-changed",
                f"migration {number} ({name}) was applied with another text",
                "restore the file as released; a released migration is never edited",
            )
