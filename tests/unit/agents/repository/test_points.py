"""Point records and marks: what was said is read, from either copy; what is damaged or forged is told from it."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import marks, points
from agents.repository.errors import RepositoryError
from agents.repository.points import Captured, Disk, JournalPlace, Point, RecordKey, Tree
from agents.repository.stores import StoreError
from agents.repository.stores.memory import MemoryStore
from tests.stand_ins.faulty_store import Fault, FaultyStore

REPOSITORY = "01900000-0000-7000-8000-000000000001"
POINT = "01900000-0000-7000-8000-0000000000aa"
SEALED = RecordKey(REPOSITORY, bytes(range(32)), True)
CLEAR = RecordKey(REPOSITORY, bytes(range(32)), False)


def a_point(point: str = POINT) -> Point:
    return Point(
        point=point,
        asset="web-1",
        asset_name="Web server, 1st",
        kind="disks",
        created_us=1_764_000_000_123_456,
        session="01900000-0000-7000-8000-0000000000bb",
        epoch=17,
        node="node_1",
        journal=JournalPlace(17, "01900000-0000-7000-8000-0000000000cc"),
        continues="01900000-0000-7000-8000-0000000000dd",
        previous_record=bytes(range(32)),
        disks=(
            Disk(
                "d0",
                "sda",
                1 << 40,
                1 << 18,
                b"r" * 32,
                (b"s" * 32, b"t" * 32),
                {"data": 5, "zero": 7},
                {"bus": "scsi"},
            ),
            Disk("d1", "sdb", 10_000, 4096, bytes(32)),
        ),
        trees=(Tree("etc", b"e" * 32, 12345, 17, (), {"files": 17}),),
        configuration={"vm.xml": b"<domain/>", "nvram": bytes(range(256))},
        attached={"large": (b"m" * 32,)},
        facts={"os": "Débian 12"},
        captured=(Captured("shop", "01900000-0000-7000-8000-0000000000ee", 4711, b"c" * 32),),
    )


@pytest.mark.parametrize("key", [SEALED, CLEAR], ids=["sealed", "clear"])
def test_a_record_says_what_the_point_is(key: RecordKey) -> None:
    point = a_point()
    data = points.encode(point, key)
    assert points.decode(data, key) == point
    clear = points.read_clear(data)
    assert (clear.repository, clear.point, clear.journal) == (REPOSITORY, POINT, point.journal)
    bare = Point("p", "", "", "files", 0, "s", 0, "", JournalPlace(0, "e"))
    assert points.decode(points.encode(bare, key), key) == bare


def test_an_encrypted_record_hides_all_but_its_place_in_the_log() -> None:
    data = points.encode(a_point(), SEALED)
    for secret in (b"web-1", b"sda", b"nvram", b"<domain/>"):
        assert secret not in data
    assert POINT.encode() in data


@pytest.mark.parametrize("key", [SEALED, CLEAR], ids=["sealed", "clear"])
@pytest.mark.parametrize(
    "other",
    [
        RecordKey(REPOSITORY, bytes(32), True),
        RecordKey(REPOSITORY, bytes(32), False),
        replace(SEALED, repository="else"),
    ],
    ids=["other key", "other key, clear", "other repository"],
)
def test_nobody_without_the_key_makes_a_point(key: RecordKey, other: RecordKey) -> None:
    with pytest.raises(RepositoryError) as caught:
        points.decode(points.encode(a_point(), other), key)
    assert caught.value.code == "point-damaged"


def test_needs_are_everything_that_a_record_names() -> None:
    found = points.needs(a_point())
    assert found.disks == (b"r" * 32, bytes(32))
    assert found.trees == (b"e" * 32,)
    assert found.chunks == ((3, b"s" * 32), (3, b"t" * 32), (5, b"m" * 32))


@pytest.mark.parametrize("key", [SEALED, CLEAR], ids=["sealed", "clear"])
def test_each_single_damage_is_told(key: RecordKey) -> None:
    data = points.encode(a_point(), key)
    for at in range(0, len(data), 3):
        for bad in (data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], data[:at], data + data[:at] + b"x"):
            with pytest.raises(RepositoryError):
                points.decode(bad, key)
            with pytest.raises(RepositoryError):
                points.read_clear(bad)


@given(st.binary(max_size=300))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_garbage_is_no_record_and_no_mark(garbage: bytes) -> None:
    for data in (garbage, b"HFPOINT1" + garbage):
        with contextlib.suppress(RepositoryError):  # and nothing else
            points.decode(data, SEALED)
    with contextlib.suppress(RepositoryError):
        marks.decode(garbage, SEALED)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda v: st.lists(v, max_size=3)),
    st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
def test_a_record_of_another_writer_with_the_key_is_read_or_refused(junk: object, data: st.DataObject) -> None:
    # What a broken release of ours might write: sealed as it should be, and senseless within.
    plain = points._plain(a_point())
    place = plain
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [v for v in place.values() if isinstance(v, dict)] + [
            v[0] for v in place.values() if isinstance(v, list) and v
        ]
        inner = [v for v in inner if isinstance(v, dict)]
        if inner:
            place = data.draw(st.sampled_from(inner))
    place[data.draw(st.sampled_from(sorted(place)))] = junk
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # what `decode` turns into damage
        points._point(plain)


# -- files


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def files(store: MemoryStore) -> set[str]:
    return {listed.name for listed in store.list("")}


def test_a_point_is_there_twice_and_sealing_it_again_changes_nothing(store: MemoryStore) -> None:
    digest = points.seal(store, a_point(), SEALED)
    assert files(store) == {f"points/{POINT}.point", f"points2/{POINT}.point"}
    assert store.read(f"points/{POINT}.point") == store.read(f"points2/{POINT}.point")
    assert points.seal(store, a_point(), SEALED) == digest
    assert points.read(store, POINT, SEALED) == points.Read(a_point(), digest, False)
    with pytest.raises(RepositoryError, match="another point"):
        points.seal(store, replace(a_point(), asset="other"), SEALED)
    assert points.read(store, POINT, SEALED).record == digest


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize("which", ["points", "points2"])
def test_one_whole_copy_is_enough_and_mends_the_other(store: MemoryStore, damage: str, which: str) -> None:
    digest = points.seal(store, a_point(), SEALED)
    name = f"{which}/{POINT}.point"
    data = store.read(name)
    store.delete(name)
    if damage != "gone":
        bad = {"flip": data[:99] + bytes([data[99] ^ 1]) + data[100:], "cut": data[:-1], "empty": b""}[damage]
        store.create(name, [bad])
    if (which, damage) == ("points", "gone"):
        # Not a point any more: only the log can say whether it was dropped, and then it is mended.
        assert list(points.ids(store)) == []
        assert points.leftovers(store) == [POINT]
        with pytest.raises(RepositoryError, match="no point"):
            points.read(store, POINT, SEALED)
    else:
        assert list(points.ids(store)) == [POINT]
        assert points.read(store, POINT, SEALED) == points.Read(a_point(), digest, True)
    assert points.mend(store, POINT, SEALED)
    assert points.read(store, POINT, SEALED) == points.Read(a_point(), digest, False)
    assert not points.mend(store, POINT, SEALED)
    assert len(files(store)) == 2
    points.drop(store, POINT)
    assert files(store) == set()


def test_a_point_without_a_whole_copy_is_said_to_be_damaged_and_stays(store: MemoryStore) -> None:
    for folder in ("points", "points2"):
        store.create(f"{folder}/{POINT}.point", [b"HFPOINT1 and nothing"])
    for call in (points.read, points.mend):
        with pytest.raises(RepositoryError) as caught:
            call(store, POINT, SEALED)
        assert caught.value.code == "point-damaged"
    assert len(files(store)) == 2


def test_what_else_lies_there_is_no_point(store: MemoryStore) -> None:
    for name in ("points/readme", f"points/{POINT}.point.tmp", f"points/{POINT}.1000.point", "points/x.point"):
        store.create(name, [b""])
    assert list(points.ids(store)) == []


@pytest.mark.parametrize("what", ["full", "io", "read-only", "lost-answer", "torn"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_store_that_fails_leaves_no_point_or_a_whole_one(what: str, nth: int) -> None:
    store = FaultyStore(MemoryStore(), Fault("create", what, nth=nth))  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        points.seal(store, a_point(), SEALED)
    for found in points.ids(store):
        assert points.read(store, found, SEALED).point == a_point()
    # The same again does the rest, whatever was there.
    digest = points.seal(store, a_point(), SEALED)
    assert points.read(store, POINT, SEALED).record == digest
    points.mend(store, POINT, SEALED)
    assert points.read(store, POINT, SEALED) == points.Read(a_point(), digest, False)


def test_dropping_fails_in_the_middle_and_is_done_again() -> None:
    store = FaultyStore(MemoryStore(), Fault("delete", "io", nth=2))
    points.seal(store, a_point(), SEALED)
    with pytest.raises(StoreError):
        points.drop(store, POINT)
    assert list(points.ids(store)) == []
    points.drop(store, POINT)
    assert points.leftovers(store) == []


# -- marks


def mark(what: str, at: int, name: str = "", until: int | None = None) -> marks.Mark:
    return marks.Mark(POINT, what, "ann", at, name, "because", until)


def test_the_newest_mark_stands_by_number_not_by_clock(store: MemoryStore) -> None:
    for number, one in enumerate((mark("star", 50), mark("hold", 40, "case 7"), mark("hold", 30, "case 8", 100)), 1):
        assert marks.add(store, one, SEALED) == number
    ((point, standing),) = marks.all_of(store, SEALED)
    assert point == POINT
    assert standing.kept(0) == "starred"
    marks.add(store, mark("unstar", 10), SEALED)
    found = marks.standing(*marks.of_point(store, POINT, SEALED))
    assert found.kept(0) == "hold case 7"
    marks.add(store, mark("release", 5, "case 7"), SEALED)
    found = marks.standing(*marks.of_point(store, POINT, SEALED))
    assert [found.kept(now) for now in (99, 100)] == ["hold case 8", ""]
    for what in ("suspect", "damaged"):
        marks.add(store, mark(what, 60), SEALED)
    found = marks.standing(*marks.of_point(store, POINT, SEALED))
    assert (found.suspect, found.damaged) == (True, True)
    marks.add(store, mark("verified", 61), SEALED)
    found = marks.standing(*marks.of_point(store, POINT, SEALED))
    assert (found.suspect, found.damaged, found.verified_us) == (False, False, 61)
    marks.remove(store, POINT)
    assert files(store) == set()


def test_a_mark_that_cannot_be_read_keeps_its_point(store: MemoryStore) -> None:
    marks.add(store, mark("star", 1), SEALED)
    marks.add(store, mark("unstar", 2), SEALED)
    name = f"marks/{POINT}.00000001.json"
    data = store.read(name)
    store.delete(name)
    store.create(name, [data.replace(b"ann", b"bob")])
    found = marks.standing(*marks.of_point(store, POINT, SEALED))
    assert found.unread == (1,)
    assert found.kept(0) == "a mark that cannot be read"
    # One that belongs to another point, or another place, is none either.
    store.create(f"marks/{POINT}.00000009.json", [store.read(f"marks/{POINT}.00000002.json")])
    assert marks.of_point(store, POINT, SEALED)[1] == (1, 9)
    assert marks.add(store, mark("star", 3), SEALED) == 10


def test_each_single_damage_of_a_mark_is_told() -> None:
    data = marks.encode(mark("hold", 5, "case", 7), 3, SEALED)
    assert marks.decode(data, SEALED) == (3, mark("hold", 5, "case", 7))
    for at in range(len(data)):
        for bad in (data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :], data[:at]):
            with contextlib.suppress(RepositoryError):
                # The digits of `proof` in capitals are the same digits: anything else is another mark.
                assert marks.decode(bad, SEALED) == (3, mark("hold", 5, "case", 7))
    with pytest.raises(RepositoryError, match="key"):
        marks.decode(data, RecordKey(REPOSITORY, bytes(32), True))
    with pytest.raises(ValueError, match="no mark"):
        marks.add(MemoryStore(), mark("golden", 1), SEALED)


def test_two_who_mark_at_once_both_count(store: MemoryStore) -> None:
    faulty = FaultyStore(store, Fault("create", "lost-answer"))
    with pytest.raises(StoreError):
        marks.add(faulty, mark("hold", 1, "case"), SEALED)
    assert marks.add(faulty, mark("hold", 1, "case"), SEALED) == 2
    assert len(marks.standing(*marks.of_point(store, POINT, SEALED)).holds) == 1
