"""Connections to the site's PostgreSQL, with the live views on the search path.

Whoever asks views (the API) opens its connections here: `pool(settings.postgres)`, then e.g.
`with pool.connection() as conn: jobs.job(conn, id)`. A view that was dropped, or has never been built, has no tables:
its queries raise `psycopg.errors.UndefinedTable`. Unreachable or restarting: `psycopg.OperationalError`
(`psycopg_pool.PoolTimeout` is one).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import Event
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from projections.errors import ProjectionError
from projections.views import VIEWS
from streams.settings import PostgresSettings

Connection = psycopg.Connection[Any]

# Holdfast's own bookkeeping: migrations, generations of views, offsets.
META = "holdfast"


def live_schema(view: str) -> str:
    """The schema of the view's live generation; a rebuild's has another name until it is swapped in."""
    return f"view_{view}"


def search_path(schemas: Iterable[str] | None = None) -> str:
    return ",".join(schemas if schemas is not None else map(live_schema, VIEWS))


def _parameters(settings: PostgresSettings, name: str) -> dict[str, Any]:
    return {
        "conninfo": settings.conninfo(),
        "options": f"-c search_path={search_path()} -c timezone=UTC",
        "application_name": f"holdfast {name}",
        # A server that vanished without a word (power, cable) is noticed in about half a minute.
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
    }


def connect(settings: PostgresSettings, name: str = "projections", *, autocommit: bool = True) -> Connection:
    """One connection; `name` is what `pg_stat_activity` shows. Raises `psycopg.OperationalError`."""
    return psycopg.connect(**_parameters(settings, name), autocommit=autocommit)


def pool(settings: PostgresSettings, name: str = "api", *, size: int = 8, timeout_s: float = 5.0) -> ConnectionPool:
    """A pool of at most `size` autocommit connections, not yet opened (`open()`, or use it as a context)."""
    parameters = _parameters(settings, name)
    return ConnectionPool(
        parameters.pop("conninfo"),
        kwargs={**parameters, "autocommit": True},
        min_size=1,
        max_size=size,
        timeout=timeout_s,
        check=ConnectionPool.check_connection,
        open=False,
        name=name,
    )


def wait(settings: PostgresSettings, say: Callable[[str], None], stop: Event, patience_s: float = 600.0) -> Connection:
    """A connection as soon as PostgreSQL answers, saying what it waits for. Raises `ProjectionError`
    (`postgres-unreachable`) after `patience_s`, or when `stop` is set."""
    deadline = time.monotonic() + patience_s
    last = ""
    while True:
        try:
            return connect(settings)
        except psycopg.OperationalError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if reason != last:
                say(f"waiting for PostgreSQL at {settings.host}:{settings.port}: {reason}")
                last = reason
            if time.monotonic() > deadline or stop.wait(0.5):
                raise ProjectionError(
                    "postgres-unreachable",
                    f"PostgreSQL at {settings.host}:{settings.port} does not answer: {reason}",
                    "`holdfast status`, or look at its log",
                ) from error
