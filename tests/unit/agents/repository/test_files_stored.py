"""A file tree and a stream through a real repository, encrypted, and back from its files alone."""

from __future__ import annotations

import io
import random
from pathlib import Path
from uuid import UUID

from agents.repository import directories, files, keys, points, unpacking
from agents.repository import repository as repositories
from agents.repository.chunking import seed_of
from agents.repository.ingest import Ingest
from agents.repository.points import JournalPlace, Point, Tree
from agents.repository.stores import Store
from agents.repository.stores.memory import MemoryStore
from tests.stand_ins.repository_session import LoneSession


def wrap(store: Store, identity: UUID, key: bytes) -> None:
    keys.add_wrap(store, identity.bytes, key, "passphrase", b"correct horse", scrypt={"n": 2, "r": 8, "p": 1})


def unlock(store: Store) -> bytes:
    return keys.unlock(store, passphrase="correct horse")


def held(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def test_what_was_taken_is_brought_back_from_another_place_with_the_repository_s_files_alone(tmp_path: Path) -> None:
    rng = random.Random(1)
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    for i in range(300):
        (source / "folder" / f"{i}").write_bytes(rng.randbytes(i * 7))
    (source / "large").write_bytes(rng.randbytes(4_000_000))
    dump = rng.randbytes(3_000_000) + bytes(2_000_000)
    store = MemoryStore()
    repositories.create(store, wrap=wrap, pack_bytes=1 << 20)
    opened = repositories.open(store, unlock, tmp_path / "cache", "node_a")
    seed = seed_of(opened.keys.derived("chunk cuts"))
    previous = None
    sealed = []
    expected = []
    for day in range(2):
        with Ingest(opened, LoneSession()) as ingest:
            taken = files.snapshot(source, ingest, source=opened, previous=previous, seed=seed)
            stream = files.take_stream(io.BytesIO(dump).read, ingest, seed=seed)
            trees = (Tree("source", taken.root, taken.size), Tree("dump", stream.root, stream.size))
            draft = Point("", "web", "Web", "files", day, "", 0, "", JournalPlace(0, ""), trees=trees)
            sealed.append(ingest.seal(draft).point.point)
        previous = taken.root
        expected.append(held(source))
        (source / "folder" / "7").write_bytes(b"changed on day one")
    opened.close()

    elsewhere = repositories.open(store, unlock, tmp_path / "other cache", "node_b")
    for day, id_ in enumerate(sealed):
        point = points.read(store, id_, elsewhere.record_key).point
        target = tmp_path / f"day {day}"
        assert unpacking.unpack(elsewhere, point.trees[0].root, target).troubles == []
        assert held(target) == expected[day]
        out = io.BytesIO()
        unpacking.stream(elsewhere, point.trees[1].root, out)
        assert out.getvalue() == dump
    roots = [points.read(store, id_, elsewhere.record_key).point.trees[0].root for id_ in sealed]
    changes = [(path, change) for path, change, _, _ in directories.diff(elsewhere, *roots)]
    assert changes == [(b"folder/7", "content")]
    elsewhere.close()
