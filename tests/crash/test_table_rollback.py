"""One table brought back through a real agent: after TRUNCATE, DROP and ALTER; refused where it cannot be; killed at every
boundary, the source has the old table or the new one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from typing import Any

import pymysql
import pytest

from streams.events import JobChanged, TableRollbackChanged, TableRollbackPlanned
from streams.ids import uuid7
from tests.crash.test_scratch_kills import Scene, scene  # noqa: F401 - a fixture
from tests.stack.agent import await_it, await_job, events, send
from tests.stack.contents import rows_digest

pytestmark = pytest.mark.crash
BEFORE_SWAP = ("table.loading", "table.created", "table.loaded", "table.fenced", "table.noted")
AFTER_SWAP = ("table.swapped", "table.stripped", "table.finished", "table.unfenced")
TABLES = (
    "CREATE TABLE shop.maker (id INT PRIMARY KEY, name VARCHAR(20))",
    """CREATE TABLE shop.thing (id INT PRIMARY KEY AUTO_INCREMENT, maker INT, f FLOAT, b VARBINARY(20), t TIMESTAMP(3) NULL,
       v INT AS (maker * 2) VIRTUAL, e ENUM('a','b'), j JSON, KEY by_f (f),
       CONSTRAINT thing_maker FOREIGN KEY (maker) REFERENCES shop.maker (id))""",
    "CREATE TABLE shop.seen (id INT PRIMARY KEY AUTO_INCREMENT, thing INT)",
    "CREATE TRIGGER shop.thing_seen AFTER INSERT ON shop.thing FOR EACH ROW INSERT INTO shop.seen (thing) VALUES (NEW.id)",
    "INSERT INTO shop.maker VALUES (1, 'one'), (2, 'two')",
    "CREATE TABLE shop.count (seq INT PRIMARY KEY)",
    "INSERT INTO shop.count VALUES " + ", ".join(f"({i})" for i in range(1, 3001)),
    """INSERT INTO shop.thing (maker, f, b, t, e, j) SELECT 1 + seq % 2, seq / 3, UNHEX(LPAD(HEX(seq * 7919), 32, '5')),
       '2026-03-01 12:00:00' + INTERVAL seq SECOND, 'b', JSON_OBJECT('n', seq) FROM shop.count""",
)


# On MySQL, where CHECKs have names of their schema's.
CHECKED = "ALTER TABLE shop.thing ADD CHECK (maker > 0), ADD CHECK (maker < 9)"


@pytest.fixture
def shop(scene: Scene) -> Scene:  # noqa: F811
    for statement in (*TABLES, *([CHECKED] if scene.server.kind == "mysql" else [])):
        with contextlib.closing(scene.server.connect(database="shop")) as conn, conn.cursor() as cursor:
            cursor.execute(statement)
    scene.settled()
    return scene


def state(scene: Scene, table: str = "thing") -> tuple[Any, ...]:  # noqa: F811
    """Rows, definition and triggers of a table."""
    with contextlib.closing(scene.server.connect()) as conn:
        digest = rows_digest(conn, "shop", table)
    text = scene.server.execute(f"SHOW CREATE TABLE shop.{table}")[0][1].split(" AUTO_INCREMENT=")[0]
    triggers = [row[:5] for row in scene.server.execute(f"SHOW TRIGGERS FROM shop LIKE '{table}'")]
    return digest, text, triggers


def plan(scene: Scene, ordinal: int, table: str = "thing") -> TableRollbackPlanned:  # noqa: F811
    number = uuid7()
    command = send(
        scene.site, "rollback.table-plan", "shop", plan=number, schema="shop", table=table, lineage=scene.lineage,
        target=f"to step {ordinal}", target_ordinal=ordinal, target_time_us=0, head_ordinal=scene.head(),
    )  # fmt: skip
    done = await_job(scene.site, command, 120)
    assert done.state == "finished", done
    return next(e for e in events(scene.site, "rollbacks", TableRollbackPlanned) if e.plan == number)


def ask(scene: Scene, planned: TableRollbackPlanned) -> str:  # noqa: F811
    return send(scene.site, "rollback.table-run", "shop", plan=planned.plan, digest=planned.digest.hex())


def run(scene: Scene, planned: TableRollbackPlanned) -> JobChanged:  # noqa: F811
    return await_job(scene.site, ask(scene, planned), 120)


def states(scene: Scene, planned: TableRollbackPlanned) -> list[str]:  # noqa: F811
    return [e.state for e in events(scene.site, "rollbacks", TableRollbackChanged) if e.plan == planned.plan]


def leftovers(scene: Scene) -> list[str]:  # noqa: F811
    rows = scene.server.execute(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' AND TABLE_NAME LIKE '\\_holdfast\\_new%'"
    )
    return [str(name) for (name,) in rows]


ACCIDENTS = (
    ("TRUNCATE TABLE shop.thing",),
    ("DROP TABLE shop.thing",),
    ("ALTER TABLE shop.thing DROP COLUMN f, MODIFY b VARBINARY(8)",),
    ("DROP TRIGGER shop.thing_seen", "DELETE FROM shop.thing WHERE id % 2"),
)


def test_truncate_drop_and_alter_are_undone(shop: Scene) -> None:
    undone(shop, ACCIDENTS)


@pytest.mark.parametrize("scene", ["mysql-9"], indirect=True)
def test_tables_of_mysql_are_brought_back(shop: Scene) -> None:
    undone(shop, ACCIDENTS[1:3])
    shop.server.execute("ALTER TABLE shop.count ADD CONSTRAINT mine CHECK (seq > 0)")
    at = parent_brought_back(shop, "table.child-stripped")
    assert [p.code for p in plan(shop, at, "count").obstacles] == ["named-checks"]


def children(scene: Scene) -> list[tuple[Any, ...]]:  # noqa: F811
    """Foreign keys that point at tables of the shop, and what they say."""
    return scene.server.execute(
        "SELECT TABLE_NAME, CONSTRAINT_NAME, REFERENCED_TABLE_NAME, DELETE_RULE, UPDATE_RULE FROM"
        " information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA IN ('shop', 'branch') ORDER BY 1, 2"
    )


def parent_brought_back(shop: Scene, killed_at: str) -> int:
    """A table that others point at: their keys come along, unless that would leave rows pointing nowhere. The step that it is
    brought back to, of which there is a copy."""
    shop.server.execute(
        "CREATE DATABASE branch",
        "CREATE TABLE branch.stall (id INT PRIMARY KEY, maker INT, CONSTRAINT stall_maker FOREIGN KEY (maker)"
        " REFERENCES shop.maker (id) ON DELETE CASCADE ON UPDATE SET NULL)",
        "INSERT INTO branch.stall VALUES (1, 1), (2, NULL)",
    )
    at = shop.settled()
    assert await_job(shop.site, shop.create("then", at), 180).state == "finished"
    maker, thing, keys = state(shop, "maker"), state(shop), children(shop)
    assert len(keys) == 2
    shop.server.execute(
        "UPDATE shop.maker SET name = 'spoilt'",
        "INSERT INTO shop.maker VALUES (3, 'new')",
        "UPDATE branch.stall SET maker = 3",
    )
    shop.settled()
    dangling = plan(shop, at, "maker")
    assert [p.code for p in dangling.obstacles] == ["dangling-children"]
    assert "branch.stall (stall_maker)" in dangling.obstacles[0].message
    assert "maker = 3" in dangling.obstacles[0].message
    shop.server.execute("UPDATE branch.stall SET maker = 2")
    shop.settled()
    planned = plan(shop, at, "maker")
    assert planned.obstacles == ()
    assert "children-follow" in [w.code for w in planned.warnings]
    # Written since: found under the fence.
    shop.server.execute("UPDATE branch.stall SET maker = 3 WHERE id = 1")
    shop.settled()
    refused = run(shop, planned)
    assert [p.code for p in refused.problems] == ["dangling-children"]
    assert not shop.server.execute("SELECT @@global.read_only")[0][0]
    assert children(shop) == keys
    shop.server.execute("UPDATE branch.stall SET maker = 2")
    shop.settled()
    shop.agent.end()
    shop.agent.start(failpoint=killed_at)
    ask(shop, planned)
    assert shop.agent.wait() != 0
    shop.agent.start()
    await_it(lambda: states(shop, planned)[-1] == "applied" or None, "a table that is back")
    assert (state(shop, "maker"), state(shop), children(shop)) == (maker, thing, keys)
    with pytest.raises(pymysql.err.IntegrityError):
        shop.server.execute("INSERT INTO shop.thing (maker) VALUES (3)")
    shop.server.execute(f"DROP TABLE shop.{planned.kept}")
    return at


def test_tables_that_others_point_at_and_four_eyes(shop: Scene) -> None:
    parent_brought_back(shop, "table.swapped")
    at = shop.head()
    shop.require_approval()
    shop.server.execute("TRUNCATE TABLE shop.thing")
    shop.settled()
    planned = plan(shop, at)
    assert planned.obstacles == ()
    assert "approval-required" in [w.code for w in planned.warnings]

    def asked(what: str, by: str) -> JobChanged:
        command = send(
            shop.site, f"rollback.table-{what}", "shop", requester=by, plan=planned.plan, digest=planned.digest.hex()
        )
        return await_job(shop.site, command, 120)

    assert [p.code for p in asked("run", "tester").problems] == ["approval-missing"]
    assert [p.code for p in asked("approve", "Tester").problems] == ["approval-own"]
    assert asked("approve", "bob").state == "finished"
    assert [p.code for p in asked("run", "bob").problems] == ["approval-missing"]
    shop.agent.end()
    shop.agent.start()
    assert asked("run", "tester").state == "finished"
    assert states(shop, planned) == ["approved", "confirmed", "loading", "fenced", "applied"]


def undone(shop: Scene, accidents: Sequence[tuple[str, ...]]) -> None:
    """Each of them, and a copy of what came of it all."""
    before, at = state(shop), shop.head()
    # Plans are made from a copy that stands there already.
    assert await_job(shop.site, shop.create("there", at), 180).state == "finished"
    for accident in accidents:
        with contextlib.closing(shop.server.connect()) as conn, conn.cursor() as cursor:
            cursor.execute("SET SESSION sql_mode = ''")
            for statement in accident:
                cursor.execute(statement)
        shop.settled()
        assert not shop.exists("thing") or state(shop) != before
        planned = plan(shop, at)
        assert (planned.rows_then, planned.obstacles) == (3000, ())
        assert (planned.rows_now is None) == accident[0].startswith("DROP TABLE")
        done = run(shop, planned)
        assert done.state == "finished", done
        assert state(shop) == before
        assert states(shop, planned) == ["confirmed", "loading", "fenced", "applied"]
        assert not shop.server.execute("SELECT @@global.read_only")[0][0]
        assert leftovers(shop) == []
        # What was there before is kept, and the log knows all of it: a copy of now is the source of now.
        assert shop.exists(planned.kept) == (planned.rows_now is not None)
        again = run(shop, planned)
        assert [p.code for p in again.problems] == ["plan-applied"]
        if planned.kept:
            shop.server.execute(f"DROP TABLE shop.{planned.kept}")
    now = shop.settled()
    assert await_job(shop.site, shop.create("after", now), 120).state == "finished"
    assert shop.holds("after") == shop.states[now]


def test_what_cannot_be_swapped_is_refused(shop: Scene) -> None:
    at = shop.head()
    shop.server.execute("TRUNCATE TABLE shop.thing", "INSERT INTO shop.thing (maker) VALUES (1)")
    shop.settled()
    planned = plan(shop, at)
    shop.server.execute("ALTER TABLE shop.thing ADD COLUMN late INT")
    shop.settled()
    refused = run(shop, planned)
    assert [p.code for p in refused.problems] == ["source-moved-on"]
    shop.server.execute(
        "ALTER TABLE shop.thing DROP COLUMN late", "DELETE FROM shop.thing", "DELETE FROM shop.maker WHERE id = 2"
    )
    shop.settled()
    before = state(shop)
    refused = run(shop, plan(shop, at))
    assert [p.code for p in refused.problems] == ["orphan"]
    assert state(shop) == before
    assert not shop.server.execute("SELECT @@read_only")[0][0]
    shop.server.execute("REVOKE INSERT ON *.* FROM roll@'127.0.0.1'", "SET GLOBAL log_bin_trust_function_creators = 0")
    lacking = plan(shop, at)
    assert [p.code for p in lacking.obstacles] == ["privilege-missing", "setting"]
    assert "INSERT" in lacking.obstacles[0].hint
    assert leftovers(shop) == []


def test_killed_anywhere_the_source_has_the_old_table_or_the_new(shop: Scene) -> None:
    at = shop.head()
    # Plans are made from a copy that stands there already.
    assert await_job(shop.site, shop.create("there", at), 120).state == "finished"
    killed(shop)


def killed(shop: Scene) -> None:
    at, then = shop.head(), state(shop)
    planned = changed_and_planned(shop, at)
    now = state(shop)
    shop.agent.end()
    # One plan, and an agent that dies at one place before the swap after the other.
    job = ""
    for place in (*BEFORE_SWAP, ""):
        shop.agent.start(failpoint=place)
        if job:
            died = await_job(shop.site, job, 120)
            assert [p.code for p in died.problems] == ["agent-died"], place
            assert state(shop) == now, place
            assert leftovers(shop) == [], place
            assert not shop.server.execute("SELECT @@global.read_only")[0][0], place
        if place:
            job = ask(shop, planned)
            assert shop.agent.wait(120) == -signal.SIGKILL, place
            assert shop.exists("thing")
    assert run(shop, planned).state == "finished"
    assert state(shop) == then
    for place in AFTER_SWAP:
        shop.server.execute(f"DROP TABLE shop.{planned.kept}")
        planned = changed_and_planned(shop, at)
        shop.agent.end()
        shop.agent.start(failpoint=place)
        job = ask(shop, planned)
        assert shop.agent.wait(120) == -signal.SIGKILL, place
        assert shop.exists("thing")
        shop.agent.start()
        assert await_job(shop.site, job, 120).state == "finished", place
        assert state(shop) == then, place
        assert not shop.server.execute("SELECT @@global.read_only")[0][0], place
        assert leftovers(shop) == [], place
        assert states(shop, planned)[-1] == "applied", place


def changed_and_planned(shop: Scene, at: int) -> TableRollbackPlanned:
    shop.server.execute("DELETE FROM shop.thing WHERE id > 100", "ALTER TABLE shop.thing COMMENT = 'changed'")
    shop.settled()
    return plan(shop, at)
