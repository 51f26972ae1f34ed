"""The key index on disk: found whatever was merged, whole after every death of its writer, and believed only when whole."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import keystore
from agents.keystore import KeyIndex, KeyStore, folder_of, open_index
from streams.events import GranuleClosed, GranuleKeys, KeyedTable, Landmark
from streams.key_runs import FAN_IN, hasher, run_of

LINEAGE, SOURCE, STEPS = "lineage", "shop", 10
NAME, COLUMNS = ("shop", "orders"), ("id",)


class Secrets:
    """Two site keys, as after a rotation."""

    def key_ids(self) -> tuple[str, ...]:
        return ("old", "new")

    def derived(self, purpose: str, key_id: str = "") -> tuple[str, bytes]:
        return key_id or "new", (key_id or "new").encode().ljust(32, b"\0")


def hashed(key: int, key_id: str) -> bytes:
    return hasher(Secrets().derived("", key_id)[1], *NAME, COLUMNS)(b"%d" % key)


def granule(number: int, rng: random.Random) -> tuple[GranuleKeys, GranuleClosed, set[tuple[int, int]]]:
    """A granule, its keys, and `(key, ordinal)` of what is in it. The site key changes at the hundredth."""
    first = 1 + number * STEPS
    held = {(rng.randrange(50), first + rng.randrange(STEPS)) for _ in range(12)}
    key_id = "old" if number < 100 else "new"
    keys = GranuleKeys(
        lineage=LINEAGE, source=SOURCE, first_ordinal=first, last_ordinal=first + STEPS - 1, key_id=key_id,
        tables=(KeyedTable(*NAME, COLUMNS, number == 7),),
        entries=run_of(hashed(k, key_id) + (o - first).to_bytes(4, "big") for k, o in held),
    )  # fmt: skip
    closed = GranuleClosed(
        lineage=LINEAGE, source=SOURCE, first_ordinal=first, last_ordinal=first + STEPS - 1, first_time_us=0,
        last_time_us=0, captured_us=0, first_position="", last_position="", payload_bytes=1, events=1, topic_id="t",
        first_offset=number * 2, last_offset=number * 2 + 1, digest=b"", landmarks=(Landmark(first, "ddl", "ALTER …"),),
    )  # fmt: skip
    return keys, closed, held


def history(count: int, seed: int = 1) -> list[tuple[GranuleKeys, GranuleClosed, set[tuple[int, int]]]]:
    rng = random.Random(seed)
    return [granule(number, rng) for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path, SOURCE, LINEAGE)


@contextlib.contextmanager
def opened(tmp_path: Path) -> Iterator[KeyIndex]:
    index = open_index(tmp_path, SOURCE, LINEAGE, Secrets())
    assert index is not None
    with contextlib.closing(index):
        yield index


def whole(index: KeyIndex, made: list[tuple[GranuleKeys, GranuleClosed, set[tuple[int, int]]]]) -> None:
    """Everything that was put in is found, and nothing else."""
    everything = {entry for _, _, held in made for entry in held}
    assert (index.first, index.last) == (1, len(made) * STEPS)
    for key in range(50):
        form = b"%d" % key
        expected = sorted(o for k, o in everything if k == key)
        assert sorted(index.steps_of(NAME, COLUMNS, form, 0)) == expected
        assert sorted(index.steps_of(NAME, COLUMNS, form, 95)) == [o for o in expected if o > 95]


@pytest.mark.parametrize("count", [1, FAN_IN - 1, FAN_IN, 150, FAN_IN * FAN_IN + FAN_IN + 2])
def test_keys_are_found_whatever_was_merged(tmp_path: Path, folder: Path, count: int) -> None:
    made = history(count)
    store = KeyStore(folder)
    for number, (keys, closed, _) in enumerate(made):
        store.add(keys, closed)
        if number % 37 == 5:
            store = KeyStore(folder)  # another run of the indexer
            assert store.last == closed.last_ordinal
    store.add(*made[0][:2])  # said twice
    with opened(tmp_path) as index:
        whole(index, made)
        assert list(index.granules_of(NAME, 0)) == [(1 + n * STEPS, (n + 1) * STEPS) for n in range(count)]
        assert list(index.dense(NAME, COLUMNS, 0)) == ([(71, 80)] if count > 7 else [])
        assert len(list(index.dense(NAME, ("another",), 15))) == max(0, count - 1), "keys of another shape are none"
        assert [mark[0] for mark in index.marks(1)] == [1 + n * STEPS for n in range(1, count)]
        assert index.near(5) in (0, 1)
        assert index.near(10**9) is None
    expected = [count // 256, count // 16 % 16, count % 16]
    levels = [sum(name.endswith(f".{level}.run") for name in os.listdir(folder)) for level in (2, 1, 0)]
    assert levels == expected


class _Died(Exception):
    pass


@pytest.mark.parametrize("place", range(8))
def test_a_writer_that_dies_leaves_what_the_next_one_mends(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Death before or after each of its writes while the sixteenth granule comes, with a merge behind it."""
    made = history(FAN_IN + 4)
    store = KeyStore(folder)
    for keys, closed, _ in made[: FAN_IN - 1]:
        store.add(keys, closed)
    left = place
    real_rename, real_unlink = Path.rename, Path.unlink

    def dying(real: object) -> object:
        def call(self: Path, *args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Died
            return real(self, *args, **more)  # type: ignore[operator]

        return call

    monkeypatch.setattr(Path, "rename", dying(real_rename))
    monkeypatch.setattr(Path, "unlink", dying(real_unlink))
    with pytest.raises(_Died):
        store.add(*made[FAN_IN - 1][:2])
    monkeypatch.undo()

    seen = open_index(tmp_path, SOURCE, LINEAGE, Secrets())
    assert seen is not None, "who reads meanwhile finds what is whole"
    with contextlib.closing(seen):
        assert seen.last in ((FAN_IN - 1) * STEPS, FAN_IN * STEPS)
        whole(seen, made[: seen.last // STEPS])
    again = KeyStore(folder)
    for keys, closed, _ in made[again.last // STEPS :]:
        again.add(keys, closed)
    with opened(tmp_path) as index:
        whole(index, made)
    assert not [name for name in os.listdir(folder) if name.startswith(".new-")]


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_never_believed(tmp_path: Path, folder: Path, seed: int) -> None:
    """Cut, flipped or missing files: the reader has all of it, or says that it has none; the next writer begins anew."""
    rng = random.Random(seed)
    made = history(40)
    store = KeyStore(folder)
    for keys, closed, _ in made:
        store.add(keys, closed)
    victim = folder / rng.choice(sorted(os.listdir(folder)))
    data = bytearray(victim.read_bytes())
    how = rng.choice(("cut", "flip", "gone")) if victim.suffix == ".run" else rng.choice(("cut", "gone"))
    if how == "gone":
        victim.unlink()
    elif how == "cut":
        victim.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
    keystore._checked.clear()
    index = open_index(tmp_path, SOURCE, LINEAGE, Secrets())
    if index is not None:
        with contextlib.closing(index):
            whole(index, made[: index.last // STEPS])


def test_a_gap_or_another_log_begins_the_store_anew(tmp_path: Path, folder: Path) -> None:
    made = history(6)
    store = KeyStore(folder)
    store.add(*made[0][:2])
    store.add(*made[3][:2])
    with opened(tmp_path) as index:
        assert (index.first, index.last) == (31, 40)
    assert open_index(tmp_path, SOURCE, "another", Secrets()) is None
