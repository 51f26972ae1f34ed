"""From a point to the first of its chain: who says what its record is, and what is said when two differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.repository import points
from agents.repository.points import Captured, JournalPlace, Point, RecordKey
from agents.repository.proof import Said, prove
from agents.repository.stores.memory import MemoryStore

KEY = RecordKey("01900000-0000-7000-8000-000000000001", bytes(range(32)), True)


def id_of(i: int) -> str:
    return f"01900000-0000-7000-8000-{i:012x}"


@pytest.fixture
def chain() -> tuple[MemoryStore, dict[str, Said]]:
    """Five points, each continuing the one before."""
    store = MemoryStore()
    sealed: dict[str, Said] = {}
    before, record = "", b""
    for i in range(1, 6):
        captured = (Captured("shop", "lineage", i, bytes([i]) * 32),)
        point = Point(
            id_of(i), "vm", "", "disks", i, "s", i, "n", JournalPlace(i, "e"), before, record, captured=captured
        )
        record = points.seal(store, point, KEY)
        sealed[point.point] = Said(record, before)
        before = point.point
    return store, sealed


def test_a_chain_is_proven_from_its_end_to_its_beginning(chain: tuple[MemoryStore, dict[str, Said]]) -> None:
    store, sealed = chain
    proof = prove(store, id_of(5), KEY, sealed)
    assert (proof.problems, proof.whole) == ((), True)
    assert [link.point for link in proof.links] == [id_of(i) for i in (5, 4, 3, 2, 1)]
    assert [link.by for link in proof.links] == [("file", "log")] + [("file", "log", "next")] * 4
    assert [link.record for link in proof.links] == [sealed[id_of(i)].record for i in (5, 4, 3, 2, 1)]
    assert proof.captured == (Captured("shop", "lineage", 5, b"\x05" * 32),)


def test_a_point_that_was_dropped_is_bridged_by_the_log(chain: tuple[MemoryStore, dict[str, Said]]) -> None:
    store, sealed = chain
    points.drop(store, id_of(3))
    proof = prove(store, id_of(5), KEY, sealed)
    assert (proof.problems, proof.whole) == ((), True)
    assert proof.links[2].by == ("log", "next")
    assert proof.links[3].by == ("file", "log")


def test_without_a_log_it_goes_as_far_as_the_files_say(chain: tuple[MemoryStore, dict[str, Said]]) -> None:
    store, _ = chain
    proof = prove(store, id_of(5), KEY, {})
    assert (proof.problems, proof.whole, len(proof.links)) == ((), True, 5)
    points.drop(store, id_of(3))
    proof = prove(store, id_of(5), KEY, {})
    assert (proof.problems, proof.whole, len(proof.links)) == ((), False, 3)


def test_a_record_that_took_another_s_place_is_told(chain: tuple[MemoryStore, dict[str, Said]]) -> None:
    store, sealed = chain
    was = points.read(store, id_of(3), KEY).point
    points.drop(store, id_of(3))
    points.seal(store, replace(was, asset_name="slipped in"), KEY)
    proof = prove(store, id_of(5), KEY, sealed)
    assert len(proof.problems) == 1
    assert all(id_of(3) in problem for problem in proof.problems)
    # Also without the log: the point after it names another record.
    assert len(prove(store, id_of(5), KEY, {}).problems) == 1
    # And where the log says another chain.
    sealed[id_of(5)] = Said(sealed[id_of(5)].record, id_of(2))
    assert any("continues" in problem for problem in prove(store, id_of(5), KEY, sealed).problems)


def test_a_record_that_is_damaged_on_the_way_is_a_problem_and_not_the_end(
    chain: tuple[MemoryStore, dict[str, Said]],
) -> None:
    store, sealed = chain
    for folder in ("points", "points2"):
        store.delete(f"{folder}/{id_of(2)}.point")
        store.create(f"{folder}/{id_of(2)}.point", [b"nothing"])
    proof = prove(store, id_of(5), KEY, sealed)
    assert (len(proof.problems), proof.whole, len(proof.links)) == (1, True, 5)


def test_a_chain_in_a_circle_ends(chain: tuple[MemoryStore, dict[str, Said]]) -> None:
    store, _ = chain
    for one, other in ((10, 11), (11, 10)):
        point = Point(id_of(one), "vm", "", "disks", 1, "s", 1, "n", JournalPlace(1, "e"), id_of(other), b"x" * 32)
        points.seal(store, point, KEY)
    proof = prove(store, id_of(10), KEY, {})
    assert not proof.whole
    assert any("comes back" in problem for problem in proof.problems)
