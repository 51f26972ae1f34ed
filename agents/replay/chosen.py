"""The captured log less the rows of tables that nobody asked for: definitions of all tables, rows of some.

    GTID  map a  map b  rows a  rows b(end)  XID        as captured; a is wanted
    GTID  map a  rows a(end)  XID                       as served

All tables are there, so every definition change is the server's own doing; only the wanted ones have rows. What rows
depend on must be wanted as well, or the result would be wrong: the parents that a table's foreign keys point at, whose changes
cascade and are in no log, and tables under whose name its rows were before (`needed`). What moves rows in ways that are
not followed is refused. Each rows event that is left ends its statement and has its table map before it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from agents.errors import AgentError
from agents.replay.feed import Log
from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.binlog import table_map as maps
from streams.formats.binlog.ddl import ANSI_QUOTES, effect
from streams.formats.binlog.statements import classify

Name = tuple[str, str]

_header = Struct("<IBIIIH").pack
_STATEMENT_END: Final = 1
_ROWS: Final = frozenset({
    ev.WRITE_ROWS_V1, ev.UPDATE_ROWS_V1, ev.DELETE_ROWS_V1, ev.WRITE_ROWS, ev.UPDATE_ROWS, ev.DELETE_ROWS,
    ev.WRITE_ROWS_COMPRESSED_V1, ev.UPDATE_ROWS_COMPRESSED_V1, ev.DELETE_ROWS_COMPRESSED_V1,
    ev.WRITE_ROWS_COMPRESSED, ev.UPDATE_ROWS_COMPRESSED, ev.DELETE_ROWS_COMPRESSED, ev.PARTIAL_UPDATE_ROWS,
})  # fmt: skip
_QUERIES: Final = frozenset({ev.QUERY, ev.QUERY_COMPRESSED})
_MAY_MATTER: Final = re.compile(rb"rename|references|partition", re.IGNORECASE)
_NAME: Final = rb"(`(?:[^`]|``)+`|[\w$\x80-\xff]+)"
_REFERENCES: Final = re.compile(rb"\breferences\s+" + _NAME + rb"(?:\s*\.\s*" + _NAME + rb")?", re.IGNORECASE)
_MOVES_ROWS: Final = re.compile(rb"\b(?:exchange|convert)\s+(?:partition|table)\b", re.IGNORECASE)
_NOT_FOLLOWED: Final = "make a copy of the whole source (without --table)"


@dataclass(frozen=True, slots=True)
class Chosen:
    """`log` with the rows of the tables `wanted` alone; implements `agents.replay.feed.Log`."""

    log: Log
    wanted: frozenset[Name]

    def steps(self, lineage: str, first: int, last: int) -> Iterator[StepFragment]:
        """Raises `AgentError` (`tables-not-alone`) at a step whose rows were logged as a statement."""
        known: dict[int, bytes] = {}  # of the open step: table id → its map, as it is sent; empty when it is not wanted
        for fragment in self.log.steps(lineage, first, last):
            if fragment.accounts or fragment.payload is None:
                yield fragment
                continue
            if fragment.number == 0:
                known.clear()
            payload = self._less(fragment, known)
            if payload or fragment.last:
                yield replace(fragment, payload=payload)

    def _less(self, fragment: StepFragment, known: dict[int, bytes]) -> bytes:
        assert fragment.payload is not None
        described = ev.parse_format_description(fragment.preamble)
        out: list[bytes] = []
        for event in ev.iter_events(fragment.payload, described.has_checksum, expand=True):
            if event.type == ev.TABLE_MAP:
                table = maps.parse_table_map(event.body, described.mariadb)
                wanted = (table.schema, table.table) in self.wanted
                known[maps.table_id(event.body)] = _again(event, described.has_checksum) if wanted else b""
            elif event.type in _ROWS:
                before = known.get(maps.table_id(event.body))
                if before:
                    out += [before, _again(event, described.has_checksum, ends=True)]
            else:
                if event.type in _QUERIES:
                    _check(ev.parse_query(event.body, event.type), fragment.ordinal)
                out.append(_again(event, described.has_checksum))
        return b"".join(out)


def _again(event: ev.Event, checksum: bool, *, ends: bool = False) -> bytes:
    """An event as it stands in a log; a rows event that `ends` its statement."""
    body = bytes(event.body)
    if ends:
        body = body[:6] + (int.from_bytes(body[6:8], "little") | _STATEMENT_END).to_bytes(2, "little") + body[8:]
    length = ev.HEADER_SIZE + len(body) + (ev.CHECKSUM_SIZE if checksum else 0)
    made = _header(event.timestamp, event.type, event.server_id, length, event.next_pos, event.flags) + body
    return made + zlib.crc32(made).to_bytes(4, "little") if checksum else made


def _check(query: ev.Query, ordinal: int) -> None:
    if classify(query.sql) == "dml":
        raise AgentError(
            "tables-not-alone",
            f"step {ordinal} changed rows by a logged statement, whose effect depends on tables that are not copied",
            _NOT_FOLLOWED,
        )


def needed(
    log: Log, lineage: str, ordinal: int, asked: Iterable[Name], parents: Iterable[tuple[Name, Name]]
) -> frozenset[Name]:
    """The tables whose rows must be there for `asked` to be right after step `ordinal`: more rather than less.

    `parents`: (table, table that it points at) where the lineage begins. Raises `AgentError` (`tables-not-alone`) where rows
    moved between tables in a way that is not followed.
    """
    follows: list[tuple[Name, Name]] = list(parents)  # whoever wants the first needs the second
    moved: list[tuple[bytes, int]] = []
    for query, step in _definitions(log, lineage, ordinal):
        told = effect(query.sql, query.database, ansi_quotes=bool((query.sql_mode or 0) & ANSI_QUOTES))
        follows += [(new, old) for old, new in told.renamed]
        if _MOVES_ROWS.search(query.sql) or (told.tables is None and b"rename" in query.sql.lower()):
            moved.append((query.sql, step))
        pointed = [_name(m, query.database) for m in _REFERENCES.finditer(query.sql)]
        if pointed:
            words = _words(query.sql)
            follows += [(by, to) for by in _spoken(words, query.database, follows, asked) for to in pointed]
    wanted = set(asked)
    while more := {old for new, old in follows if new in wanted} - wanted:
        wanted |= more
    for sql, step in moved:
        spoken = [f"{schema}.{table}" for schema, table in wanted if table in _words(sql)]
        if spoken:
            raise AgentError(
                "tables-not-alone", f"step {step} moves rows between tables, {', '.join(sorted(spoken))} among them",
                _NOT_FOLLOWED,
            )  # fmt: skip
    return frozenset(wanted)


def _definitions(log: Log, lineage: str, ordinal: int) -> Iterator[tuple[ev.Query, int]]:
    """Statements that may rename tables, point at them, or move rows between them, with their steps."""
    for fragment in log.steps(lineage, 1, ordinal) if ordinal else ():
        payload = fragment.payload
        if payload is None or fragment.accounts:
            continue
        described = ev.parse_format_description(fragment.preamble)
        if _MAY_MATTER.search(payload) is None and not _hides(payload):
            continue
        for event in ev.iter_events(payload, described.has_checksum, expand=True):
            if event.type in _QUERIES:
                query = ev.parse_query(event.body, event.type)
                if _MAY_MATTER.search(query.sql) and classify(query.sql) == "ddl":
                    yield query, fragment.ordinal


def _hides(payload: bytes) -> bool:
    """Whether a statement in it may be compressed."""
    at = 0
    while at + ev.HEADER_SIZE <= len(payload):
        if payload[at + 4] in (ev.QUERY_COMPRESSED, ev.TRANSACTION_PAYLOAD):
            return True
        at += int.from_bytes(payload[at + 9 : at + 13], "little")
    return False


def _spoken(
    words: frozenset[str], database: str, follows: Iterable[tuple[Name, Name]], asked: Iterable[Name]
) -> set[Name]:
    """Tables that a statement may be about: names that are known, or in its own database, among its words."""
    known = {name for pair in follows for name in pair} | set(asked)
    return {name for name in known if name[1] in words} | {(database, word) for word in words}


def _words(sql: bytes) -> frozenset[str]:
    found = re.findall(_NAME, sql)
    return frozenset(_plain(word) for word in found)


def _name(found: re.Match[bytes], database: str) -> Name:
    first, second = found[1], found[2]
    return (_plain(first), _plain(second)) if second is not None else (database, _plain(first))


def _plain(word: bytes) -> str:
    if word.startswith(b"`"):
        word = word[1:-1].replace(b"``", b"`")
    return word.decode("utf-8", "surrogateescape")
