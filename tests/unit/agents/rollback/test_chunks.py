"""How a plan is cut into chunks: whole steps, in the order of the way, and what is left of one that stopped half way."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import registry
from agents.errors import AgentError
from agents.protocol import SourceSettings
from agents.rollback import chunks
from agents.rollback.chunks import Breath, next_chunk, remaining, replicas, request_of_chunk
from agents.rollback.plan import request_of
from deploy.demo.mariadb import MariaDB
from streams.events import OrdinalRange, RollbackPlanned
from streams.paths import Path, Turn, normalise, path_at, turn, way

PLANNED = RollbackPlanned(
    plan="p", source="shop", lineage="l", kind="rollback", target="back", target_ordinal=0, target_time_us=0,
    head_ordinal=0, path_before=(), path_after=(), undo=(), redo=(), steps=1, rows=1, payload_bytes=1, tables=(),
    schema_version=b"", digest=b"\1" * 32, planned_us=0, by="tester", options='{"chunk_rows":10,"whole_source":false}',
)  # fmt: skip


def path(*ranges: tuple[int, int]) -> Path:
    return normalise(OrdinalRange(first, last) for first, last in ranges)


def ordinals(of: Path) -> list[int]:
    return [o for r in of for o in range(r.first, r.last + 1)]


def test_a_chunk_is_whole_steps_and_one_at_least() -> None:
    rows = {1: 5, 2: 5, 3: 40, 4: 5, 5: 5}
    assert next_chunk(path((1, 5)), (), rows, 10) == (path((4, 5)), ())
    assert next_chunk(path((1, 3)), (), rows, 10) == (path((3, 3)), ())
    assert next_chunk(path((1, 2)), path((7, 9)), rows, 10) == (path((1, 2)), ())
    assert next_chunk((), path((1, 4)), rows, 10) == ((), path((1, 2)))


@given(
    head=st.integers(2, 40),
    back=st.integers(0, 39),
    branch=st.integers(0, 8),
    sizes=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    most=st.integers(1, 40),
    later=st.lists(st.integers(0, 2), min_size=60, max_size=60),
)
def test_chunks_lead_where_the_plan_leads_and_leave_what_came_between(
    head: int, back: int, branch: int, sizes: list[int], most: int, later: list[int]
) -> None:
    """Followed as the agent follows them, with steps of others between any two chunks; the timeline's own rules say what
    stands after each."""
    turns = [Turn(head + 1, "t", path((1, head - branch)))] if branch and branch < head else []
    at = head + (1 if turns else 0)
    before, after = path_at(at, turns), path_at(min(back, head), turns)
    undo, redo = way(before, after)
    planned = replace(PLANNED, head_ordinal=at, path_before=before, path_after=after, undo=undo, redo=redo)
    rows = dict(enumerate(sizes, 1))
    others: set[int] = set()
    for number, more in enumerate(later, 1):
        others |= set(range(at + 1, at + 1 + more))
        at += more
        standing = path_at(at, turns)
        left = remaining(planned, standing)
        if left == ((), ()):
            break
        steps = next_chunk(*left, rows, most)
        assert sum(rows[o] for o in ordinals(steps[0] + steps[1])) <= most or len(ordinals(steps[0] + steps[1])) == 1
        request = request_of_chunk(planned, request_of(planned), standing, at, steps, number)
        assert request.way == steps
        assert request.options == '{"part_of":"p","whole_source":false}'
        part = replace(
            planned, plan=request.plan, head_ordinal=at, path_before=standing, path_after=request.path_after,
            undo=steps[0], redo=steps[1], options=request.options,
        )  # fmt: skip
        assert replace(request_of(part), target=request.target) == replace(request, target_ordinal=0)
        at += 1
        turns.append(turn(part, at))
    assert remaining(planned, path_at(at, turns)) == ((), ())
    assert set(ordinals(path_at(at, turns))) == set(ordinals(after)) | others


def test_replicas_are_named_by_host_and_port() -> None:
    settings = SourceSettings("shop", "mariadb", "db", 3306, options={"replicas": "one:3306, [::1]:3307"})
    assert [(r.host, r.port) for r in replicas(settings)] == [("one", 3306), ("[::1]", 3307)]
    assert [r.host for r in replicas(settings, ["one:3306"])] == ["[::1]"]
    assert replicas(replace(settings, options={})) == []
    with pytest.raises(AgentError, match="replica-unknown"):
        replicas(settings, ["two:3306"])
    with pytest.raises(AgentError, match="option-invalid"):
        replicas(replace(settings, options={"replicas": "one"}))


def test_the_next_chunk_waits_until_undo_is_purged(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of long ago keeps the undo of all that was written since."""
    monkeypatch.setattr(chunks, "MOST_UNDO", 100)
    settings = SourceSettings(
        "shop", "mariadb", mariadb.host, mariadb.port,
        accounts={"rollback": "root"}, passwords={"rollback": mariadb.root_password},
    )  # fmt: skip
    mariadb.execute("create database growing", "create table growing.t (id int primary key, v int)")
    mariadb.execute("insert into growing.t values (1, 0)")
    with contextlib.closing(mariadb.connect(autocommit=False)) as reader, reader.cursor() as reading:
        reading.execute("start transaction with consistent snapshot")
        with contextlib.closing(mariadb.connect()) as writer, writer.cursor() as cursor:
            for _ in range(300):
                cursor.execute("update growing.t set v = v + 1")
        told: list[str] = []

        def say(why: str) -> None:
            told.append(why)
            if len(told) == 2:
                reader.rollback()
                mariadb.execute("set global innodb_max_purge_lag_wait = 0")  # returns when all is purged

        Breath(registry.target, settings, [], 0, lambda: None, say).take("plan")
    assert "waiting for the source to purge undo of" in told[0]
