"""Steps that came after a plan was made: do they concern it?

Where the whole source was to be brought to a state, every later step of a user does. Else only those that touch the
plan's rows, change definitions, or cannot be looked into. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.rollback.fold import own_definition
from agents.rollback.plan import Plan
from agents.rollback.steps import Fragment
from streams.events import Problem
from streams.formats.binlog import events as ev
from streams.formats.binlog.ddl import ANSI_QUOTES, effect
from streams.formats.binlog.rows import KINDS, RowsEvent, iter_rows, layout_of, parse_rows
from streams.formats.binlog.statements import classify
from streams.formats.binlog.step import MARKER_TABLE, OWN_SCHEMA, marker_of
from streams.formats.binlog.table_map import TableMap, table_map_of

_MOST = 5
_ACCOUNT = "it changes accounts"


def look_through(plan: Plan, steps: Iterable[Fragment], *, whole_source: bool) -> list[Problem]:
    """What is in the way, a few steps of it at most."""
    out: list[Problem] = []
    maps: dict[bytes, TableMap] = {}
    for fragment in steps:
        if fragment.number == 0:
            maps.clear()
        why = _ACCOUNT
        if fragment.payload is not None and not fragment.accounts:
            why = _concern(plan, fragment, maps, whole_source=whole_source)
        if not why or (not whole_source and why == _ACCOUNT):
            continue
        code = "source-moved-on" if whole_source else "later-write"
        out.append(Problem(code, f"step {fragment.ordinal} came after the plan was made: {why}", _hint(whole_source)))
        if len(out) == _MOST:
            break
    return out


def _undoes(rows: RowsEvent, table_map: TableMap) -> bool:
    """Whether these marker rows are all of selective undos."""
    images = [after for _, after in iter_rows(rows, table_map)]
    return all(image is not None and marker_of(image, table_map)[1] for image in images)


def _redefines(plan: Plan, query: ev.Query) -> bool:
    """Whether a definition statement may be of tables that the plan changes. (What they are defined as is compared, too.)"""
    told = effect(query.sql, query.database, ansi_quotes=bool((query.sql_mode or 0) & ANSI_QUOTES))
    if told.tables is None:
        return True
    return any(plan.table(name) is not None for name in told.tables.union(*told.renamed))


def _hint(whole_source: bool) -> str:
    if whole_source:
        return "plan again; stop the applications first, or plan with --not-whole-source to leave later steps alone"
    return "plan again: the new plan takes it into account"


def _concern(plan: Plan, fragment: Fragment, maps: dict[bytes, TableMap], *, whole_source: bool) -> str:
    """Why this step (or piece of one) concerns the plan; empty when it does not."""
    described = ev.parse_format_description(fragment.preamble)
    for event in ev.iter_events(fragment.payload or b"", described.has_checksum, expand=True):
        if event.type == ev.TABLE_MAP:
            maps[bytes(event.body[:6])] = table_map_of(bytes(event.body[8:]), described.mariadb)
        elif event.type in KINDS:
            table_map = maps.get(bytes(event.body[:6]))
            if table_map is None:
                continue
            if table_map.key == MARKER_TABLE:
                if whole_source or not _undoes(parse_rows(event.type, event.body), table_map):
                    return "it is another rollback's"
                continue  # a selective undo: its rows are like anybody's
            if table_map.schema == OWN_SCHEMA:
                continue
            text = f"{table_map.schema}.{table_map.table}"
            if whole_source:
                return f"it changes {text}"
            table = plan.table(table_map.key)
            if table is None:
                continue
            rows = parse_rows(event.type, event.body)
            if rows.partial or not all(
                layout_of(table_map, b).full for b in (rows.before, rows.after) if b is not None
            ):
                return f"it changes {text}, and the log does not hold all columns of the rows"
            for before, after in iter_rows(rows, table_map):
                if any(image is not None and table.changes.table.touches(image) for image in (before, after)):
                    return f"it changes a row of {text} that the plan changes, too"
        elif event.type in (ev.QUERY, ev.QUERY_COMPRESSED):
            query = ev.parse_query(event.body, event.type)
            what = classify(query.sql)
            if what in ("begin", "commit", "savepoint", "neutral", "xa") or own_definition(query):
                continue
            if what == "account":
                return _ACCOUNT
            if what == "ddl" and not whole_source and not _redefines(plan, query):
                continue
            return "it changes definitions" if what == "ddl" else "it was logged as a statement, not as rows"
        elif event.type == ev.INCIDENT:
            return "it is a gap in the source's log"
    return ""
