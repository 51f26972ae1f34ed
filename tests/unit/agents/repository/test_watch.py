"""What others do to a repository's files is noticed, once; what we do ourselves is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agents.repository import node as node_module
from agents.repository import repository as repositories
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.node import Held, Node
from agents.repository.sessions import Sessions
from agents.repository.stores import Listed, StoreError, Traits
from agents.repository.stores.local import LocalStore
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from agents.repository.watch import (
    BEGUN,
    CHANGED,
    FOREIGN,
    GONE,
    Look,
    Seen,
    Watch,
    keep,
    load,
    look,
    protected_from,
    sentences,
)
from streams.events import Problem, RepositoryChecked
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings


def codes(found: Look) -> list[str]:
    return [p.code for p in found.problems]


def filled(root: Path) -> LocalStore:
    store = LocalStore(root)
    for i in range(6):
        store.create(f"packs/a{i}/a{i}.pack", [b"head" + bytes([i]) * 20_000 + b"tail"])
        store.create(f"points/p{i}.point", [b"point" + bytes([i])])
    store.create("repository.json", [b"{}"])
    return store


def watched(tmp_path: Path) -> tuple[LocalStore, RecordedStore, Watch]:
    (tmp_path / "r").mkdir()
    store = filled(tmp_path / "r")
    return store, RecordedStore(store, tmp_path / "state/r.own"), Watch(tmp_path / "state", "r")


def say(watch: Watch, store: RecordedStore) -> list[Problem]:
    """What a look says; nothing wrong, nothing said."""
    said: list[Look] = []
    found = watch.look_at(store, said.append)
    assert [look.problems for look in said] == ([found.problems] if found.problems else [])
    return list(found.problems)


def said(watch: Watch, store: RecordedStore) -> list[str]:
    return [problem.code for problem in say(watch, store)]


def test_the_first_look_learns_and_says_so(tmp_path: Path) -> None:
    _, store, watch = watched(tmp_path)
    assert said(watch, store) == [BEGUN]
    assert said(watch, store) == []
    assert said(Watch(tmp_path / "state", "r"), store) == []
    new = Watch(tmp_path / "new", "r")
    new.begin()
    assert said(new, store) == []
    watch.begin()
    (tmp_path / "r/repository.json").unlink()
    assert said(watch, store) == [GONE]


def test_what_others_did_is_said_once_and_named(tmp_path: Path) -> None:
    _, store, watch = watched(tmp_path)
    say(watch, store)
    (tmp_path / "r/packs/a1/a1.pack").unlink()
    (tmp_path / "r/points/p2.point").write_bytes(b"forged")
    (tmp_path / "r/Letter to\nyou.txt").write_text("pay")
    gone, changed, foreign = say(watch, store)
    assert (gone.code, changed.code, foreign.code) == (GONE, CHANGED, FOREIGN)
    assert "packs/a1/a1.pack" in gone.message
    assert "points/p2.point" in changed.message
    assert "Letter%20to%0Ayou.txt" in foreign.message
    assert said(watch, store) == []


def test_what_could_not_be_said_is_said_the_next_time(tmp_path: Path) -> None:
    _, store, watch = watched(tmp_path)
    say(watch, store)
    (tmp_path / "r/packs/a1/a1.pack").unlink()

    def log_is_away(_: Look) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        watch.look_at(store, log_is_away)
    assert said(watch, store) == [GONE]


def test_a_change_that_hides_behind_size_and_time_is_found_within_its_turns(tmp_path: Path) -> None:
    store = MemoryStore()
    store.create("packs/aa/aa.pack", [b"x" * 10_000])
    state = dict(look(store, None).seen)
    time = state["packs/aa/aa.pack"].mtime_us
    store._files["packs/aa/aa.pack"] = bytearray(b"x" * 9_999 + b"y"), time
    found: list[list[str]] = []
    for turn in range(5):
        seen = look(store, state, every=5, turn=turn)
        found.append(codes(seen))
        state = dict(seen.seen)
    assert sorted(found) == [[], [], [], [], [CHANGED]]


def test_what_we_did_is_no_alarm(tmp_path: Path) -> None:
    plain, store, watch = watched(tmp_path)
    say(watch, store)
    growing = store.append("packs/ff/ff.pack")
    growing.write(b"x" * 100)
    growing.sync()
    assert said(watch, store) == []
    growing.write(b"y" * 100)
    growing.sync()
    assert said(watch, store) == []
    growing.write(b"z" * 100)
    growing.close()
    store.delete("packs/a0/a0.pack")
    store.delete("points/p1.point")  # a copy that was damaged, made anew
    store.create("points/p1.point", [b"point as it was"])
    store.create("points/new.point", [b"new"])
    store.check()
    # The node dies and starts again before it looks.
    again = RecordedStore(plain, tmp_path / "state/r.own")
    assert said(Watch(tmp_path / "state", "r"), again) == []
    assert said(watch, again) == []
    (tmp_path / "r/packs/ff/ff.pack").write_bytes(b"x")
    (tmp_path / "r/points/p1.point").unlink()
    assert said(watch, again) == [GONE, CHANGED]


def test_a_list_of_our_doings_that_was_cut_off_is_of_use(tmp_path: Path) -> None:
    inner = MemoryStore()
    store = RecordedStore(inner, tmp_path / "own")
    store.delete("packs/aa/aa.pack")
    with (tmp_path / "own").open("a") as out:
        out.write("packs/bb/b")
    store = RecordedStore(inner, tmp_path / "own")
    store.delete("packs/cc/cc.pack")
    store = RecordedStore(inner, tmp_path / "own")
    assert store.settled() == {"packs/aa/aa.pack", "packs/cc/cc.pack"}
    store.forget(store.settled())
    assert RecordedStore(inner, tmp_path / "own").settled() == frozenset()


def test_a_node_says_in_the_log_what_others_did(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    data = tmp_path / "data"
    settings = Settings("s", data, KafkaSettings("-"), PostgresSettings("-", 1, "-", "-"), ApiSettings(), data / "key")
    node = Node(settings, cast(Publisher, None), cast(SecretStore, None), "n")
    plain = LocalStore(tmp_path / "r")
    store = RecordedStore(plain, tmp_path / "data/repositories/r.own")
    repositories.create(store, wrap=None)
    repository = repositories.open(store, None, node.cache, "n")
    journal = MemoryJournal(MemoryLog(), "r")
    held = node.hold("r", store, repository, Sessions(journal, store, "n"))
    assert not node.watch(held).problems
    assert journal.head() == 0
    (tmp_path / "r/repository2.json").unlink()
    node.watch(held)
    (entry,) = journal.read(0)
    assert isinstance(entry.event, RepositoryChecked)
    assert [p.code for p in entry.event.problems] == [GONE]
    assert entry.event.figures["files"] == 1
    repository.close()


def test_the_state_is_read_back_and_damage_begins_it_anew(tmp_path: Path) -> None:
    seen = {"a/b": Seen(1, 2, "0123456789abcdef"), "odd \udcff\n name": Seen(3, 4)}
    path = tmp_path / "r.watch"
    keep(path, seen)
    assert load(path) == seen
    whole = path.read_bytes()
    for data in (whole[:-1], whole[1:], b"", whole.replace(b"a/b", b"a/c"), b"garbage\n" * 9):
        path.write_bytes(data)
        assert load(path) is None
    path.unlink()
    assert load(path) is None


def test_protection_is_told_as_it_is(tmp_path: Path) -> None:
    local = " | ".join(protected_from(LocalStore(tmp_path)))
    assert "root of this machine: no" in local
    assert "deletion by this service, or by who steals its credentials: no" in local
    assert "loss of the site: no" in local
    assert "theft of the medium: yes" in local
    locked = " | ".join(sentences(Traits("s3", "https://s3/b/", "s3", True, locked_days=30), False, ("bern",)))
    assert "credentials: yes for 30 days" in locked
    assert "loss of the site: yes, bern" in locked
    assert "theft of the medium: no" in locked
    kept = " | ".join(sentences(Traits("directory", "/r", "nfs4", True, deletable=False, notes=("odd",)), True, ()))
    assert "the store refuses it" in kept
    assert "root of the file server: no" in kept
    assert "note: odd" in kept
    assert "power cuts: yes" in kept
    gone = sentences(Traits("directory", "/run/r", "tmpfs"), True, ())
    assert gone[0].startswith("crashes and power cuts: no"), "what is in memory outlives no power cut"


def test_notes_and_lists_of_ours_are_not_foreign(tmp_path: Path) -> None:
    store = RecordedStore(MemoryStore(), tmp_path / "own")
    for name in ("damaged/00.json", "collections/a.proposed.b.json", "reserve/room"):
        store.create(name, [b"{}"])
    assert look(store, {}).problems == ()


def test_the_node_looks_every_hour_at_each_repository_whatever_befalls_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread itself, with an hour that is short: one repository cannot be listed, in the other one a file has gone."""
    monkeypatch.setattr(node_module, "_WATCH_S", 0.01)
    looked = threading.Event()
    node: Any = object.__new__(Node)
    node._stop, node._lock, node.cache, node._watches, node.name = (
        threading.Event(),
        threading.Lock(),
        tmp_path,
        {},
        "n",
    )

    class Away(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[Listed]:
            looked.set()
            raise StoreError("store-io", "away")

    def held(name: str, inner: MemoryStore) -> Held:
        store = RecordedStore(inner, tmp_path / f"{name}.own")
        repository: Any = SimpleNamespace(identity=name, close=lambda: None)
        return Held(name, store, repository, Sessions(MemoryJournal(MemoryLog(), name), store, "n"))

    there = MemoryStore()
    there.create("points/one", [b"a point"])
    broken, watched = held("broken", Away()), held("watched", there)
    node._watch_of(watched.repository).look_at(watched.store, lambda _: None)
    there.delete("points/one")  # past the store that knows what is ours
    node._held = {"broken": broken, "watched": watched}
    thread = threading.Thread(target=node._watch)
    thread.start()
    try:
        assert looked.wait(60)
        deadline = time.monotonic() + 60
        while not (said := [e.event for e in watched.sessions.journal.read(0)]) and time.monotonic() < deadline:
            node._stop.wait(0.01)
    finally:
        node._stop.set()
        thread.join(60)
    assert not thread.is_alive()
    (checked,) = said
    assert isinstance(checked, RepositoryChecked)
    assert [p.code for p in checked.problems] == [GONE]
