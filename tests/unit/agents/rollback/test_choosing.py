"""Selective undo on a real server: exactly the rows that a model predicts, whatever was written around them.

The model knows the log as decoded rows and the definitions in docs/adr/0011: which changes are taken is found by trying, over
and over, until nothing more depends; and a row that a taken change touched ends as it was before the first of them.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest

from agents.capture import granules
from agents.capture.granules import Indexer
from agents.capture.keys import KeyCollector, Recorded
from agents.keystore import KeyIndex, KeyStore, folder_of, open_index
from agents.rollback import choose
from agents.rollback.apply import Outcome
from agents.rollback.plan import Plan
from agents.rollback.target import Stopped
from deploy.demo.server import DatabaseServer
from streams.capture_log import StepFragment
from streams.events import OrdinalRange, SchemaRecorded
from streams.formats.binlog.step import decode_step
from streams.selection import KeyRange, Selection
from tests.stand_ins.rollback_bench import RollbackBench

SEEDS = [int(s) for s in os.environ.get("HOLDFAST_WALK_SEEDS", "1,2,3").split(",")]
SCHEMA = "chosen"
TABLES = ("plain", "word", "parent", "child", "keyless")
STATEMENTS = (
    f"DROP DATABASE IF EXISTS {SCHEMA}",
    f"CREATE DATABASE {SCHEMA}",
    f"CREATE TABLE {SCHEMA}.plain (id INT PRIMARY KEY, v INT, t VARCHAR(20))",
    f"CREATE TABLE {SCHEMA}.word (id VARCHAR(9) COLLATE utf8mb4_general_ci, n INT, v INT, PRIMARY KEY (id, n))",
    f"CREATE TABLE {SCHEMA}.parent (id INT PRIMARY KEY, u INT UNIQUE, v INT)",
    f"CREATE TABLE {SCHEMA}.child (id INT PRIMARY KEY, p INT, v INT, FOREIGN KEY (p) REFERENCES {SCHEMA}.parent (id))",
    f"CREATE TABLE {SCHEMA}.keyless (x INT, y INT)",
)
KEYS = {"plain": (0,), "word": (0, 1), "parent": (0,), "child": (0,), "keyless": (0, 1)}

Row = tuple[Any, ...]
Key = tuple[str, Row]


def key(table: str, row: Row) -> Key:
    return table, tuple(row[i] for i in KEYS[table])


@dataclass(frozen=True)
class Write:
    """A row changed by a step."""

    ordinal: int
    table: str
    before: Row | None
    after: Row | None

    @property
    def keys(self) -> set[Key]:
        return {key(self.table, row) for row in (self.before, self.after) if row is not None}


class Load:
    """Random transactions on all tables, few keys, so that they meet. What fails is rolled back."""

    def __init__(self, bench: RollbackBench, rng: random.Random) -> None:
        self.conn = bench.server.connect()
        self.rng = rng

    def statement(self) -> str:
        rng, n = self.rng, self.rng.randrange
        table = rng.choices(TABLES, (4, 2, 2, 2, 1))[0]
        name = f"{SCHEMA}.{table}"
        i, j, v = n(9), n(9), n(1000)
        choices: tuple[str, ...]
        match table:
            case "plain":
                choices = (f"INSERT INTO {name} VALUES ({i}, {v}, 't{v}')", f"UPDATE {name} SET v = {v} WHERE id IN ({i}, {j})",
                           f"UPDATE {name} SET id = {i} WHERE id = {j}", f"DELETE FROM {name} WHERE id = {i}")  # fmt: skip
            case "word":
                choices = (f"INSERT INTO {name} VALUES ('w{i % 3}', {j % 3}, {v})",
                           f"UPDATE {name} SET v = {v} WHERE id = 'W{i % 3}'",
                           f"UPDATE {name} SET id = 'W{i % 3}' WHERE id = 'w{i % 3}' AND n = {j % 3}",
                           f"DELETE FROM {name} WHERE id = 'w{i % 3}' AND n = {j % 3}")  # fmt: skip
            case "parent":
                choices = (f"INSERT INTO {name} VALUES ({i}, {rng.choice((j, 'NULL'))}, {v})",
                           f"UPDATE {name} SET v = {v} WHERE id = {i}", f"UPDATE {name} SET u = {j} WHERE id = {i}",
                           f"DELETE FROM {name} WHERE id = {i}")  # fmt: skip
            case "child":
                choices = (f"INSERT INTO {name} VALUES ({i}, {j}, {v})", f"UPDATE {name} SET p = {j} WHERE id = {i}",
                           f"UPDATE {name} SET v = {v} WHERE id = {i}", f"DELETE FROM {name} WHERE id = {i}")  # fmt: skip
            case _:
                choices = (f"INSERT INTO {name} VALUES ({i % 3}, {v})", f"UPDATE {name} SET y = {v} WHERE x = {i % 3}",
                           f"DELETE FROM {name} WHERE x = {i % 3} LIMIT 1")  # fmt: skip
        return rng.choice(choices)

    def transaction(self) -> None:
        with self.conn.cursor() as cursor:
            cursor.execute("BEGIN")
            for _ in range(self.rng.choice((1, 1, 2, 4))):
                try:
                    cursor.execute(self.statement())
                except pymysql.err.IntegrityError:
                    continue
            cursor.execute("COMMIT")


def content(bench: RollbackBench) -> dict[str, list[Row]]:
    return {t: sorted(bench.sql(f"SELECT * FROM {SCHEMA}.{t}"), key=repr) for t in TABLES}


def log_of(bench: RollbackBench) -> list[Write]:
    """What the steps on the path did, in order."""
    bench.head()
    standing = {o for r in bench.path() for o in range(r.first, r.last + 1)}
    out = []
    for step in bench.log.recorded:
        if step.ordinal in standing and step.payload is not None:
            for c in decode_step(step.preamble, step.payload):
                if c.schema == SCHEMA:
                    out.append(Write(step.ordinal, c.table, c.before, c.after))
    return out


class Indexed:
    """The key index over what the log holds, as the indexer makes it, in granules of a few steps."""

    def __init__(self, bench: RollbackBench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        definitions = tuple(bench.schema.tables.values())
        recorded = SchemaRecorded(
            lineage=bench.log.lineage, source="shop", ordinal=0, position="", full=True, origin="baseline", statement="",
            tables=definitions, version=bench.schema.version, at_us=0,
        )  # fmt: skip
        self.granules = Indexer("shop", bench.log.lineage, 1, "topic")
        secret = bytes(32)
        self.keys = KeyCollector("shop", bench.log.lineage, 1, "id", secret, Recorded(bench.log.lineage, [recorded]))
        self.store = KeyStore(folder_of(folder, "shop", bench.log.lineage))
        self.fed = 0

    def key_ids(self) -> tuple[str, ...]:
        return ("id",)

    def derived(self, purpose: str, key_id: str = "") -> tuple[str, bytes]:
        return "id", bytes(32)

    def now(self) -> KeyIndex | None:
        """Up to the last granule that is full; the store is opened anew now and then, as by another process."""
        self.bench.head()
        for step in self.bench.log.recorded[self.fed :]:
            fragment = StepFragment(step.ordinal, 0, True, step.preamble, step.payload, False, 0, "", step.ordinal)
            granule = self.granules.add(fragment)
            self.keys.add(fragment)
            if granule is not None:
                self.store.add(self.keys.close(granule), granule)
                if granule.last_ordinal % 3 == 0:
                    self.store = KeyStore(folder_of(self.folder, "shop", self.bench.log.lineage))
            self.fed = step.ordinal
        return open_index(self.folder, "shop", self.bench.log.lineage, self)


# --- the model ---------------------------------------------------------------------------------------------------------


def picked(selection: Selection, w: Write) -> bool:
    if not any(r.first <= w.ordinal <= r.last for r in selection.steps):
        return False
    if selection.table is None:
        return True
    if selection.table != (SCHEMA, w.table):
        return False
    if not selection.keys:
        return True
    rows = [row for row in (w.before, w.after) if row is not None]
    return any(int(k.first[0]) <= row[0] <= int(k.last[0]) for k in selection.keys for row in rows)


def linked(earlier: Write, later: Write) -> bool:
    """Whether `later` depends on `earlier` by a foreign or unique key."""
    a, b = earlier, later

    def has(row: Row | None, place: int) -> Any:
        return None if row is None else row[place]

    if a.table == "parent" and b.table == "child":
        made = has(a.after, 0) if has(a.before, 0) != has(a.after, 0) else None
        return made is not None and has(b.after, 1) == made and has(b.before, 1) != made
    if a.table == "child" and b.table == "parent":
        needed = has(a.before, 1) if has(a.before, 1) != has(a.after, 1) else None
        return needed is not None and has(b.before, 0) == needed and has(b.after, 0) != needed
    if a.table == b.table == "parent":
        freed = has(a.before, 1) if has(a.before, 1) != has(a.after, 1) else None
        other = has(b.after, 0) != has(a.before, 0)
        return freed is not None and other and has(b.after, 1) == freed and has(b.before, 1) != freed
    if a.table == b.table == "word":

        def folded(row: Row | None) -> Row | None:
            return None if row is None else (row[0].lower(), row[1])

        freed = folded(a.before) if folded(a.before) != folded(a.after) else None
        other = b.after is not None and a.before is not None and b.after[:2] != a.before[:2]
        return freed is not None and other and folded(b.after) == freed and folded(b.before) != freed
    return False


def depends(earlier: Write, later: Write) -> bool:
    return bool(earlier.keys & later.keys) or linked(earlier, later)


def taken(log: list[Write], selection: Selection) -> tuple[set[int], set[int], bool]:
    """Places in the log of the changes that are taken, dependant steps, whether `force` cannot."""
    chosen = {i for i, w in enumerate(log) if picked(selection, w)}
    dependants: set[int] = set()
    stuck = False
    grew = True
    while grew:
        grew = False
        for j, later in enumerate(log):
            if j in chosen:
                continue
            causes = [i for i in chosen if i < j and depends(log[i], later)]
            if not causes:
                continue
            dependants.add(later.ordinal)
            if selection.later == "cascade":
                chosen |= {i for i, w in enumerate(log) if w.ordinal == later.ordinal}
                grew = True
            elif selection.later == "force":
                if any(log[i].keys & later.keys for i in causes):
                    chosen.add(j)
                    grew = True
                else:
                    stuck = True
    return chosen, dependants, stuck


def left_alone(log: list[Write], chosen: set[int]) -> set[Key]:
    """Keys that `leave` leaves: written later by what is not chosen, or hanging together with such."""
    left: set[Key] = set()
    for i in sorted(chosen):
        for j in range(i + 1, len(log)):
            if j not in chosen and depends(log[i], log[j]):
                same = log[i].keys & log[j].keys
                left |= same if same else log[i].keys
    grew = True
    while grew:
        grew = False
        for i in chosen:
            if log[i].keys & left and not log[i].keys <= left:
                left |= log[i].keys
                grew = True
            for j in chosen:
                if i < j and linked(log[i], log[j]) and log[i].table != log[j].table:
                    both = log[i].keys | log[j].keys
                    if both & left and not both <= left:
                        left |= both
                        grew = True
    return left


def predicted(
    now: dict[str, list[Row]], log: list[Write], chosen: Iterable[int], left: set[Key]
) -> dict[str, list[Row]]:
    """The tables once these changes are undone."""
    out = {t: list(rows) for t, rows in now.items()}
    for i in sorted(chosen, reverse=True):
        w = log[i]
        if w.keys & left:
            continue
        if w.after is not None:
            out[w.table].remove(w.after)
        if w.before is not None:
            out[w.table].append(w.before)
    return {t: sorted(rows, key=repr) for t, rows in out.items()}


# --- tests ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["mariadb-10.11"])
def bench(request: pytest.FixtureRequest, databases: Callable[[str], DatabaseServer]) -> Iterator[RollbackBench]:
    made = RollbackBench(databases(request.param), STATEMENTS)
    yield made
    made.sql(f"DROP DATABASE {SCHEMA}")
    made.close()


def a_selection(rng: random.Random, bench: RollbackBench, later: str) -> Selection:
    head = bench.head()
    path = bench.path()
    first = rng.randint(max(1, head - (4 if later == "refuse" else 40)), head)
    last = min(head, first + rng.choice((0, 0, 3, 10, 40)))
    steps = (OrdinalRange(first, last),)
    assert path
    what = rng.random()
    if what < 0.4:
        return Selection(steps, None, (), later)
    table = rng.choice(TABLES)
    if what < 0.7 or table in ("word", "keyless"):
        return Selection(steps, (SCHEMA, table), (), later)
    low = rng.randrange(9)
    return Selection(steps, (SCHEMA, table), (KeyRange((str(low),), (str(low + rng.randrange(4)),)),), later)


@pytest.mark.parametrize(
    ("bench", "seed"), [*(("mariadb-10.11", s) for s in SEEDS), ("mysql-9", SEEDS[0])], indirect=["bench"]
)
def test_what_is_left_is_what_the_model_predicts(
    bench: RollbackBench, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the key index changes nothing about it."""
    monkeypatch.setattr(granules, "MAX_STEPS", 5)
    monkeypatch.setattr(choose, "NEIGHBOURS", 1)
    rng = random.Random(seed)
    load = Load(bench, rng)
    indexed = Indexed(bench, tmp_path)
    for _ in range(60):
        load.transaction()
    ran: dict[str, int] = {}
    for _ in range(40):
        for _ in range(rng.randrange(4)):
            load.transaction()
        later = rng.choice(("refuse", "cascade", "cascade", "force", "leave"))
        selection = a_selection(rng, bench, later)
        ran[later] = ran.get(later, 0) + _undo(bench, selection, indexed.now())
    assert set(ran) == {"refuse", "cascade", "force", "leave"}
    assert sum(ran.values()) > 8, ran


def _undo(bench: RollbackBench, selection: Selection, index: KeyIndex | None) -> int:
    """Plan, predict, run, compare; 1 when it ran."""
    log, now = log_of(bench), content(bench)
    chosen, dependants, stuck = taken(log, selection)
    plan = bench.undo(selection)
    codes = [o.code for o in plan.event.obstacles]
    about = f"{selection}: {plan.event.obstacles}"

    assert {d.ordinal for d in plan.event.dependants} == dependants, about
    assert plan.event.dependant_steps == len(dependants)
    assert index is not None
    with contextlib.closing(index):
        again = bench.undo(selection, index)
    del bench.history.plans[again.event.plan]
    assert again.event.digest == plan.event.digest, f"a plan is a function of the log and what was asked: {about}"
    assert again.event.dependants == plan.event.dependants
    assert [o.code for o in again.event.obstacles] == codes
    assert again.event.payload_bytes <= plan.event.payload_bytes, "never more is read than without the index"
    if "rollback-step" in codes:
        return 0
    assert ("later-writes" in codes) == (selection.later == "refuse" and bool(dependants)), about
    assert ("dependant-row" in codes) == (selection.later == "force" and stuck), about
    if codes:
        assert set(codes) <= {"later-writes", "dependant-row", "nothing-to-do"}, about
        if codes == ["nothing-to-do"]:
            assert predicted(now, log, chosen, left_alone(log, chosen)) == now or not plan.event.undo, about
        return 0
    left = left_alone(log, chosen) if selection.later == "leave" else set()
    expected = predicted(now, log, chosen, left)
    outcome = _run(bench, plan)
    if isinstance(outcome, Stopped):
        # What bytes do not show and the server does: never silently, and nothing was changed.
        assert {p.code for p in outcome.problems} <= {"child-outside-plan", "orphan", "conflict"}, about
        assert selection.later in ("force", "leave"), f"{about} {outcome.problems}"
        assert content(bench) == now
        return 0
    assert content(bench) == expected, about
    assert bench.states(plan) == ["confirmed", "applying", "applied"]
    assert bench.leftovers() == []
    stands = bench.path()
    assert any(r.first <= outcome.ordinal <= r.last for r in stands), "it stands like any step"
    return 1


def _run(bench: RollbackBench, plan: Plan) -> Outcome | Stopped:
    try:
        return bench.run(plan)
    except Stopped as stopped:
        return stopped


def undone(plan: Plan) -> list[int]:
    return [o for r in plan.event.undo for o in range(r.first, r.last + 1)]


@pytest.mark.parametrize("bench", ["mariadb-10.11", "mysql-9", "mysql-5.5"], indirect=True)
def test_undone_twice_is_as_it_was(bench: RollbackBench) -> None:
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (1, 10, 'a'), (2, 20, 'b'), (3, 30, 'c')")
    bench.sql(f"UPDATE {SCHEMA}.plain SET v = v + 1 WHERE id < 3")
    step = bench.head()
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (9, 9, 'z')")
    before = content(bench)

    first = bench.run(bench.undo(Selection((OrdinalRange(step, step),), None, (), "refuse")))
    assert bench.sql(f"SELECT id, v FROM {SCHEMA}.plain ORDER BY id") == ((1, 10), (2, 20), (3, 30), (9, 9))
    # It is a step like a user's: one step back takes it back, and so does undoing it.
    again = bench.undo(Selection((OrdinalRange(first.ordinal, first.ordinal),), None, (), "refuse"))
    assert undone(again) == [first.ordinal]
    second = bench.run(again)
    assert content(bench) == before
    plan = bench.plan("rollback", second.ordinal - 1)
    assert plan.event.obstacles == ()
    bench.run(plan)
    assert bench.sql(f"SELECT v FROM {SCHEMA}.plain WHERE id = 1") == ((10,),)
    # And the way back beyond both is a rollback like any other.
    bench.run(bench.plan("rollback", step))
    assert content(bench)["plain"] == [(1, 11, "a"), (2, 21, "b"), (3, 30, "c")]


def test_two_undos_of_different_rows_may_be_planned_together_those_of_the_same_not(bench: RollbackBench) -> None:
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (1, 10, 'a')")
    one = bench.head()
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (2, 20, 'b')")
    plans = [bench.undo(Selection((OrdinalRange(o, o),), None, (), "refuse")) for o in (one, one + 1, one)]
    bench.run(plans[0])
    bench.run(plans[1])
    assert content(bench)["plain"] == []
    with pytest.raises(Stopped) as stopped:
        bench.run(plans[2])
    assert {p.code for p in stopped.value.problems} <= {"conflict", "later-write"}


def test_a_definition_change_in_between_is_in_the_way_of_its_table_only(bench: RollbackBench) -> None:
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (1, 10, 'a')")
    step = bench.head()
    bench.sql(f"INSERT INTO {SCHEMA}.word VALUES ('x', 1, 1)")
    other = bench.head()
    bench.sql(f"TRUNCATE {SCHEMA}.word")

    one = bench.undo(Selection((OrdinalRange(step, step),), None, (), "refuse"))
    assert one.event.obstacles == ()
    two = bench.undo(Selection((OrdinalRange(other, other),), None, (), "refuse"))
    assert [o.code for o in two.event.obstacles] == ["truncate"]
    ddl = bench.undo(Selection((OrdinalRange(other + 1, other + 1),), None, (), "cascade"))
    assert [o.code for o in ddl.event.obstacles] == ["truncate"]
    ranged = bench.undo(Selection((OrdinalRange(step, other + 1),), (SCHEMA, "plain"), (), "refuse"))
    assert ranged.event.obstacles == ()
    assert undone(ranged) == [step]


def test_what_is_not_there_to_be_undone_is_said(bench: RollbackBench) -> None:
    bench.sql(f"INSERT INTO {SCHEMA}.plain VALUES (1, 10, 'a')")
    step = bench.head()
    ranges = (OrdinalRange(step, step),)
    for selection, code in (
        (Selection(ranges, (SCHEMA, "nowhere"), (), "refuse"), "schema-unknown"),
        (Selection(ranges, (SCHEMA, "word"), (), "refuse"), "nothing-to-do"),
        (Selection(ranges, (SCHEMA, "plain"), (KeyRange(("5",), ("9",)),), "refuse"), "nothing-to-do"),
        (Selection(ranges, (SCHEMA, "plain"), (KeyRange(("a",), ("a",)),), "refuse"), "key-invalid"),
        (Selection(ranges, (SCHEMA, "word"), (KeyRange(("a", "1"), ("b", "2")),), "refuse"), "key-invalid"),
        (Selection(ranges, (SCHEMA, "keyless"), (KeyRange(("1",), ("1",)),), "refuse"), "no-key"),
    ):
        assert [o.code for o in bench.undo(selection).event.obstacles] == [code]
