"""Makes the golden logs of this directory: `python -P -m tests.golden.binlog.record [NAME …]`.

Each NAME.sql is run on a fresh server, MariaDB 10.11 or the one that a line `-- server: NAME` says (see
`tests.stack.servers.DATABASES`); NAME.binlog is the log file this wrote, NAME.json what the server then says of the tables
in schema `golden` that are left (values as `recorded.expression` asks for them). Lines `-- log: OPTION=VALUE` set global
variables, in this order, before the log begins. Recording again changes times and ids in the files; tests do not depend on
those.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from deploy.demo.server import DatabaseServer
from tests.stack.servers import Scratch, start_database
from tests.unit.streams.formats.recorded import GOLDEN, run, selected, session

_STATEMENT = re.compile(r"(?:[^;']|'(?:[^'\\]|''|\\.)*')+;$", re.MULTILINE | re.DOTALL)


def statements(text: str) -> list[str]:
    """A script's statements: each ends in a semicolon at the end of a line."""
    without = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [found.strip().rstrip(";") for found in _STATEMENT.findall(without)]


def server_of(script: Path) -> str:
    found = re.search(r"^-- server: (\S+)$", script.read_text(), re.MULTILINE)
    return found[1] if found else "mariadb-10.11"


def record(server: DatabaseServer, script: Path) -> None:
    text = script.read_text()
    options = re.findall(r"^-- log: (\w+)=(\w+)$", text, re.MULTILINE)
    before = []
    server.execute("DROP DATABASE IF EXISTS golden", "CREATE DATABASE golden CHARACTER SET utf8mb4")
    for name, value in options:
        before.append((name, server.execute(f"SELECT @@global.{name}")[0][0]))
        server.execute(f"SET GLOBAL {name} = {value}")
    reset = "RESET BINARY LOGS AND GTIDS" if server_of(script) == "mysql-9" else "RESET MASTER"
    server.execute(reset)
    with session(server, "golden") as connection:
        run(connection, "SET sql_mode = DEFAULT, time_zone = DEFAULT")
        for statement in statements(text):
            run(connection, statement)
    server.execute("FLUSH LOGS")
    tables: dict[str, Any] = {}
    with session(server, "golden") as connection:
        for (name,) in run(connection, "SHOW TABLES"):
            described = run(
                connection,
                "SELECT column_name, column_type, character_set_name FROM information_schema.columns "
                "WHERE table_schema = 'golden' AND table_name = %s ORDER BY ordinal_position",
                (name,),
            )
            tables[name] = {"columns": described, "rows": selected(connection, name)}
    (GOLDEN / f"{script.stem}.binlog").write_bytes((server.datadir / "binlog.000001").read_bytes())
    (GOLDEN / f"{script.stem}.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n")
    for name, value in reversed(before):
        server.execute(f"SET GLOBAL {name} = {value!r}")


def main() -> None:
    scripts = [s for s in sorted(GOLDEN.glob("*.sql")) if not sys.argv[1:] or s.stem in sys.argv[1:]]
    for name in sorted({server_of(script) for script in scripts}):
        scratch = Scratch("golden")
        server = start_database(scratch.path / "server", name)
        try:
            for script in scripts:
                if server_of(script) == name:
                    record(server, script)
                    print(f"recorded {script.stem}")
        finally:
            server.stop()
            scratch.remove()


if __name__ == "__main__":
    main()
