"""`./dev demo`: the spine of Holdfast on real components, told as a user would type it.

Starts a site and a MariaDB, protects it, lets a shop trade, breaks it, rolls it back and forward again with the proof of
every table's checksum, rebuilds the projections, and leaves all of it running. Everything that Holdfast does here goes
through the `holdfast` command; only the shop and its accident speak to MariaDB themselves.

Exit status: 0 when every claim was proved, 1 when one was not, 2 when something could not be started.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pymysql

from deploy.demo import shop
from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseError, end
from deploy.demo.stage import NotProved, Stage
from deploy.embedded.user import service_user
from deploy.errors import SiteError

SOURCE = "shop"
MARK = "demonstration.json"


def run(stage: Stage, server: MariaDB, transactions: int, port: Sequence[str] = ()) -> None:
    """The demonstration from an empty site to a rewound shop."""
    stage.title("a site: Kafka, PostgreSQL, processors, agent, API")
    stage.holdfast("up", "--detach", *port)

    stage.title(f"a database to protect: MariaDB {server.version}, with a small shop in it")
    admin = server.connect(autocommit=False)
    shop.create(admin)
    passwords = create_accounts(admin)
    stage.say(f"  {', '.join(shop.NAMES)} on 127.0.0.1:{server.port}")

    stage.title("protect it")
    secrets_of = _password_files(stage.data, passwords)
    stage.holdfast(
        *("source", "add", SOURCE, "--kind", "mariadb", "--host", "127.0.0.1", "--port", str(server.port)),
        *("--capture-user", "hf_capture", "--password-file", str(secrets_of["capture"])),
        *("--rollback-user", "hf_rollback", "--rollback-password-file", str(secrets_of["rollback"])),
    )

    stage.title(f"the shop trades: {transactions} transactions")
    traffic = shop.Traffic(admin)
    traffic.run(transactions)
    before = shop.checksums(admin)
    stage.say(f"  checksums now: {_text(before)}")

    stage.title("and then somebody makes three mistakes")
    for mistake in shop.accident(admin):
        stage.say(f"  ✘ {mistake}")
    after = shop.checksums(admin)
    if before == after:
        raise NotProved("the accident changed nothing")

    stage.title("the timeline, from the log")
    newest = _await_steps(stage, 3)
    stage.holdfast("timeline", "show", SOURCE, "--limit", "8")
    stage.holdfast("step", "show", SOURCE, str(newest[0]["ordinal"]), "--limit", "2")

    stage.title("plan: three steps back; nothing is touched yet")
    plan = stage.json("rollback", "plan", SOURCE, "--steps", "3")
    stage.holdfast("rollback", "show", plan["plan"])
    stage.prove("planning_touches_nothing", "planning changed nothing", after, shop.checksums(admin))

    stage.title("run exactly that plan")
    stage.holdfast("rollback", "run", plan["plan"], "--yes")
    stage.prove("rolled_back", "every table's checksum is the one before the accident", before, shop.checksums(admin))

    stage.title("forward again: the accident is history, not lost")
    stage.holdfast("rollback", "forward", SOURCE, "--yes")
    stage.prove("rolled_forward", "every table's checksum is the one after the accident", after, shop.checksums(admin))

    stage.title("and back once more; then the shop trades on")
    again = stage.json("rollback", "plan", SOURCE, "--steps", "3")
    stage.holdfast("rollback", "run", again["plan"], "--yes")
    stage.prove("rolled_back_again", "every table is as before the accident", before, shop.checksums(admin))
    traffic.run(20)
    stage.holdfast("timeline", "show", SOURCE, "--limit", "8")

    stage.title("the projections are only projections: drop them, replay the log, compare digests")
    stage.say("$ holdfast projections rebuild --all --drop-first")
    rebuilt = stage.json("projections", "rebuild", "--all", "--drop-first")["projections"]
    for view in rebuilt:
        stage.say(f"  {view['name']}: {view['records']} records, digest {view['after'][:16]}")
    stage.prove(
        "projections_equal",
        f"{len(rebuilt)} projections dropped and rebuilt to equal digests",
        {view["name"]: view["before"] for view in rebuilt},
        {view["name"]: view["after"] for view in rebuilt},
    )
    stage.holdfast("audit", "list", "--limit", "5")
    admin.close()


def _await_steps(stage: Stage, count: int) -> list[dict[str, Any]]:
    """The newest `count` steps once the accident's last one is shown: capture lags the source by milliseconds."""
    deadline = time.monotonic() + 30
    while True:
        steps: list[dict[str, Any]] = stage.json("timeline", "show", SOURCE, "--limit", str(count))["steps"]
        tables = [t["table"] for s in steps for t in s["tables"]]
        if len(steps) == count and "customer" in tables and "product" in tables:
            return steps
        if time.monotonic() > deadline:
            raise NotProved(f"the accident's steps are not in the timeline after 30 s: {steps}")
        time.sleep(0.2)


def _password_files(data: Path, passwords: dict[str, str]) -> dict[str, Path]:
    """Passwords where the command line reads them from: files, never arguments."""
    out = {}
    for purpose, password in passwords.items():
        path = data / f"demo-{purpose}.password"
        path.touch(0o600)
        path.write_text(password + "\n", "utf-8")
        out[purpose] = path
    return out


def _text(sums: dict[str, int]) -> str:
    return "  ".join(f"{name} {value:08x}" for name, value in sums.items())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev demo", description="Holdfast on real components, end to end.")
    parser.add_argument(
        "--data-dir", type=Path, help="where all of it lives (default: .demo, or a temporary directory)"
    )
    parser.add_argument("--mariadb", default="any", choices=["any", "10.11", "11.4"], help="which server to protect")
    parser.add_argument("--transactions", type=int, default=400, help="how much the shop trades")
    parser.add_argument("--port-api", type=int, help="port of the API (default: 8473, or a free one)")
    parser.add_argument("--stop", action="store_true", help="stop everything at the end instead of leaving it up")
    parser.add_argument("--json", action="store_true", help="print nothing but what was proved")
    options = parser.parse_args(argv)
    data = (options.data_dir or _default_directory()).resolve()
    site, stage = data / "site", Stage(data / "site", options.json)
    started = time.monotonic()
    try:
        _clear(data, stage)
        server = MariaDB.prepare(data / "mariadb", version=options.mariadb)
        server.start()
        (data / MARK).write_text(json.dumps({"mariadb": server.pid}), "utf-8")
    except (DatabaseError, OSError) as error:
        print(f"the demonstration cannot start: {error}", file=sys.stderr)
        return 2
    code = 0
    try:
        run(stage, server, options.transactions, ("--port-api", str(options.port_api)) if options.port_api else ())
    except (NotProved, pymysql.Error) as error:
        print(f"\nNOT PROVED: {error}\nLogs: {site / 'logs'}", file=sys.stderr)
        code = 1
    if options.json:
        print(json.dumps({"proved": stage.proved, "seconds": round(time.monotonic() - started, 1), "exit": code}))
    if options.stop or code:
        if (site / "holdfast.toml").exists():
            stage.holdfast("down", show=False)
        server.stop()
    else:
        _what_next(stage, server, time.monotonic() - started)
    return code


def _clear(data: Path, stage: Stage) -> None:
    """End and remove an earlier demonstration in `data`; what is not one is left alone, and refused."""
    if not data.exists() or not any(data.iterdir()):
        data.mkdir(parents=True, exist_ok=True)
        (data / MARK).write_text("{}", "utf-8")
        return
    if not (data / MARK).exists():
        raise NotADirectoryError(f"{data} is not empty and holds no demonstration; name another --data-dir")
    stage.say(f"  ending and removing the demonstration before this one, in {data}")
    if (stage.data / "holdfast.toml").exists():
        stage.holdfast("down", show=False)
    pid = json.loads((data / MARK).read_text("utf-8")).get("mariadb", 0)
    if pid and _is_mariadb(pid, data) and not end(pid):
        raise TimeoutError(f"the MariaDB of the demonstration before this one does not end: pid {pid}")
    for name in ("site", "mariadb"):
        shutil.rmtree(data / name, ignore_errors=True)


def _is_mariadb(pid: int, data: Path) -> bool:
    """Whether `pid` is still the server of the demonstration in `data`, and not a number that was handed on."""
    try:
        return str(data) in Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except OSError:
        return False


def _default_directory() -> Path:
    """`.demo` of the checkout, unless the user that servers run as cannot get there (root's checkout in root's home)."""
    here = Path(".demo").resolve()
    try:
        service_user().require_reach(here)
    except SiteError:
        return Path(tempfile.gettempdir(), "holdfast-demo")
    return here


def _what_next(stage: Stage, server: MariaDB, seconds: float) -> None:
    here = Path.cwd()
    data = stage.data.relative_to(here) if stage.data.is_relative_to(here) else stage.data
    prefix = f"./dev holdfast --data-dir {data}"
    stage.title(f"all of it proved in {seconds:.0f} s, and still running")
    stage.say(
        f"  {prefix} timeline watch shop\n"
        f"  {prefix} timeline show shop --table shop.product\n"
        f"  {prefix} rollback plan shop --steps 20\n"
        f"  {prefix} status\n"
        f"  the shop's database: {server.client_command()}\n"
        f"  stop everything: {prefix} down && kill {server.pid}"
    )


if __name__ == "__main__":
    sys.exit(main())
