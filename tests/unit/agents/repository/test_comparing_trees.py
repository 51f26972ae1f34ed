"""Comparing a directory that is there with one at a point: whatever is another is found, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.repository import directories
from agents.repository.comparing_trees import Looked, differences
from agents.repository.errors import RepositoryError
from agents.repository.files import snapshot
from tests.stand_ins.chunk_store import ChunkStore
from tests.unit.agents.repository.trees import settled, zoo

Found = set[tuple[str, str]]


def found(root: Path, store: ChunkStore, snapshot_root: bytes, inside: bytes = b"") -> Found:
    entry = directories.find(store, snapshot_root, inside)
    return {(os.fsdecode(each.path), each.what) for each in differences(root, store, entry, store.same)}


def pwrite(path: Path, data: bytes, at: int) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, at)


def _replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _leading(path: Path) -> None:
    path.unlink()
    path.symlink_to("other")


def _linked_no_more(path: Path) -> None:
    data, attributes = path.read_bytes(), {name: os.getxattr(path, name) for name in os.listxattr(path)}
    path.unlink()
    path.write_bytes(data)
    for name, value in attributes.items():
        os.setxattr(path, name, value)
    path.chmod(0o644)


CHANGES: dict[str, tuple[Callable[[Path], object], Found]] = {
    "a byte": (lambda r: pwrite(r / "large", b"!", 4_000_000), {("large", "content")}),
    "a byte of zeros": (lambda r: pwrite(r / "zeros", b"!", 2_999_999), {("zeros", "content")}),
    "a byte in a hole": (lambda r: pwrite(r / "sparse", b"!", 20_000_000), {("sparse", "content")}),
    "a byte that was": (lambda r: pwrite(r / "sparse", b"\0" * 5000, 7_000_000), {("sparse", "content")}),
    "a byte of several names": (lambda r: pwrite(r / "small", b"H", 0), {("also linked", "content")}),
    "shorter": (lambda r: os.truncate(r / "middling", 299_999), {("middling", "content")}),
    "longer": (lambda r: os.truncate(r / "empty", 1), {("empty", "content")}),
    "gone": (lambda r: (r / "folder" / "deeper" / "file").unlink(), {("folder/deeper/file", "missing")}),
    "a folder gone": (lambda r: (r / "nothing in it").rmdir(), {("nothing in it", "missing")}),
    "one more": (lambda r: (r / "folder" / "zz").write_bytes(b""), {("folder/zz", "extra")}),
    "a folder more": (lambda r: (r / "folder" / "a" / "b").mkdir(parents=True), {("folder/a", "extra")}),
    "a folder for a file": (lambda r: _replaced(r / "middling"), {("middling", "type")}),
    "another link": (lambda r: _leading(r / "to folder"), {("to folder", "content")}),
    "another mode": (lambda r: (r / "set-uid").chmod(0o755), {("set-uid", "mode")}),
    "another mode of the directory": (lambda r: r.chmod(0o700), {("", "mode")}),
    "other names": (lambda r: _linked_no_more(r / "small"), {("small", "links")}),
    "another time": (lambda r: os.utime(r / "fifo", ns=(1, 1)), {("fifo", "time")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_found_and_nothing_else(tmp_path: Path, change: str) -> None:
    store, root = ChunkStore(), tmp_path / "a"
    zoo(root)
    taken = snapshot(root, store, source=store, seed=7).root
    assert found(root, store, taken) == set()
    make, expected = CHANGES[change]
    make(root)
    if change != "another time":
        for path in (*sorted(root.rglob("*"), reverse=True), root):
            settled(path)
    got = found(root, store, taken)
    if os.geteuid() == 0 and change == "another link":
        expected = expected | {("to folder", "owner")}  # of whom the new one is
    assert got == expected


def test_an_owner_and_attributes_are_compared(tmp_path: Path) -> None:
    store, root = ChunkStore(), tmp_path / "a"
    root.mkdir()
    (root / "file").touch()
    try:
        os.setxattr(root / "file", "user.note", b"one")
    except OSError:
        pytest.skip("the file system under the tests has no attributes")
    taken = snapshot(root, store, source=store).root
    os.setxattr(root / "file", "user.note", b"two")
    assert found(root, store, taken) == {("file", "attributes")}
    os.setxattr(root / "file", "user.note", b"one")
    os.setxattr(root, "user.more", b"")
    assert found(root, store, taken) == {("", "attributes")}
    os.removexattr(root, "user.more")
    if os.geteuid() == 0:
        os.chown(root / "file", 1234, 4321)
        assert found(root, store, taken) == {("file", "owner")}


def test_a_part_of_a_tree_is_compared_alone_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    store, root = ChunkStore(), tmp_path / "a"
    zoo(root)
    taken = snapshot(root, store, source=store, seed=7).root
    assert found(root / "folder", store, taken, b"folder") == set()
    assert found(root / "large", store, taken, b"large") == set()
    assert ("", "content") in found(root / "middling", store, taken, b"large")
    assert found(root / "none", store, taken) == {("", "missing")}
    (tmp_path / "link").symlink_to("a")
    assert found(tmp_path / "link", store, taken) == {("", "type")}


def test_what_is_lost_differs_unless_it_is_known_to_be(tmp_path: Path) -> None:
    store, root = ChunkStore(), tmp_path / "a"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(3_000_000))
    taken = snapshot(root, store, source=store, seed=7).root
    entry = directories.find(store, taken, b"")
    pieces = list(directories.pieces(store, directories.find(store, taken, b"file")))
    pwrite(root / "file", bytes(pieces[0].length), 0)
    settled(root / "file")

    def looked(lost: dict[bytes, list[tuple[int, int]]] | None) -> list[str]:
        each = differences(root, store, entry, store.same, lost=lost)
        return [difference.what for difference in each if difference.what != "time"]

    assert looked(None) == ["content"]
    assert looked({b"file": [(0, pieces[0].length)]}) == []
    pwrite(root / "file", b"?", pieces[0].length)
    assert looked({b"file": [(0, pieces[0].length)]}) == ["content"]


def test_progress_counts_what_is_read_and_what_it_raises_ends_it(tmp_path: Path) -> None:
    store, root = ChunkStore(), tmp_path / "a"
    zoo(root)
    snapped = snapshot(root, store, source=store, seed=7)
    entry, told, at = directories.find(store, snapped.root, b""), list[int](), Looked()
    assert list(differences(root, store, entry, store.same, looked=at, progress=told.append)) == []
    assert sum(told) == at.size == snapped.size
    assert (at.files, at.folders) == (snapped.counts["files"], snapped.counts["folders"])

    def stop(_: int) -> None:
        raise RepositoryError("enough", "enough")

    with pytest.raises(RepositoryError, match="enough"):
        list(differences(root, store, entry, store.same, progress=stop))
