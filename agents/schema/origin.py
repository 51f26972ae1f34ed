"""What the schema keeper asks of a source: its baseline's notes first, the server itself where those do not say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pymysql

from agents.baseline.manifest import Manifest, folder_of, objects, read_manifest
from agents.errors import AgentError, SourceUnavailable
from agents.mysql.connection import connect, error_of
from agents.mysql.definitions import SYSTEM_SCHEMAS, quoted, read_definitions
from agents.protocol import SourceSettings
from agents.schema.keeper import Origin
from streams.events import TableDefinition


class SourceOrigin(Origin):
    """`settings` is asked when the server itself must be, for it takes reading the log and opening a secret."""

    def __init__(self, data_dir: Path, source: str, lineage: str, settings: Callable[[], SourceSettings]) -> None:
        self._settings = settings
        self._baseline = _baseline_of(data_dir, source, lineage)

    def variables(self) -> Mapping[str, str]:
        if self._baseline is not None:
            return self._baseline[1].variables
        return {str(name): str(value) for name, value in self._ask("SHOW GLOBAL VARIABLES")}

    def databases(self) -> Mapping[str, str]:
        """As they are now, for a database's character set may have changed since the baseline; those that are gone as
        they were in the baseline."""
        found: dict[str, str] = {}
        if self._baseline is not None:
            found = {o.name: o.sql for o in objects(self._baseline[0]) if o.kind == "database"}
        with contextlib.suppress(SourceUnavailable):
            rows = self._ask(
                "SELECT SCHEMA_NAME, DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA"
            )
            for name, charset, collation in rows:
                if name not in SYSTEM_SCHEMAS:
                    found[name] = f"CREATE DATABASE {quoted(name)} CHARACTER SET {charset} COLLATE {collation}"
        return found

    def definitions(self) -> list[TableDefinition]:
        settings = self._settings()
        with contextlib.closing(connect(settings, "capture")) as conn:
            try:
                return read_definitions(conn)
            except (pymysql.err.MySQLError, OSError) as error:
                raise error_of(error, settings) from error

    def _ask(self, query: str) -> list[tuple[str, ...]]:
        settings = self._settings()
        with contextlib.closing(connect(settings, "capture")) as conn:
            try:
                with conn.cursor() as cursor:
                    cursor.execute(query)
                    return list(cursor.fetchall())
            except (pymysql.err.MySQLError, OSError) as error:
                raise error_of(error, settings) from error


def _baseline_of(data_dir: Path, source: str, lineage: str) -> tuple[Path, Manifest] | None:
    folder = folder_of(data_dir, source)
    for entry in folder.iterdir() if folder.is_dir() else ():
        if not entry.name.startswith("."):
            with contextlib.suppress(AgentError):
                manifest = read_manifest(entry)
                if manifest.lineage == lineage:
                    return entry, manifest
    return None
