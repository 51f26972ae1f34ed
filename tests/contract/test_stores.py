"""What every store of a repository keeps (`agents.repository.stores.Store`), tried on each of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.repository.stores import (
    BAD_NAME,
    EXISTS,
    MISSING,
    SHORT,
    Store,
    StoreError,
)
from agents.repository.stores.local import LocalStore
from agents.repository.stores.memory import MemoryStore


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        (tmp_path / "store").mkdir()
        made = LocalStore(tmp_path / "store")
    yield made
    made.close()


def names(store: Store, prefix: str = "") -> set[str]:
    return {listed.name for listed in store.list(prefix)}


def test_a_created_file_is_read_whole_and_in_part(store: Store) -> None:
    store.create("points/a.point", [b"head", bytearray(b"-"), memoryview(b"body")])
    assert store.read("points/a.point") == b"head-body"
    assert store.read("points/a.point", 5) == b"body"
    assert store.read("points/a.point", 2, 4) == b"ad-b"
    assert store.read("points/a.point", 9) == b""
    assert store.read("points/a.point", 3, 0) == b""
    assert store.size("points/a.point") == 9


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.create("index/empty", [])
    assert store.size("index/empty") == 0
    assert store.read("index/empty") == b""
    assert names(store) == {"index/empty"}


def test_a_file_is_made_once(store: Store) -> None:
    store.create("keys/1.json", [b"first"])
    with pytest.raises(StoreError) as refused:
        store.create("keys/1.json", [b"second"])
    assert refused.value.code == EXISTS
    assert store.read("keys/1.json") == b"first"


def test_of_many_who_make_one_file_one_does(store: Store) -> None:
    outcomes: list[bytes | str] = []
    start = threading.Barrier(8)

    def make(content: bytes) -> None:
        start.wait()
        try:
            store.create("marks/p.1.json", [content])
            outcomes.append(content)
        except StoreError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=make, args=(b"content %d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [o for o in outcomes if isinstance(o, bytes)]
    assert len(made) == 1
    assert store.read("marks/p.1.json") == made[0]
    assert [o for o in outcomes if o != made[0]] == [EXISTS] * 7


def test_nothing_is_seen_of_a_file_whose_making_fails(store: Store) -> None:
    def parts() -> Iterator[bytes]:
        yield b"some"
        assert names(store) == set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.create("points/b.point", parts())
    assert names(store) == set()
    with pytest.raises(StoreError, match=r"no points/b\.point"):
        store.read("points/b.point")
    store.create("points/b.point", [b"whole"])
    assert store.read("points/b.point") == b"whole"


def test_an_appended_file_holds_what_was_written_in_order(store: Store) -> None:
    growing = store.append("packs/ab/ab.pack")
    assert growing.write(b"head") == 0
    assert growing.write(b"one", memoryview(b"two")) == 4
    growing.sync()
    assert growing.write(b"", b"three") == 10
    growing.close()
    growing.close()
    assert store.read("packs/ab/ab.pack") == b"headonetwothree"
    assert store.size("packs/ab/ab.pack") == 15


def test_an_appended_file_is_made_once(store: Store) -> None:
    first = store.append("packs/ab/ab.pack")
    first.write(b"first")
    first.close()

    def again() -> None:
        second = store.append("packs/ab/ab.pack")
        second.write(b"second")
        second.close()

    with pytest.raises(StoreError) as refused:
        again()
    assert refused.value.code == EXISTS
    assert store.read("packs/ab/ab.pack") == b"first"


def test_an_abandoned_file_is_let_go(store: Store) -> None:
    growing = store.append("packs/ab/ab.pack")
    growing.write(b"some")
    growing.abandon()
    growing.abandon()
    store.delete("packs/ab/ab.pack")
    assert names(store) == set()


def test_what_is_not_there_is_missing(store: Store) -> None:
    for ask in (
        lambda: store.read("index/none"),
        lambda: store.size("index/none"),
        lambda: store.read("index/none", 4, 4),
    ):
        with pytest.raises(StoreError) as refused:
            ask()
        assert refused.value.code == MISSING


def test_a_file_that_ends_too_soon_is_short(store: Store) -> None:
    store.create("index/a", [b"12345"])
    for offset, size in ((0, 6), (3, 3), (5, 1), (100, 1)):
        with pytest.raises(StoreError) as refused:
            store.read("index/a", offset, size)
        assert refused.value.code == SHORT


def test_a_deleted_file_is_gone_and_may_be_deleted_again(store: Store) -> None:
    store.create("index/a", [b"1"])
    store.delete("index/a")
    store.delete("index/a")
    store.delete("nowhere/at/all")
    assert names(store) == set()
    store.create("index/a", [b"2"])
    assert store.read("index/a") == b"2"


def test_files_are_listed_by_the_beginning_of_their_names(store: Store) -> None:
    made = {
        "packs/ab/ab1.pack",
        "packs/ab/ab2.pack",
        "packs/ac/ac1.pack",
        "packs2",
        "points/p.point",
        "repository.json",
    }
    for name in made:
        store.create(name, [name.encode()])
    assert names(store) == made
    assert names(store, "packs/") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack"}
    assert names(store, "packs") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack", "packs2"}
    assert names(store, "packs/ab/ab1") == {"packs/ab/ab1.pack"}
    assert names(store, "packs/a") == {"packs/ab/ab1.pack", "packs/ab/ab2.pack", "packs/ac/ac1.pack"}
    assert names(store, "none/") == set()
    for listed in store.list():
        assert listed.size == len(listed.name)
        assert listed.mtime_us > 1_500_000_000_000_000


def test_names_that_are_none_are_refused(store: Store) -> None:
    for name in (
        "",
        "/",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.new-1",
        "Upper",
        "a b",
        "a\n",
        "ä",
    ):
        for call in (
            lambda n=name: store.create(n, [b""]),
            lambda n=name: store.append(n),
            lambda n=name: store.read(n),
            lambda n=name: store.size(n),
            lambda n=name: store.delete(n),
        ):
            with pytest.raises(StoreError) as refused:
                call()
            assert refused.value.code == BAD_NAME, name
    with pytest.raises(StoreError):
        list(store.list("../"))


def test_many_files_are_all_listed(store: Store) -> None:
    made = {f"marks/{i:04d}.json" for i in range(1200)}
    for name in sorted(made):
        store.create(name, [b"x"])
    listed = [f.name for f in store.list("marks/")]
    assert len(listed) == len(made)
    assert set(listed) == made


def test_many_threads_read_and_write(store: Store) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                name = f"points/{number}-{i}.point"
                content = bytes([number]) * (1000 + i)
                store.create(name, [content])
                assert store.read(name) == content
                if i % 2:
                    store.delete(name)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(names(store)) == 30


def test_the_self_test_passes_and_leaves_nothing(store: Store) -> None:
    traits = store.check()
    assert traits.kind
    assert traits.where
    assert names(store) == set()
    store.check()


def test_closing_twice_is_once(store: Store) -> None:
    store.close()
    store.close()
