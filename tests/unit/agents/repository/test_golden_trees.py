"""Golden files of trees, runs, directories, records and marks: each is read, and is what this release writes."""

from __future__ import annotations

import pytest

from agents.repository import delta, directories, marks, nodes, points
from agents.repository.content import DIRECTORY
from tests.golden.repository import trees
from tests.stand_ins.chunk_store import ChunkStore


def golden(name: str) -> bytes:
    return (trees.HERE / name).read_bytes()


# The bytes of zstd are its release's own: a record is compared by what it says.
@pytest.mark.parametrize("name", [name for name in trees.files() if not name.endswith(".point")])
def test_what_is_written_is_what_was_written(name: str) -> None:
    assert trees.files()[name] == golden(name)


def test_what_was_written_is_read() -> None:
    assert nodes.checked(golden("node.bin"), 2) == 2
    assert nodes.take_apart(golden("node.bin")) == trees.slots()
    assert nodes.checked(golden("node-full.bin"), 0) == 0
    assert delta.decode(golden("delta.bin")) == trees.run()
    store = ChunkStore()
    assert list(directories.entries(store, store.put(DIRECTORY, golden("directory.bin")))) == trees.entries()
    listed, form, where, size = trees.content()
    assert store.put(DIRECTORY, golden("content.bin")) == where
    assert list(directories.content(store, form, where, size)) == list(directories.content(listed, form, where, size))
    for kind, key in trees.KEYS.items():
        assert points.decode(golden(f"{kind}.point"), key) == trees.point()
    assert marks.decode(golden("mark.json"), trees.KEYS["sealed"]) == (3, trees.MARK)
