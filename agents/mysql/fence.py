"""Read-only while a change is put in: the whole server, for everybody who has no right to pass over it."""

from __future__ import annotations

from typing import Any, Final

import pymysql

from agents.errors import AgentError
from agents.mysql.statements import ask, run

WAIT_S: Final = 15
_LOCK_WAIT_TIMEOUT: Final = 1205


def read_only(connection: pymysql.Connection[Any]) -> str:
    """As the server has it now: a number, or one of MariaDB's words."""
    ((value,),) = ask(connection, "SELECT @@global.read_only")
    return str(value)


def close(connection: pymysql.Connection[Any], otherwise: str) -> None:
    """Make it read-only. Raises `AgentError` (`fence-timeout`), whose hint ends in what one can do `otherwise`."""
    run(connection, f"SET SESSION lock_wait_timeout = {WAIT_S}")
    try:
        run(connection, "SET GLOBAL read_only = 1")
    except pymysql.err.OperationalError as error:
        if error.args[0] != _LOCK_WAIT_TIMEOUT:
            raise
        raise AgentError(
            "fence-timeout",
            f"the source could not be made read-only within {WAIT_S} s",
            f"a long-running write statement or LOCK TABLES holds it off: let it end, {otherwise}",
        ) from error


def reopen(connection: pymysql.Connection[Any], before: str) -> None:
    """Back to what `read_only` said before; asked first, since setting it needs a right."""
    if read_only(connection) != before:
        run(connection, f"SET GLOBAL read_only = {before if before.isdigit() else repr(before)}")
