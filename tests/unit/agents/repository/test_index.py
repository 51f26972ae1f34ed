"""Index runs and the index: what is put in is found, whatever is damaged is noticed, whatever is lost is made again."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.repository import runs
from agents.repository.errors import RepositoryError
from agents.repository.format import Place
from agents.repository.index import SEALED, TORN, Index, Pack, open_index
from agents.repository.runs import Covered, Run
from agents.repository.stores.memory import MemoryStore

REPOSITORY = UUID(int=7)
PACKS = [Covered(bytes([i]) * 16, f"packs/{i:02x}/{(bytes([i]) * 16).hex()}-n-1.pack") for i in range(4)]

entries = st.lists(
    st.tuples(
        st.binary(min_size=32, max_size=32),
        st.integers(0, 3),
        st.integers(0, 2**40),
        st.integers(0, 2**24),
        st.integers(0, 2**24),
        st.integers(1, 5),
        st.integers(0, 1),
    ),
    max_size=50,
    unique=True,
)


def _run(rows: list[tuple[bytes, int, int, int, int, int, int]]) -> Run:
    return Run(UUID(int=1), tuple(PACKS), b"".join(runs.entry(*row) for row in rows))


@given(entries)
def test_a_run_says_what_it_was_given(rows: list[tuple[bytes, int, int, int, int, int, int]]) -> None:
    found = runs.decode(b"".join(runs.encode(_run(rows), REPOSITORY)), REPOSITORY)
    assert found.packs == tuple(PACKS)
    assert sorted(runs.slices(found.entries)) == sorted(runs.entry(*row) for row in rows)
    assert runs.slices(found.entries) == sorted(runs.slices(found.entries))


@given(entries, st.data())
def test_a_damaged_run_is_refused(rows: list[tuple[bytes, int, int, int, int, int, int]], data: st.DataObject) -> None:
    whole = b"".join(runs.encode(_run(rows), REPOSITORY))
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(flipped), whole[:at], whole + b"\0"):
        with pytest.raises(RepositoryError, match="run-damaged"):
            runs.decode(broken, REPOSITORY)
    with pytest.raises(RepositoryError, match="run-damaged"):
        runs.decode(whole, UUID(int=8))


@given(st.binary(max_size=400))
def test_garbage_is_no_run(data: bytes) -> None:
    with pytest.raises(RepositoryError, match="run-damaged"):
        runs.decode(data, REPOSITORY)


def test_a_merged_run_says_each_pack_once_and_only_what_is_kept() -> None:
    a = Run(UUID(int=1), tuple(PACKS[:2]), b"".join(_entry(i, i % 2) for i in range(10)))
    b = Run(UUID(int=2), tuple(PACKS[1:3]), b"".join(_entry(i, i % 2) for i in range(1, 20, 2)))
    merged = runs.merged(UUID(int=3), [a, b], keep=[PACKS[1].pack, PACKS[2].pack])
    assert merged.packs == (PACKS[1], PACKS[2])
    found = [(name, struct.unpack_from("<I", place)[0]) for name, place in runs.renumbered(merged.entries, [0, 1])]
    assert found == sorted([(_name(i), 0) for i in range(1, 10, 2)] + [(_name(i), 1) for i in range(1, 20, 2)])


def _name(i: int) -> bytes:
    return i.to_bytes(32, "big")


def _entry(i: int, pack: int, offset: int = 100) -> bytes:
    return runs.entry(_name(i), pack, offset + i, 50, 60, 1, 1)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = open_index(tmp_path / "index", REPOSITORY)
    yield opened
    opened.close()


def _sealed(number: int) -> Pack:
    return Pack(*PACKS[number], SEALED)


def test_the_index_finds_what_was_added_and_nothing_else(index: Index) -> None:
    index.add([_sealed(0), _sealed(1)], b"".join(_entry(i, i % 2) for i in range(1000)))
    wanted = [_name(i) for i in random.Random(1).sample(range(2000), 500)]
    found = index.find(wanted)
    assert found.keys() == {name for name in wanted if int.from_bytes(name, "big") < 1000}
    assert found[next(n for n in wanted if n in found)].stored == 50
    assert len(list(index.items())) == len(index) == 1000


def test_a_torn_pack_is_read_from_and_not_built_on_until_it_is_sealed(index: Index) -> None:
    index.add([Pack(*PACKS[0], TORN)], _entry(1, 0))
    assert not index.find([_name(1)])
    assert index.locate([_name(1)])[_name(1)].pack == PACKS[0].pack
    index.add([_sealed(0)], _entry(1, 0) + _entry(2, 0))
    assert index.find([_name(1), _name(2)]).keys() == {_name(1), _name(2)}
    assert len(index.packs()) == 1


def test_a_chunk_with_two_copies_survives_the_loss_of_one_pack(index: Index) -> None:
    index.add([_sealed(0)], _entry(1, 0))
    index.add([_sealed(1)], _entry(1, 0, offset=900))
    assert {place.pack for place in index.places(_name(1))} == {PACKS[0].pack, PACKS[1].pack}
    index.forget([PACKS[0].pack])
    assert index.find([_name(1)])[_name(1)] == Place(PACKS[1].pack, 901, 50, 60, 1, 1)
    assert index.forgotten() == 1
    assert index.sweep() == 1
    assert index.forgotten() == 0
    assert len(index) == 1
    index.forget([PACKS[1].pack])
    assert not index.locate([_name(1)])
    assert index.sweep() == 1
    assert index.sweep() == 0


def test_a_sweep_leaves_what_is_being_taken_in(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places come before their pack, in several transactions: between two of them no pack has their number."""
    index.add([_sealed(1)], _entry(9, 0))
    index.forget([PACKS[1].pack])
    swept: list[int] = []

    def meanwhile(name: str) -> None:
        if name == "index-places-added" and not swept:
            swept.append(index.sweep())

    monkeypatch.setattr("agents.repository.index.failpoint", meanwhile)
    monkeypatch.setattr("agents.repository.index._BATCH", 2)
    index.add([_sealed(0)], b"".join(_entry(i, 0) for i in range(6)))
    assert swept == [1]
    assert len(index.find([_name(i) for i in range(6)])) == 6
    assert index.forgotten() == 0


def test_a_run_is_taken_in_but_for_packs_that_are_gone(index: Index) -> None:
    run = Run(UUID(int=1), tuple(PACKS[:2]), b"".join(_entry(i, i % 2) for i in range(10)))
    name = runs.write(MemoryStore(), REPOSITORY, run)
    assert index.add_run(run, name, {PACKS[1].pack}) == 5
    assert index.runs() == {name}
    assert index.find([_name(i) for i in range(10)]).keys() == {_name(i) for i in range(1, 10, 2)}
    assert index.add_run(run, name, {PACKS[0].pack, PACKS[1].pack}) == 5


def test_an_index_stays_with_its_repository_and_a_broken_one_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    first = open_index(folder, REPOSITORY)
    first.add([_sealed(0)], _entry(1, 0))
    first.close()
    again = open_index(folder, REPOSITORY)
    assert again.find([_name(1)])
    again.close()
    other = open_index(folder, UUID(int=8))
    assert not other.packs()
    other.close()
    (folder / "data.mdb").write_bytes(b"no database at all" * 1000)
    broken = open_index(folder, REPOSITORY)
    assert not broken.packs()
    broken.add([_sealed(0)], _entry(1, 0))
    assert broken.find([_name(1)])
    broken.close()


def test_an_index_that_can_be_kept_nowhere_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RepositoryError, match="index-unusable"):
        open_index(tmp_path / "file" / "index", REPOSITORY)


def test_readers_of_a_process_that_was_killed_are_in_nobodys_way(index: Index, tmp_path: Path) -> None:
    """Two processes share the cache; the other one is killed while each slot for readers is taken, again and again."""
    name = bytes([1]) * 32
    index.add([Pack(PACKS[0].pack, PACKS[0].name, SEALED)], runs.entry(name, 0, 5, 6, 7, 1, 0))
    index.sync()
    greedy = """
import sys, threading, os, signal
from pathlib import Path
from uuid import UUID
from agents.repository.index import Pack, SEALED, open_index
from agents.repository import runs
import lmdb
index = open_index(Path(sys.argv[1]), UUID(int=7))
number = int(sys.argv[2])
index.add([Pack(bytes([number]) * 16, f"packs/{number}", SEALED)], runs.entry(bytes([number]) * 32, 0, 5, 6, 7, 1, 0))
held = []
try:
    while True:
        held.append(index._env.begin())
except lmdb.ReadersFullError:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for number in (50, 51):
        died = subprocess.run(
            [sys.executable, "-P", "-c", greedy, str(tmp_path / "index"), str(number)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert died.returncode == -signal.SIGKILL, died.stderr
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(index.find([name, bytes([50]) * 32])))  # noqa: B023
        thread.start()
        thread.join()
        assert len(found) == 1, "a thread that had no slot yet"
        assert set(index.find([name, bytes([number]) * 32])) == {name, bytes([number]) * 32}
    assert len(index.packs()) == 3


def _filled(folder: Path) -> Path:
    """An index of a few hundred pages; its file."""
    index = open_index(folder, REPOSITORY)
    index.add([_sealed(0)], b"".join(_entry(i, 0) for i in range(20_000)))
    index.close()
    return folder / "data.mdb"


def test_an_index_that_was_cut_off_ends_no_process_and_is_made_anew(tmp_path: Path) -> None:
    file = _filled(tmp_path / "index")
    os.truncate(file, file.stat().st_size // 2)
    index = open_index(tmp_path / "index", REPOSITORY)
    assert not index.packs()
    index.close()


def test_an_index_that_is_found_damaged_in_use_says_so_and_is_made_anew(tmp_path: Path) -> None:
    file = _filled(tmp_path / "index")
    data = bytearray(file.read_bytes())
    for page in range(8 * 4096, len(data) - 8 * 4096, 4096):  # some hold names and places
        data[page + 10 : page + 16] = b"\xff" * 6  # what kind of page it is, and what is free in it
    file.write_bytes(data)
    index = open_index(tmp_path / "index", REPOSITORY)
    with pytest.raises(RepositoryError, match="index-damaged"):
        index.locate([_name(i) for i in range(20_000)])
    index.close()
    again = open_index(tmp_path / "index", REPOSITORY)
    assert not again.packs()
    again.close()
