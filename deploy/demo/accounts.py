"""The two accounts that Holdfast uses on a MariaDB source, with the least that they need (docs/guides/mariadb-source.md)."""

from __future__ import annotations

import secrets
from typing import Any

import pymysql

CAPTURE_GRANTS: tuple[str, ...] = (
    "grant replication slave, binlog monitor, select, show view, trigger, event on *.* to {account}",
)
ROLLBACK_GRANTS: tuple[str, ...] = (
    "grant select, trigger on *.* to {account}",
    "grant binlog replay, binlog admin, read_only admin on *.* to {account}",
    "grant select, insert, create, alter, drop on holdfast.* to {account}",
)


def create_accounts(admin: pymysql.Connection[Any]) -> dict[str, str]:
    """Create `hf_capture` and `hf_rollback` (or give them new passwords); returns purpose -> password."""
    passwords = {"capture": secrets.token_urlsafe(18), "rollback": secrets.token_urlsafe(18)}
    with admin.cursor() as cursor:
        for purpose, grants in (("capture", CAPTURE_GRANTS), ("rollback", ROLLBACK_GRANTS)):
            account = f"'hf_{purpose}'@'127.0.0.1'"
            cursor.execute(f"create or replace user {account} identified by %s", (passwords[purpose],))
            for grant in grants:
                cursor.execute(grant.format(account=account))
    admin.commit()
    return passwords
