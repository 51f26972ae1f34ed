"""The command line against a whole site: protect a MariaDB, watch it, roll it back and forward, refuse what is refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from deploy.demo.accounts import create_accounts
from deploy.demo.mariadb import MariaDB
from tests.stack.running_api import eventually
from tests.stack.running_site import ROOT, RunningSite, running_site
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, start_mariadb

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    with running_site(kafka, postgres, "cli") as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    scratch = Scratch("cli-mariadb")
    running = start_mariadb(scratch.path)
    running.execute(
        "create database bank",
        "create table bank.account (id int primary key, owner varchar(40), balance decimal(10,2))",
        "insert into bank.account values (1, 'Ada', 100), (2, 'Grace', 200), (3, '小明', 300)",
    )
    try:
        yield running
    finally:
        running.stop()
        scratch.remove()


@pytest.fixture(scope="module")
def passwords(server: MariaDB) -> dict[str, str]:
    connection = server.connect()
    try:
        return create_accounts(connection)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def bank(site: RunningSite, server: MariaDB, passwords: dict[str, str]) -> MariaDB:
    """The source, protected; passwords on standard input."""
    both = f"{passwords['capture']}\n{passwords['rollback']}\n"
    added = site.cli(
        *("source", "add", "bank", "--host", "127.0.0.1", "--port", str(server.port), "--capture-user", "hf_capture"),
        *("--rollback-user", "hf_rollback", "--password-stdin"),
        stdin=both,
    )
    assert "bank is protected" in added
    return server


def balances(server: MariaDB) -> list[tuple[Any, ...]]:
    return server.execute("select id, owner, balance from bank.account order by id")


def head(site: RunningSite) -> int:
    return int(site.json("timeline", "show", "bank", "--limit", "1")["head"])


def written(site: RunningSite, server: MariaDB, *statements: str) -> int:
    """Run statements on the source and wait until all of them are in the timeline; the newest ordinal."""
    before = head(site)
    server.execute(*statements)
    return eventually(lambda: (now := head(site)) >= before + len(statements) and now) or 0


def test_preflight_problems_are_told_with_the_statements_that_mend_them(site: RunningSite, server: MariaDB) -> None:
    server.execute("create or replace user 'poor'@'127.0.0.1' identified by 'poor'")
    shown = site.cli(
        *("source", "add", "poor", "--host", "127.0.0.1", "--port", str(server.port), "--capture-user", "poor"),
        *("--password-stdin", "--dry-run"),
        stdin="poor\n",
        expect=11,
    )
    assert re.search(r"GRANT .*REPLICATION SLAVE.* TO", shown, re.IGNORECASE), shown
    assert "poor" not in {s["name"] for s in site.json("source", "list")["sources"]}
    wrong = site.cli(
        *("source", "add", "poor", "--host", "127.0.0.1", "--port", str(server.port), "--capture-user", "poor"),
        *("--password-stdin", "--dry-run"),
        stdin="wrong\n",
        expect=11,
    )
    assert "wrong" not in wrong.replace("is wrong", "")


def test_a_dry_run_of_a_source_that_could_be_protected_protects_nothing(
    site: RunningSite, server: MariaDB, passwords: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(passwords["capture"] + "\n")
    said = site.cli(
        *("source", "add", "dry", "--host", "127.0.0.1", "--port", str(server.port), "--capture-user", "hf_capture"),
        *("--password-file", str(file), "--dry-run"),
    )
    assert "dry can be protected" in said
    assert "dry" not in {s["name"] for s in site.json("source", "list")["sources"]}


def test_a_protected_source_is_listed_and_shown(site: RunningSite, bank: MariaDB) -> None:
    listed = {s["name"]: s for s in site.json("source", "list")["sources"]}
    assert listed["bank"]["state"] == "capturing"
    assert listed["bank"]["accounts"] == {"capture": "hf_capture", "rollback": "hf_rollback"}
    assert "bank" in site.cli("source", "list")
    shown = site.cli("source", "show", "bank")
    assert f"127.0.0.1:{bank.port}" in shown
    again = site.cli(
        *("source", "add", "bank", "--host", "127.0.0.1", "--capture-user", "x", "--password-stdin"),
        stdin="x\n",
        expect=11,
    )
    assert "source-exists" in again


def test_steps_are_watched_as_they_come(site: RunningSite, bank: MariaDB) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.cli", "timeline", "watch", "bank", "--json", "--limit", "2"],
        env={"HOLDFAST_DATA": str(site.settings.data_dir), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        written(site, bank, "update bank.account set balance = balance + 1 where id = 1")
        assert watching.stdout is not None
        lines = [json.loads(watching.stdout.readline())]
        written(site, bank, "update bank.account set balance = balance + 1 where id = 2")
        lines.append(json.loads(watching.stdout.readline()))
        assert watching.wait(120) == 0
    finally:
        watching.kill()
        watching.wait(120)
    assert [line["tables"][0]["updates"] for line in lines] == [1, 1]
    assert lines[1]["ordinal"] > lines[0]["ordinal"]


def test_the_timeline_and_a_step_are_readable(site: RunningSite, bank: MariaDB) -> None:
    newest = written(site, bank, "update bank.account set owner = 'Zoë', balance = 1 where id = 3")
    shown = site.cli("timeline", "show", "bank", "--limit", "5")
    assert re.search(rf"●\s+{newest}\s.*bank\.account ~1", shown)
    filtered = site.json("timeline", "show", "bank", "--table", "bank.account", "--since", "1h")["steps"]
    assert filtered[0]["ordinal"] == newest
    assert site.json("timeline", "show", "bank", "--until", "2001-01-01")["steps"] == []
    step = site.cli("step", "show", "bank", str(newest))
    assert "owner: 小明 → Zoë" in step
    assert "balance: 300.00 → 1.00" in step
    named = site.json("step", "show", filtered[0]["id"])
    assert named["changes"][0]["changed"] == ["owner", "balance"]
    assert "no step 999999" in site.cli("step", "show", "bank", "999999", expect=10)


def test_a_rollback_is_planned_looked_at_confirmed_and_run(site: RunningSite, bank: MariaDB) -> None:
    good = balances(bank)
    written(site, bank, "update bank.account set balance = 0", "delete from bank.account where id = 2")
    bad = balances(bank)

    plan = site.json("rollback", "plan", "bank", "--steps", "2")
    assert plan["runnable"]
    assert balances(bank) == bad, "planning touches nothing"
    looked = site.cli("rollback", "show", plan["plan"])
    assert re.search(r"bank\.account\s+1\s+\d\s+0", looked)
    assert "as they are → as they would be" in looked
    sql = site.cli("rollback", "show", plan["plan"], "--sql")
    assert "INSERT INTO `bank`.`account`" in sql

    assert "not-confirmed" in site.cli("rollback", "run", plan["plan"], expect=13)
    assert "digest-differs" in site.cli("rollback", "run", plan["plan"], "--yes", "--digest", "00" * 32, expect=11)
    assert "It could run" in site.cli("rollback", "run", plan["plan"], "--dry-run")
    assert balances(bank) == bad

    done = site.json("rollback", "run", plan["plan"], "--yes", "--digest", plan["digest"])
    assert balances(bank) == good
    assert done["result"]["rows"] == plan["rows"]
    eventually(lambda: head(site) >= done["result"]["ordinal"])
    newest = site.json("timeline", "show", "bank", "--limit", "1")["steps"][0]
    assert (newest["kind"], newest["plan"]) == ("rollback", plan["plan"])
    picture = site.cli("timeline", "show", "bank", "--limit", "8")
    assert "↶─╮" in picture
    assert "│ ○" in picture
    again = site.cli("rollback", "run", plan["plan"], "--yes", expect=11)
    assert "plan-applied" in again
    assert f"applied as {newest['ordinal']}" in site.cli("rollback", "list", "bank")

    forward = site.json("rollback", "forward", "bank", "--yes")
    assert balances(bank) == bad
    assert forward["job"]["state"] == "finished"
    assert "nothing-to-redo" in site.cli("rollback", "forward", "bank", "--yes", expect=11)
    back = site.json("rollback", "plan", "bank", "--to-step", str(plan["target_ordinal"]))
    site.cli("rollback", "run", back["plan"], "--yes")
    assert balances(bank) == good


def test_newer_steps_are_left_behind_only_when_that_is_said(site: RunningSite, bank: MariaDB) -> None:
    written(site, bank, "update bank.account set balance = 11 where id = 1")
    left = balances(bank)
    plan = site.json("rollback", "plan", "bank", "--steps", "1")
    site.cli("rollback", "run", plan["plan"], "--yes")
    eventually(lambda: site.json("timeline", "show", "bank", "--limit", "1")["steps"][0]["kind"] == "rollback")
    written(site, bank, "update bank.account set balance = 22 where id = 1")
    other = balances(bank)
    refused = site.cli("rollback", "forward", "bank", "--yes", expect=11)
    assert "branch-would-be-left" in refused
    assert "--switch-branch" in refused
    assert balances(bank) == other
    switched = site.json("rollback", "forward", "bank", "--yes", "--switch-branch")
    assert balances(bank) == left
    # And over to the other branch again, which is still there.
    eventually(lambda: head(site) >= switched["result"]["ordinal"])
    site.cli("rollback", "forward", "bank", "--yes", "--switch-branch")
    assert balances(bank) == other


def test_one_transaction_is_taken_back_and_the_rest_stays(site: RunningSite, bank: MariaDB) -> None:
    before = balances(bank)
    step = written(site, bank, "update bank.account set balance = balance + 500 where id = 1")
    written(site, bank, "update bank.account set owner = 'Grace H.' where id = 2")
    now = balances(bank)

    shown = site.cli("rollback", "undo", "bank", "--step", str(step))
    assert f"undo of step {step}" in shown
    plan = site.json("rollback", "undo", "bank", "--step", str(step))
    assert balances(bank) == now
    assert "as they are → as they would be" in site.cli("rollback", "show", plan["plan"])
    done = site.json("rollback", "run", plan["plan"], "--yes")
    assert balances(bank) == [before[0], *now[1:]]
    ordinal = done["result"]["ordinal"]
    eventually(lambda: head(site) >= ordinal)
    newest = site.json("timeline", "show", "bank", "--limit", "1")["steps"][0]
    assert (newest["kind"], newest["own"], newest["stands"], newest["plan"]) == ("undo", False, True, plan["plan"])
    # It is one step: one step back takes it back.
    back = site.json("rollback", "plan", "bank", "--steps", "1")
    assert back["undo"] == [[ordinal, ordinal]]
    site.cli("rollback", "run", back["plan"], "--yes")
    assert balances(bank) == now


def test_definition_changes_that_only_name_the_table_are_not_in_the_way(site: RunningSite, bank: MariaDB) -> None:
    before = balances(bank)
    step = written(site, bank, "update bank.account set balance = balance + 3 where id = 3")
    account = (
        "create table bank.card (id int primary key, account int, foreign key (account) references bank.account (id))"
    )
    written(site, bank, account, "alter table bank.account add index by_owner (owner)")
    plan = site.json("rollback", "undo", "bank", "--step", str(step))
    site.cli("rollback", "run", plan["plan"], "--yes")
    assert balances(bank) == before
    written(site, bank, "drop table bank.card", "alter table bank.account drop index by_owner")
    refused = site.json("rollback", "plan", "bank", "--to-step", str(step), expect=11)
    assert "drop" in {o["code"] for o in refused["obstacles"]}


def test_later_writes_to_the_same_rows_are_named_and_dealt_with_as_asked(site: RunningSite, bank: MariaDB) -> None:
    before = balances(bank)
    first = written(site, bank, "update bank.account set balance = 7 where id in (1, 2)")
    later = written(site, bank, "update bank.account set balance = 8 where id in (2, 3)")
    keys = ("--table", "bank.account", "--keys", "1..2", "--from-step", str(first), "--to-step", str(first))

    refused = site.cli("rollback", "undo", "bank", *keys, expect=11)
    assert "later-writes" in refused
    assert f"step {later}" in refused.replace(",", "")
    left = site.json("rollback", "undo", "bank", *keys, "--later", "leave")
    assert [(d["ordinal"], d["taken"]) for d in left["dependants"]] == [(later, False)]
    assert left["rows"] == 1
    forced = site.json("rollback", "undo", "bank", *keys, "--later", "force")
    assert forced["rows"] == 2
    cascaded = site.json("rollback", "undo", "bank", *keys, "--later", "cascade")
    assert cascaded["rows"] == 3
    site.cli("rollback", "run", cascaded["plan"], "--yes")
    assert balances(bank) == before
    outdated = site.cli("rollback", "run", forced["plan"], "--yes", expect=11)
    assert re.search("conflict|later-write", outdated), (
        "rows that were written since the plan was made are not gone over"
    )
    assert balances(bank) == before

    versions = site.json("row", "history", "bank", "bank.account", "2", "--limit", "3")["versions"]
    assert [v["kind"] for v in versions] == ["undo", "rows", "rows"]
    assert [v["ordinal"] for v in versions[1:]] == [later, first]
    told = site.cli("row", "history", "bank", "bank.account", "2", "--limit", "2")
    assert "by a selective undo" in told
    assert "balance: 7.00 → 8.00" in told
    assert "older:  holdfast row history bank bank.account 2 --before" in told


def test_an_obstacle_makes_a_plan_that_explains_itself_and_does_not_run(site: RunningSite, bank: MariaDB) -> None:
    written(site, bank, "alter table bank.account add column note varchar(10)")
    shown = site.cli("rollback", "plan", "bank", "--steps", "1", expect=11)
    assert "In the way, so it cannot run" in shown
    plan = site.json("rollback", "plan", "bank", "--steps", "1", expect=11)
    assert not plan["runnable"]
    assert "plan-not-runnable" in site.cli("rollback", "run", plan["plan"], "--yes", expect=11)
    site.cli("rollback", "abandon", plan["plan"])
    assert site.json("rollback", "show", plan["plan"], "--rows", "0")["state"] == "abandoned"


def test_wrong_use_says_how_it_is_meant(site: RunningSite, bank: MariaDB) -> None:
    assert "say how far back" in site.cli("rollback", "plan", "bank", expect=2)
    assert "different targets" in site.cli("rollback", "plan", "bank", "--steps", "1", "--to-gtid", "0-1-1", expect=2)
    assert "too-few-steps" in site.cli("rollback", "plan", "bank", "--steps", "100000", expect=11)
    assert "say what to take back" in site.cli("rollback", "undo", "bank", "--table", "bank.account", expect=2)
    assert "say SCHEMA.TABLE" in site.cli("row", "history", "bank", "account", "1", expect=2)
    assert "source-unknown" in site.cli("timeline", "show", "nosuch", expect=10)
    assert "is no time" in site.cli("timeline", "show", "bank", "--since", "yesterday-ish", expect=2)
    assert "request-invalid" in site.cli("rollback", "show", "not-a-plan", expect=2)
    assert "no password" in site.cli("source", "add", "x", "--host", "h", "--capture-user", "u", expect=2)


def test_a_role_may_do_what_its_table_says(site: RunningSite, bank: MariaDB, tmp_path: Path) -> None:
    token = tmp_path / "viewer.token"
    made = site.json("token", "issue", "vi", "--role", "viewer", "--output", str(token))
    assert "secret" not in made
    assert token.stat().st_mode & 0o777 == 0o600
    url = site.settings.api.url

    def mine(*words: str, expect: int = 0) -> str:
        return site.cli(*words, expect=expect, HOLDFAST_URL=url, HOLDFAST_TOKEN_FILE=str(token))

    assert "bank" in mine("source", "list")
    assert "role-insufficient" in mine("rollback", "plan", "bank", "--steps", "1", expect=12)
    site.cli("token", "revoke", made["token"])
    assert "token-revoked" in mine("source", "list", expect=12)
    refused = site.json("audit", "list", "--actor", "vi")["calls"]
    assert {(c["action"], c["outcome"]) for c in refused} >= {("rollback.plan", 403)}
    assert "rollback.plan" in site.cli("audit", "list", "--actor", "vi")


def test_capture_pauses_and_goes_on_without_a_gap(site: RunningSite, bank: MariaDB) -> None:
    site.cli("source", "pause", "bank")
    eventually(lambda: site.json("source", "show", "bank")["state"] == "paused")
    before = head(site)
    bank.execute(
        "update bank.account set balance = 33 where id = 1", "update bank.account set balance = 44 where id = 1"
    )
    site.cli("source", "resume", "bank")
    eventually(lambda: head(site) == before + 2)


def test_projections_are_rebuilt_to_equal_digests(site: RunningSite, bank: MariaDB) -> None:
    found = site.json("projections", "rebuild", "timeline", "catalogue", "--drop-first")["projections"]
    assert [(p["name"], p["equal"], p["before"] == p["after"]) for p in found] == [
        ("timeline", True, True),
        ("catalogue", True, True),
    ]
    assert {p["name"] for p in site.json("projections", "digest")["projections"]} >= {"timeline", "catalogue", "audit"}
    assert "timeline" in site.cli("projections", "list")


def test_an_interrupted_wait_leaves_the_job_to_its_agent(site: RunningSite, bank: MariaDB) -> None:
    """The agent stands still, so the wait can be interrupted for sure; the job goes on when it wakes."""
    agent = site.processes["agent"]
    agent.pause()
    try:
        waiting = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.cli", "rollback", "plan", "bank", "--steps", "1"],
            env={"HOLDFAST_DATA": str(site.settings.data_dir), "PATH": "/usr/bin:/bin"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        job = eventually(lambda: next(iter(site.json("job", "list", "--open")["jobs"]), None)) or {}
        waiting.send_signal(signal.SIGINT)
        _, told = waiting.communicate(timeout=30)
    finally:
        agent.resume()
    assert waiting.returncode == 130
    assert f"holdfast job watch {job['job']}" in told
    watched = site.run("job", "watch", job["job"])
    assert watched.returncode in (0, 11)
    assert site.json("job", "show", job["job"])["final"]


def test_a_wait_outlives_the_api(site: RunningSite, bank: MariaDB) -> None:
    """The API is killed while the command line waits for a job, and comes back: the wait goes on and ends as the job does."""
    agent = site.processes["agent"]
    agent.pause()
    results: list[subprocess.CompletedProcess[str]] = []
    waiting = threading.Thread(target=lambda: results.append(site.run("source", "pause", "bank")))
    waiting.start()
    try:
        eventually(lambda: site.json("job", "list", "--open")["jobs"])
        site.kill("api")
        site.start("api")
        site.ready()
    finally:
        agent.resume()
    waiting.join(90)
    assert results[0].returncode == 0, results[0].stderr
    site.cli("source", "resume", "bank")


def test_without_an_api_a_command_says_so(site: RunningSite, bank: MariaDB) -> None:
    site.processes["api"].stop()
    assert site.processes["api"].exit_status == 0, site.log("api")
    assert "api-unreachable" in site.cli("source", "list", expect=3)
    site.start("api")
    site.ready()
    assert "bank" in site.cli("source", "list")


def test_a_dropped_table_is_brought_back_and_looked_at_on_a_scratch_copy(site: RunningSite, bank: MariaDB) -> None:
    bank.execute(
        "create table bank.lost (id int primary key, v varchar(20))", "insert into bank.lost values (1, 'ä'), (2, 'b')"
    )

    def filled() -> int:
        found = site.json("timeline", "show", "bank", "--table", "bank.lost", "--limit", "1")["steps"]
        return int(found[0]["ordinal"]) if found else 0

    there = eventually(filled) or 0
    bank.execute("drop table bank.lost")
    eventually(lambda: head(site) > there)
    hinted = site.json("rollback", "plan", "bank", "--steps", "1", expect=11)
    assert "holdfast rollback table" in hinted["obstacles"][0]["hint"]
    refused = site.json("rollback", "table", "bank", "bank.lost", "--to", str(there), "--yes", expect=11)
    grant = next(o["hint"] for o in refused["obstacles"] if o["code"] == "privilege-missing")
    bank.execute(grant)
    done = site.json("rollback", "table", "bank", "bank.lost", "--to", str(there), "--yes")
    assert (done["result"]["rows"], done["result"]["kept"]) == (2, "")
    assert bank.execute("select * from bank.lost order by id") == [(1, "ä"), (2, "b")]
    made = site.json("scratch", "create", "look", "--source", "bank", "--at", str(there), "--expires", "1h")["scratch"]
    password = Path(made["password_file"]).read_text().strip()
    with (
        pymysql.connect(unix_socket=made["socket"], user=made["account"], password=password) as copy,
        copy.cursor() as cursor,
    ):
        cursor.execute("select count(*) from bank.lost")
        assert cursor.fetchone() == (2,)
    assert "look" in site.cli("scratch", "list")
    assert "MYSQL_PWD=" in site.cli("scratch", "show", "look")
    site.cli("scratch", "drop", "look")
    assert "There is no scratch copy" in site.cli("scratch", "list")


def test_a_removed_source_keeps_its_timeline(site: RunningSite, bank: MariaDB) -> None:
    """Last of this module."""
    steps = head(site)
    assert "not-confirmed" in site.cli("source", "remove", "bank", expect=13)
    site.cli("source", "remove", "bank", "--yes")
    eventually(lambda: "bank" not in {s["name"] for s in site.json("source", "list")["sources"]})
    assert head(site) == steps
    assert "source-removed" in site.cli("rollback", "plan", "bank", "--steps", "1", expect=11)
