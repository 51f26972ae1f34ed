"""The two accounts that Holdfast uses on a source, with the least that they need (docs/guides: mariadb-source, mysql-source,
rollback)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pymysql


@dataclass(frozen=True, slots=True)
class Grants:
    """Statements for `{account}`, by server: `capture`, `rollback`."""

    capture: tuple[str, ...]
    rollback: tuple[str, ...]


MARIADB = Grants(
    capture=("grant replication slave, binlog monitor, select, show view, trigger, event on *.* to {account}",),
    rollback=(
        "grant select, trigger on *.* to {account}",
        "grant binlog replay, binlog admin, read_only admin on *.* to {account}",
        "grant select, insert, create, alter, drop on holdfast.* to {account}",
    ),
)
MYSQL = Grants(
    capture=(
        "grant replication slave, replication client, reload, select, show view, trigger, event on *.* to {account}",
        "grant show_routine on *.* to {account}",
    ),
    rollback=(
        "grant select, trigger, lock tables on *.* to {account}",
        "grant binlog_admin, system_variables_admin, connection_admin on *.* to {account}",
        "grant select, insert, create, alter, drop, lock tables on holdfast.* to {account}",
    ),
)
MYSQL_5_5 = Grants(
    capture=(
        "grant replication slave, replication client, reload, select, show view, trigger, event on *.* to {account}",
    ),
    rollback=(
        # SUPER holds all that later versions give in parts; the log is looked into for a position.
        "grant select, trigger, super, replication slave, replication client on *.* to {account}",
        "grant select, insert, create, alter, drop on holdfast.* to {account}",
    ),
)


def grants_for(admin: pymysql.Connection[Any]) -> Grants:
    """Those for the server at the other end."""
    version = str(admin.get_server_info())  # type: ignore[no-untyped-call]
    if "MariaDB" in version:
        return MARIADB
    return MYSQL_5_5 if version.startswith("5.") else MYSQL


def create_account(admin: pymysql.Connection[Any], user: str, password: str, grants: tuple[str, ...]) -> None:
    """Create `user`, or give it a new password, and grant it what it needs."""
    account = f"'{user}'@'127.0.0.1'"
    with admin.cursor() as cursor:
        if grants_for(admin) is MYSQL_5_5:
            cursor.execute(f"grant usage on *.* to {account} identified by %s", (password,))
        else:
            cursor.execute(f"create user if not exists {account}")
            cursor.execute(f"alter user {account} identified by %s", (password,))
        for grant in grants:
            cursor.execute(grant.format(account=account))
    admin.commit()


def create_accounts(admin: pymysql.Connection[Any]) -> dict[str, str]:
    """Create `hf_capture` and `hf_rollback` (or give them new passwords); returns purpose -> password."""
    passwords = {"capture": secrets.token_urlsafe(18), "rollback": secrets.token_urlsafe(18)}
    found = grants_for(admin)
    for purpose, grants in (("capture", found.capture), ("rollback", found.rollback)):
        create_account(admin, f"hf_{purpose}", passwords[purpose], grants)
    return passwords
