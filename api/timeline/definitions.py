"""Table definitions as of a step, from `schema.<source>`: names, declared types and keys that the log may not carry."""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streams.consume import ConsumeError, read_topic
from streams.events import SchemaRecorded
from streams.formats.binlog.table_map import Declared, TableMap, with_declared
from streams.formats.errors import FormatError
from streams.settings import KafkaSettings
from streams.topics import topic_name

_FRESH_S = 2.0
_FRESH_UNKNOWN_S = 0.1  # of a table that is not known, as one that was made just now
_MOST_FILLED = 1024
Describe = Callable[[TableMap], TableMap]
TableName = tuple[str, str]


@dataclass(slots=True)
class _Versions:
    """A table's definitions by the step they hold from, ascending; None: it was dropped."""

    ordinals: list[int] = field(default_factory=list)
    definitions: list[dict[str, Any] | None] = field(default_factory=list)

    def put(self, ordinal: int, definition: dict[str, Any] | None) -> None:
        at = bisect_right(self.ordinals, ordinal)
        self.ordinals.insert(at, ordinal)
        self.definitions.insert(at, definition)

    def at(self, ordinal: int) -> dict[str, Any] | None:
        at = bisect_right(self.ordinals, ordinal)
        return self.definitions[at - 1] if at else None


class Definitions:
    """What `schema.<source>` says. Read when first asked for, then what has come since, every two seconds at most; for a
    table that is not known yet ten times a second."""

    def __init__(self, kafka: KafkaSettings, source: str) -> None:
        self._kafka = kafka
        self._topic = topic_name(kafka.prefix, "schema", source)
        self._lock = threading.Lock()
        self._next = 0
        self._read_at = float("-inf")
        self._tables: dict[tuple[str, TableName], _Versions] = {}
        self._filled: dict[tuple[TableMap, int], tuple[dict[str, Any], TableMap]] = {}

    def table(self, lineage: str, name: TableName, ordinal: int) -> dict[str, Any] | None:
        """A table's canonical definition right after step `ordinal`; None when it is not known."""
        with self._lock:
            self._refresh(_FRESH_S)
            found = self._known(lineage, name, ordinal)
            if found is None:
                self._refresh(_FRESH_UNKNOWN_S)
                found = self._known(lineage, name, ordinal)
            return found

    def _known(self, lineage: str, name: TableName, ordinal: int) -> dict[str, Any] | None:
        versions = self._tables.get((lineage, name))
        return versions.at(ordinal) if versions else None

    def describe(self, lineage: str, ordinal: int) -> Describe:
        """Fills table maps of step `ordinal` in; one that does not fit is left as the log has it."""

        def described(table_map: TableMap) -> TableMap:
            definition = self.table(lineage, table_map.key, ordinal)
            return table_map if definition is None else self._fill(table_map, definition)

        return described

    def _fill(self, table_map: TableMap, definition: dict[str, Any]) -> TableMap:
        """The same map for the same question, since what is compiled for reading rows is kept with it."""
        known = self._filled.get((table_map, id(definition)))
        if known is not None:
            return known[1]
        columns = [Declared(c["name"], c.get("type") or "", c.get("charset")) for c in definition.get("columns", ())]
        try:
            filled = with_declared(table_map, columns, definition.get("primary_key") or ())
        except FormatError:
            filled = table_map
        if len(self._filled) >= _MOST_FILLED:
            self._filled.clear()
        # The definition is kept too, or its id could come to mean another.
        self._filled[table_map, id(definition)] = (definition, filled)
        return filled

    def generated(self, lineage: str, name: TableName, ordinal: int) -> list[str]:
        """Columns that the server computes."""
        definition = self.table(lineage, name, ordinal) or {}
        return [c["name"] for c in definition.get("columns", ()) if c.get("generated")]

    def _refresh(self, age_s: float) -> None:
        """Read what has come, unless that was done `age_s` seconds ago or later."""
        if time.monotonic() - self._read_at < age_s:
            return
        try:
            for message in read_topic(self._kafka, self._topic, {0: self._next}):
                self._next = message.offset + 1
                if isinstance(message.event, SchemaRecorded):
                    self._take(message.event)
        except ConsumeError as error:
            if error.code != "topic-missing":
                raise
        self._read_at = time.monotonic()

    def _take(self, event: SchemaRecorded) -> None:
        lineage = event.lineage or ""
        for table in event.tables:
            versions = self._tables.setdefault((lineage, (table.schema, table.table)), _Versions())
            versions.put(event.ordinal, json.loads(table.definition))
        for dropped in event.dropped:
            schema, _, name = dropped.partition(".")
            self._tables.setdefault((lineage, (schema, name)), _Versions()).put(event.ordinal, None)
