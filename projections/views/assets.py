"""Assets that are machines, and the hosts they are on.

A host's events share a key, and so do an asset's: the last one counts. An asset is one machine: what is said under its name of
another one (two agents found two machines of a name at once) is kept and not shown, as `agents.hosts` has it. Everything that was
said is kept, so that `as_of_us` can ask for any moment. Which points an asset has is the view `repositories`' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.views.base import (
    Connection,
    Cursor,
    canonical,
    clock,
    dump_problems,
    event_id,
    insert,
    load_problems,
    moment,
    text,
    where,
)
from streams.events import AssetChanged, HostDefined, Problem

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "assets"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "host_definition": ("host", "event"),
    "asset_change": ("asset", "event"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)


@dataclass(frozen=True, slots=True)
class Host:
    """A host as last defined (`streams.events.assets.HostDefined`). `machines`: how many are on it; `first_us`: since when."""

    host: str
    kind: str
    state: str
    url: str
    account: str
    tls_ca: str
    secrets: Mapping[str, str]
    options: Mapping[str, str]
    version: str
    problems: tuple[Problem, ...]
    defined_us: int
    by: str
    first_us: int
    machines: int


@dataclass(frozen=True, slots=True)
class Asset:
    """A machine as last seen (`streams.events.assets.AssetChanged`); `disks` and `nics` field by field. `first_us`: when it was
    seen first."""

    asset: str
    state: str
    host: str
    native: str
    name: str
    folder: str
    tags: tuple[str, ...]
    power: str
    cpus: int
    memory: int
    firmware: str
    disks: tuple[Mapping[str, Any], ...]
    nics: tuple[Mapping[str, Any], ...]
    seen_us: int
    by: str
    first_us: int


# --- apply ----------------------------------------------------------------------------------------------------------

_HOST = insert(
    "host_definition",
    "host, event, hlc, kind, state, url, account, tls_ca, secrets, options, version, problems, defined_us, by",
)
_ASSET = insert(
    "asset_change",
    "asset, event, hlc, state, host, native, name, folder, tags, power, cpus, memory, firmware, disks, nics, seen_us, by",
)


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Hosts and machines; other events of `inventory` are other views'."""
    for message in messages:
        values: tuple[Any, ...]
        match message.event:
            case HostDefined() as e:
                values = (text(e.host), event_id(message), clock(message))
                values += tuple(text(v) for v in (e.kind, e.state, e.url, e.account, e.tls_ca))
                values += (canonical(dict(e.secrets)), canonical(dict(e.options)), text(e.version))
                cursor.execute(_HOST, (*values, dump_problems(e.problems), e.defined_us, text(e.by)))
            case AssetChanged() as e:
                values = (text(e.asset), event_id(message), clock(message))
                values += tuple(text(v) for v in (e.state, e.host, e.native, e.name, e.folder))
                values += (canonical(list(e.tags)), text(e.power), e.cpus, e.memory, text(e.firmware))
                values += (canonical([_plain(d) for d in e.disks]), canonical([_plain(n) for n in e.nics]))
                cursor.execute(_ASSET, (*values, e.seen_us, text(e.by)))


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


# --- queries --------------------------------------------------------------------------------------------------------

_ASSETS = """
SELECT * FROM (
    SELECT DISTINCT ON (asset) asset, state, host, native, name, folder, tags, power, cpus, memory, firmware, disks, nics,
        seen_us, by, first_us
    FROM (
        SELECT *, first_value(native) OVER seen AS owner, first_value(seen_us) OVER seen AS first_us
        FROM asset_change WHERE hlc <= %s WINDOW seen AS (PARTITION BY asset ORDER BY hlc, event)
    ) said
    WHERE native = owner ORDER BY asset, hlc DESC, event DESC
) a
"""
_HOSTS = """
SELECT h.*, (SELECT count(*) FROM ({assets}) m WHERE m.host = h.host AND m.state <> 'gone') AS machines FROM (
    SELECT DISTINCT ON (host) *, min(defined_us) OVER (PARTITION BY host) AS first_us
    FROM host_definition WHERE hlc <= %s ORDER BY host, hlc DESC, event DESC
) h WHERE state <> 'removed'
"""


def _host(**row: Any) -> Host:
    del row["event"], row["hlc"]
    row |= {name: json.loads(row[name]) for name in ("secrets", "options")}
    return Host(**row | {"problems": load_problems(row["problems"])})


def _asset(**row: Any) -> Asset:
    return Asset(**row | {name: tuple(json.loads(row[name])) for name in ("tags", "disks", "nics")})


def hosts(conn: Connection, *, name: str | None = None, as_of_us: int | None = None) -> list[Host]:
    """Hosts that were not removed, by name; only the one called `name` if given."""
    until = moment(as_of_us)
    query = sql.SQL(_HOSTS).format(assets=sql.SQL(_ASSETS))
    values: list[Any] = [until, until]
    if name is not None:
        query, values = query + sql.SQL(" AND host = %s"), [*values, name]
    with conn.cursor(row_factory=kwargs_row(_host)) as cur:
        return cur.execute(query + sql.SQL(" ORDER BY host"), values).fetchall()


def assets(
    conn: Connection,
    *,
    name: str | None = None,
    host: str | None = None,
    gone: bool = False,
    as_of_us: int | None = None,
) -> list[Asset]:
    """Machines by name; those that are gone only when asked for."""
    condition, values = where(("asset = %s", name), ("host = %s", host), ("state <> %s", None if gone else "gone"))
    query = sql.SQL(_ASSETS + " {} ORDER BY asset").format(condition)
    with conn.cursor(row_factory=kwargs_row(_asset)) as cur:
        return cur.execute(query, [moment(as_of_us), *values]).fetchall()
