"""What others do to a repository's files is noticed, once; what we do ourselves is not."""

from __future__ import annotations

from pathlib import Path

from agents.repository.stores import Traits
from agents.repository.stores.local import LocalStore
from agents.repository.stores.memory import MemoryStore
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


def codes(found: Look) -> list[str]:
    return [p.code for p in found.problems]


def filled(root: Path) -> LocalStore:
    store = LocalStore(root)
    for i in range(6):
        store.create(f"packs/a{i}/a{i}.pack", [b"head" + bytes([i]) * 20_000 + b"tail"])
        store.create(f"points/p{i}.point", [b"point" + bytes([i])])
    store.create("repository.json", [b"{}"])
    return store


def test_the_first_look_learns_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    store, watch = filled(tmp_path / "r"), Watch(tmp_path / "state", "r")
    assert codes(watch.look(store)) == [BEGUN]
    assert codes(watch.look(store)) == []
    assert codes(Watch(tmp_path / "state", "r").look(store)) == []
    assert codes(Watch(tmp_path / "other", "empty").look(MemoryStore())) == []


def test_what_others_did_is_said_once_and_named(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    store, watch = filled(tmp_path / "r"), Watch(tmp_path / "state", "r")
    watch.look(store)
    (tmp_path / "r/packs/a1/a1.pack").unlink()
    (tmp_path / "r/points/p2.point").write_bytes(b"forged")
    (tmp_path / "r/Letter to\nyou.txt").write_text("pay")
    found = watch.look(store)
    assert codes(found) == [GONE, CHANGED, FOREIGN]
    gone, changed, foreign = (p.message for p in found.problems)
    assert "packs/a1/a1.pack" in gone
    assert "points/p2.point" in changed
    assert "Letter%20to%0Ayou.txt" in foreign
    assert all(p.hint for p in found.problems)
    assert codes(watch.look(store)) == []


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
    (tmp_path / "r").mkdir()
    store, watch = filled(tmp_path / "r"), Watch(tmp_path / "state", "r")
    growing = store.append("packs/ff/ff.pack")
    growing.write(b"x" * 100)
    growing.sync()
    watch.look(store, touched="packs/ff/ff.pack".__eq__)
    growing.write(b"y" * 100)
    growing.close()
    store.delete("packs/a0/a0.pack")
    store.create("points/new.point", [b"new"])
    ours = {"packs/a0/a0.pack"}
    assert codes(watch.look(store, deleted=ours.__contains__, touched="packs/ff/ff.pack".__eq__)) == []
    assert codes(watch.look(store)) == []
    store.check()
    assert codes(watch.look(store)) == []


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
