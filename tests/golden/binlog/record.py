"""Makes the golden logs of this directory: `python -P -m tests.golden.binlog.record`.

Each NAME.sql is run by the command-line client on a fresh MariaDB 10.11; NAME.binlog is the log file this wrote, NAME.json
what the server then says of the tables in schema `golden` that are left (values as `recorded.expression` asks for them).
A line `-- log: OPTION=VALUE` sets a global variable before the log begins. Recording again changes times and ids in the
files; tests do not depend on those.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from deploy.demo.mariadb import MariaDB
from tests.stack.servers import Scratch, start_mariadb
from tests.unit.streams.formats.recorded import GOLDEN, run, selected, session


def record(server: MariaDB, script: Path) -> None:
    text = script.read_text()
    options = dict(re.findall(r"^-- log: (\w+)=(\w+)$", text, re.MULTILINE))
    before = {name: server.execute(f"SELECT @@global.{name}")[0][0] for name in options}
    server.execute("DROP DATABASE IF EXISTS golden", "CREATE DATABASE golden CHARACTER SET utf8mb4")
    for name, value in options.items():
        server.execute(f"SET GLOBAL {name} = {value}")
    server.execute("RESET MASTER")
    client = shlex.split(server.client_command())
    subprocess.run([*client, "--default-character-set=utf8mb4", "golden"], input=text, text=True, check=True)
    server.execute("FLUSH BINARY LOGS")
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
    for name, value in before.items():
        server.execute(f"SET GLOBAL {name} = {value!r}")


def main() -> None:
    scratch = Scratch("golden")
    server = start_mariadb(scratch.path)
    try:
        for script in sorted(GOLDEN.glob("*.sql")):
            record(server, script)
            print(f"recorded {script.stem}")
    finally:
        server.stop()
        scratch.remove()


if __name__ == "__main__":
    main()
