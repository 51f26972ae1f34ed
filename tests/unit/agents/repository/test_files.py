"""File trees: what was taken comes back, name for name and bit for bit; what did not change is not read; damage is
refused."""

from __future__ import annotations

import contextlib
import io
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import chunking, directories, files, ropes, unpacking
from agents.repository.content import DATA, DIRECTORY, NAME_SIZE
from agents.repository.errors import RepositoryError
from tests.stand_ins.chunk_store import ChunkStore
from tests.unit.agents.repository.trees import described, settled, zoo


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are taken long after everything was written."""
    monkeypatch.setattr(files, "_YOUNG_NS", -1)


def taken(path: Path, store: ChunkStore, previous: bytes | None = None) -> files.Taken:
    return files.snapshot(path, store, source=store, previous=previous, seed=7)


def test_everything_that_a_file_system_has_comes_back(tmp_path: Path) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    snapshot = taken(tmp_path / "a", store)
    assert snapshot.troubles == []
    # Holes are not stored, nor are zeros.
    assert sum(len(data) for _, data in store.chunks.values()) < 6_000_000
    restored = unpacking.unpack(store, snapshot.root, tmp_path / "b")
    assert restored.troubles == []
    assert described(tmp_path / "b") == described(tmp_path / "a")
    assert (tmp_path / "b" / "hole").stat().st_blocks == 0
    assert (tmp_path / "b" / "sparse").stat().st_blocks < 1000
    # And the copy is the same tree, but for where it lies.
    again = taken(tmp_path / "b", store)
    assert list(directories.diff(store, snapshot.root, again.root)) == []


@pytest.mark.usefixtures("late")
def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    first = taken(tmp_path / "a", store)
    second = taken(tmp_path / "a", store, first.root)
    assert second.root == first.root
    assert second.counts.get("read_bytes", 0) == 0
    (tmp_path / "a" / "middling").write_bytes(b"other")
    (tmp_path / "a" / "folder" / "new").write_bytes(b"new")
    (tmp_path / "a" / "large").chmod(0o600)
    (tmp_path / "a" / "empty").unlink()
    third = taken(tmp_path / "a", store, second.root)
    assert third.counts["read_bytes"] <= 5_000_008  # a file with another ctime is read: it may hold something else
    found = {(path, change) for path, change, _, _ in directories.diff(store, first.root, third.root)}
    assert found == {
        (b"middling", "content"),
        (b"folder/new", "added"),
        (b"folder", "metadata"),
        (b"large", "metadata"),
        (b"empty", "removed"),
        (b"", "metadata"),
    }
    unpacking.unpack(store, third.root, tmp_path / "b")
    assert described(tmp_path / "b") == described(tmp_path / "a")


def test_a_file_that_was_young_is_read_again_since_its_times_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_YOUNG_NS", 1 << 62)
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"one")
    first = taken(tmp_path / "a", store)
    second = taken(tmp_path / "a", store, first.root)
    assert second.counts["read_bytes"] == 3
    assert directories.find(store, second.root, b"file").flags & directories.YOUNG


def test_a_file_that_changes_while_it_is_read_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    growing, once = tmp_path / "a" / "growing", tmp_path / "a" / "once"
    growing.write_bytes(b"x" * 100)
    once.write_bytes(b"y" * 100)
    reads = {"once": 0}
    real = files._Snapshot._content

    def content(self: files._Snapshot, descriptor: int, size: int) -> tuple[int, bytes, int]:
        out = real(self, descriptor, size)
        if os.fstat(descriptor).st_ino == growing.stat().st_ino:
            with growing.open("ab") as file:
                file.write(b"more")
        else:
            reads["once"] += 1
            if reads["once"] == 1:
                once.write_bytes(b"z" * 100)
                settled(once)
        return out

    monkeypatch.setattr(files._Snapshot, "_content", content)
    snapshot = taken(tmp_path / "a", store)
    assert [(t.path, t.code) for t in snapshot.troubles] == [(b"growing", "changed")]
    assert directories.find(store, snapshot.root, b"growing").flags & directories.CHANGED
    # The other one was read again, until it was the same before and after.
    assert reads["once"] == 2
    restored = unpacking.unpack(store, snapshot.root, tmp_path / "b")
    assert [(t.path, t.code) for t in restored.troubles] == [(b"growing", "changed")]
    assert (tmp_path / "b" / "once").read_bytes() == b"z" * 100


def test_what_cannot_be_read_is_listed_and_the_rest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChunkStore()
    (tmp_path / "a" / "closed").mkdir(parents=True)
    for name in ("broken", "gone", "fine", "closed/file"):
        (tmp_path / "a" / name).write_bytes(name.encode())
    real = os.open

    def opened(path: object, flags: int, *args: object, dir_fd: int | None = None) -> int:
        if path == b"broken":
            raise OSError(5, "Input/output error")
        if path == b"closed":
            raise PermissionError(13, "Permission denied")
        if path == b"gone":
            raise FileNotFoundError(2, "No such file")
        return real(path, flags, *args, dir_fd=dir_fd)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    snapshot = taken(tmp_path / "a", store)
    monkeypatch.undo()
    assert {(t.path, t.code) for t in snapshot.troubles} == {
        (b"broken", "unreadable"),
        (b"closed", "unreadable"),
        (b"gone", "vanished"),
    }
    restored = unpacking.unpack(store, snapshot.root, tmp_path / "b")
    assert {t.path for t in restored.troubles} == {b"broken", b"closed"}
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["closed", "fine"]
    with pytest.raises(RepositoryError, match="not/there"):
        files.snapshot(tmp_path / "not" / "there", store)


def test_a_name_is_linked_once_the_first_name_is_there(tmp_path: Path) -> None:
    store = ChunkStore()
    (tmp_path / "a" / "c").mkdir(parents=True)
    (tmp_path / "a" / "a").write_bytes(random.Random(4).randbytes(20_000_000))
    (tmp_path / "a" / "b").write_bytes(b"first")
    os.link(tmp_path / "a" / "b", tmp_path / "a" / "c" / "d")
    # One thread is busy with the large file while the folder with the other name is finished.
    restored = unpacking.unpack(store, taken(tmp_path / "a", store).root, tmp_path / "b", threads=1)
    assert restored.troubles == []
    assert (tmp_path / "b" / "b").samefile(tmp_path / "b" / "c" / "d")


def test_a_folder_that_cannot_be_listed_is_there_with_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChunkStore()
    (tmp_path / "a" / "bad").mkdir(parents=True)
    bad = (tmp_path / "a" / "bad").stat().st_ino
    real = os.listdir

    def listed(of: int) -> list[str]:
        if os.fstat(of).st_ino == bad:
            raise OSError(5, "Input/output error")
        return real(of)

    monkeypatch.setattr(os, "listdir", listed)
    snapshot = taken(tmp_path / "a", store)
    monkeypatch.undo()
    assert [(t.path, t.code) for t in snapshot.troubles] == [(b"bad", "unreadable")]
    assert directories.find(store, snapshot.root, b"bad").flags & directories.UNREAD


def test_what_is_excluded_is_not_there(tmp_path: Path) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    snapshot = files.snapshot(tmp_path / "a", store, excluded=lambda path, found: path in (b"folder/deeper", b"large"))
    names = {e.name for e in directories.entries(store, directories.top(store, snapshot.root).where)}
    assert b"large" not in names
    assert b"small" in names
    with pytest.raises(RepositoryError, match="folder/deeper"):
        directories.find(store, snapshot.root, b"folder/deeper")
    assert snapshot.counts["excluded"] == 2


def test_a_file_that_is_vast_and_empty_costs_nothing(tmp_path: Path) -> None:
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "vast").open("wb") as file:
        file.truncate(1 << 42)
        file.seek(1 << 41)
        file.write(b"here")
    snapshot = taken(tmp_path / "a", store)
    unpacking.unpack(store, snapshot.root, tmp_path / "b")
    found = (tmp_path / "b" / "vast").stat()
    assert (found.st_size, found.st_blocks < 1000) == (1 << 42, True)
    with (tmp_path / "b" / "vast").open("rb") as file:
        file.seek(1 << 41)
        assert file.read(5) == b"here\0"


def test_folders_go_deep_and_those_that_go_too_deep_are_listed(tmp_path: Path) -> None:
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    inner = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(520):
        os.mkdir("d", dir_fd=inner)
        below = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = below
    os.close(inner)
    first = taken(tmp_path / "a", store)
    assert [(t.code, t.path.count(b"/")) for t in first.troubles] == [("too-deep", 511)]
    (tmp_path / "a" / "/".join(["d"] * 500) / "file").write_bytes(b"deep")
    second = taken(tmp_path / "a", store, first.root)
    assert (b"d/" * 500 + b"file", "added") in [
        (path, what) for path, what, _, _ in directories.diff(store, first.root, second.root)
    ]
    assert len(list(directories.walk(store, second.root, lambda name: False))) > 500
    restored = unpacking.unpack(store, second.root, tmp_path / "b")
    assert [t.code for t in restored.troubles] == ["unreadable"]
    assert (tmp_path / "b" / "/".join(["d"] * 500) / "file").read_bytes() == b"deep"


def test_a_link_that_takes_the_targets_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    root = taken(tmp_path / "a", store).root
    (tmp_path / "elsewhere").mkdir()
    mkdir = Path.mkdir

    def exchanged(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        path.rmdir()
        path.symlink_to("elsewhere")

    monkeypatch.setattr(Path, "mkdir", exchanged)
    with pytest.raises(OSError):
        unpacking.unpack(store, root, tmp_path / "b")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_one_file_or_folder_of_a_tree_comes_back_alone(tmp_path: Path) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    root = taken(tmp_path / "a", store).root
    unpacking.unpack(store, root, tmp_path / "file", path=b"folder/deeper/file")
    assert (tmp_path / "file").read_bytes() == b"deep"
    unpacking.unpack(store, root, tmp_path / "folder", path=b"folder")
    assert (tmp_path / "folder" / "linked").read_bytes() == b"hello"
    for there in ("file", "folder"):
        with pytest.raises(RepositoryError, match="there already"):
            unpacking.unpack(store, root, tmp_path / there, path=b"folder" if there == "folder" else b"small")
    with pytest.raises(RepositoryError, match="has no"):
        unpacking.unpack(store, root, tmp_path / "c", path=b"folder/none")
    with pytest.raises(RepositoryError, match="has no"):
        unpacking.unpack(store, root, tmp_path / "c", path=b"small/below")


@pytest.mark.usefixtures("late")
def test_a_large_directory_is_cut_so_that_one_name_more_changes_little(tmp_path: Path) -> None:
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    for i in range(1500):
        (tmp_path / "a" / f"{i:05}").touch()
        settled(tmp_path / "a" / f"{i:05}")
    first = taken(tmp_path / "a", store)
    before = store.put_new
    (tmp_path / "a" / "00700x").touch()
    second = taken(tmp_path / "a", store, first.root)
    assert store.put_new - before <= 6
    assert [path for path, change, _, _ in directories.diff(store, first.root, second.root) if path] == [b"00700x"]
    for name in (b"00000", b"00700x", b"01499"):
        assert directories.find(store, second.root, name).name == name
    for name in (b"", b"!", b"01500", b"00700y"):
        if name:
            with pytest.raises(RepositoryError, match="has no"):
                directories.find(store, second.root, name)
    unpacking.unpack(store, second.root, tmp_path / "b")
    assert described(tmp_path / "b") == described(tmp_path / "a")


def test_a_walk_reaches_all_that_a_restore_reads_and_a_second_one_only_what_is_new(tmp_path: Path) -> None:
    store = ChunkStore()
    zoo(tmp_path / "a")
    first = taken(tmp_path / "a", store)
    (tmp_path / "a" / "folder" / "more").write_bytes(random.Random(6).randbytes(3_000_000))
    second = taken(tmp_path / "a", store, first.root)
    seen: set[bytes] = set()
    kinds: dict[bytes, int] = {}
    reads = []
    for root in (first.root, second.root):
        before = store.gets
        for kind, names in directories.walk(store, root, seen.__contains__):
            for i in range(0, len(names), NAME_SIZE):
                kinds[names[i : i + NAME_SIZE]] = kind
                seen.add(names[i : i + NAME_SIZE])
        reads.append(store.gets - before)
    assert reads[1] < reads[0]
    assert set(kinds.values()) == {DATA, DIRECTORY}
    alone = ChunkStore()
    alone.chunks = {name: store.chunks[name] for name in kinds}
    unpacking.unpack(alone, second.root, tmp_path / "b")
    assert described(tmp_path / "b") == described(tmp_path / "a")


# -- streams and cuts


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1_000_000, 20_000_000])
def test_a_stream_comes_back_and_is_cut_alike_however_it_comes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    store = ChunkStore()
    stream = files.take_stream(io.BytesIO(data).read, store)
    assert stream.size == size
    out = io.BytesIO()
    assert unpacking.stream(store, stream.root, out) == size
    assert out.getvalue() == data
    slow = io.BytesIO(data)
    assert files.take_stream(lambda n: slow.read(min(n, 70_001)), store).root == stream.root


def test_an_insertion_changes_the_chunks_around_it_and_no_others() -> None:
    data = random.Random(1).randbytes(20_000_000)
    changed = data[:7_000_000] + b"inserted" + data[7_000_000:]
    one = list(chunking.chunks(io.BytesIO(data).read, seed=3))
    two = list(chunking.chunks(io.BytesIO(changed).read, seed=3))
    assert len(set(two) - set(one)) <= 3
    assert b"".join(two) == changed
    assert all(len(c) <= chunking.LARGEST for c in one)
    assert all(len(c) >= chunking.SMALLEST for c in one[:-1])
    # Another repository cuts elsewhere.
    assert len(set(chunking.chunks(io.BytesIO(data).read, seed=4)) & set(one)) <= 1


def test_a_seed_is_a_repository_s_own() -> None:
    seeds = {chunking.seed_of(bytes([i]) * 32) for i in range(50)}
    assert len(seeds) == 50
    for seed in (max(seeds), min(seeds)):
        assert b"".join(chunking.chunks(io.BytesIO(b"abc" * 99_999).read, seed)) == b"abc" * 99_999


@pytest.mark.parametrize("length", [0, 5, 3_000_000])
def test_a_stream_with_zeros_in_it_comes_back(length: int) -> None:
    data = b"begin" + bytes(5_000_000) + random.Random(2).randbytes(length)
    store = ChunkStore()
    stream = files.take_stream(io.BytesIO(data).read, store)
    out = io.BytesIO()
    unpacking.stream(store, stream.root, out)
    assert out.getvalue() == data


# -- lists


@given(st.integers(0, 1 << 32), st.integers(0, 15_000), st.integers(0, 15_000))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
def test_a_list_of_any_length_is_read_as_it_was_written(seed: int, count: int, at: int) -> None:
    def written(of: list[bytes]) -> bytes:
        rope = ropes.Rope(store, ropes.ENTRIES, lambda its: its[0], lambda labels: labels[0])
        for item in of:
            rope.add(item)
        return rope.finish()

    store = ChunkStore()
    rng = random.Random(seed)
    items = [rng.randbytes(rng.randint(1, 6)) for _ in range(count)]
    root = written(items)
    assert list(ropes.items_of(store, root, ropes.ENTRIES)) == items
    changed = [*items[:at], b"more", *items[at:]]
    assert list(ropes.items_of(store, written(changed), ropes.ENTRIES)) == changed
    assert written(items) == root
    nodes = list(ropes.walk(store, root, ropes.ENTRIES, lambda name: False))
    assert {i for _, its in nodes for i in its} == set(items)
    assert {names[i : i + 32] for names, _ in nodes for i in range(0, len(names), 32)} <= set(store.chunks)


# -- damage


def chunks_of_zoo() -> Iterator[bytes]:
    store = ChunkStore()
    directory = directories.DirectoryWriter(store)
    content = directories.ContentWriter(store)
    for i in range(9):
        content.chunk(store.put(DATA, bytes([i]) * 10), 10)
        content.hole(i)
    form, where = content.finish()
    packed, flag = directories.put_attributes(store, {b"user.a": b"x" * 20_000})
    directory.add(directories.Entry(b"a", directories.FILE, size=content.size, form=form, where=where))
    directory.add(directories.Entry(b"b", directories.SYMLINK, form=directories.TARGET, where=b"to"))
    directory.add(directories.Entry(b"c", directories.FIFO, attributes=packed, flags=flag))
    directory.finish()
    yield from (data for kind, data in store.chunks.values() if kind == DIRECTORY)


READS: list[Callable[[ChunkStore, bytes], object]] = [
    lambda store, root: [directories.attributes_of(store, e) for e in directories.entries(store, root)],
    lambda store, root: list(directories.content(store, directories.LIST, root, 126)),
    lambda store, root: list(directories.walk(store, root, lambda name: False)),
    lambda store, root: [list(directories.pieces(store, e)) for e in directories.entries(store, root)],
]


@given(st.sampled_from(list(chunks_of_zoo())), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
def test_whatever_a_directory_is_damaged_to_it_is_read_or_refused(good: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :]
    for bad in (flipped, good[:place], good + b"\0\0\0", data.draw(st.binary(max_size=80))):
        store = ChunkStore()
        root = store.put(DIRECTORY, bad)
        for read in READS:
            with contextlib.suppress(RepositoryError):  # and nothing else
                read(store, root)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc/passwd", b"a\0b"])
def test_no_entry_leads_out_of_its_directory(name: bytes, tmp_path: Path) -> None:
    store = ChunkStore()
    with pytest.raises(RepositoryError, match="can be called"):
        directories.decode(directories.encode(directories.Entry(name, directories.FILE)))
    rope = ropes.Rope(store, ropes.ENTRIES, lambda items: b"", lambda labels: b"")
    rope.add(directories.encode(directories.Entry(name, directories.FILE)))
    top = directories.DirectoryWriter(store)
    top.add(directories.Entry(b"root", directories.FOLDER, form=directories.CHILDREN, where=rope.finish()))
    with pytest.raises(RepositoryError):
        unpacking.unpack(store, top.finish(), tmp_path / "y")
    assert [p.name for p in tmp_path.rglob("*")] == ["y"]


def test_a_missing_or_cut_chunk_ends_a_restore_and_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    store = ChunkStore()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(random.Random(3).randbytes(3_000_000))
    root = taken(tmp_path / "a", store).root
    last = [p.name for p in directories.pieces(store, directories.find(store, root, b"file"))][-1]
    kind, data = store.chunks.pop(last)
    with pytest.raises(RepositoryError, match="no chunk"):
        unpacking.unpack(store, root, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    store.chunks[last] = (kind, data[:-1])
    with pytest.raises(RepositoryError, match="belong"):
        unpacking.unpack(store, root, tmp_path / "b")


@pytest.fixture
def no_root() -> Iterator[Path]:
    """A directory, and a process that is not root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_what_may_not_be_set_is_listed(no_root: Path) -> None:
    store = ChunkStore()
    directory = directories.DirectoryWriter(store)
    uid, gid = os.geteuid(), os.getegid()
    directory.add(directories.Entry(b"device", directories.BLOCK, mode=0o600, device=os.makedev(7, 0)))
    directory.add(directories.Entry(b"file", directories.FILE, mode=0o400, uid=1, gid=1))
    directory.add(directories.Entry(b"mine", directories.FILE, mode=0o400, uid=uid, gid=gid))
    whole = directories.DirectoryWriter(store)
    where = directory.finish()
    whole.add(
        directories.Entry(
            b"root", directories.FOLDER, mode=0o700, form=directories.CHILDREN, where=where, uid=uid, gid=gid
        )
    )
    restored = unpacking.unpack(store, whole.finish(), no_root / "b")
    assert {(t.path, t.code) for t in restored.troubles} == {(b"device", "not-permitted"), (b"file", "owner")}
    assert stat.S_IMODE((no_root / "b" / "mine").stat().st_mode) == 0o400
