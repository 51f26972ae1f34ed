"""A store on file systems that are not like the one at hand: what they would say is put into the system's mouth."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from agents.repository import mounts
from agents.repository.stores import EXISTS, FULL, IO, MISSING, READ_ONLY, UNFIT, StoreError, fresh
from agents.repository.stores import local as module
from agents.repository.stores.local import SCRATCH, LocalStore
from tests.stand_ins.remembering_client import RememberingClient


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def leftovers(store: LocalStore) -> list[str]:
    return [f for _, _, files in os.walk(store.root) for f in files if f.startswith(SCRATCH)]


def test_a_link_that_nfs_says_exists_because_it_was_asked_twice_is_ours(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    store.create("keys/1.json", [b"ours"])
    assert store.read("keys/1.json") == b"ours"
    with pytest.raises(StoreError) as refused:
        store.create("keys/1.json", [b"others"])
    assert refused.value.code == EXISTS
    assert store.read("keys/1.json") == b"ours"
    assert not leftovers(store)


def test_a_link_of_ours_is_known_though_its_count_is_remembered_from_before(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, stat = os.link, os.stat

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    def remembered(path: Path, **more: bool) -> os.stat_result:
        found = list(stat(path, **more))
        if SCRATCH in str(path):
            found[3] = 1  # links, as NFS 4 has it after a request that failed
        return os.stat_result(found)

    monkeypatch.setattr(os, "link", twice)
    monkeypatch.setattr(os, "stat", remembered)
    store.create("keys/1.json", [b"ours"])
    assert store.read("keys/1.json") == b"ours"


def test_a_link_that_is_made_is_made_whatever_is_said_of_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def fails(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.EHOSTDOWN, "Host is down")

    monkeypatch.setattr(os, "link", fails)
    store.create("keys/1.json", [b"ours"])
    assert store.read("keys/1.json") == b"ours"
    assert not leftovers(store)


def test_a_name_of_a_scratch_file_that_is_taken_says_nothing_of_the_file(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, left = os.open, ["once"]

    def twice(path: Path, flags: int, *more: int) -> int:
        made = opened(path, flags, *more)
        if SCRATCH in str(path) and left:
            left.pop()
            os.close(made)
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        return made

    monkeypatch.setattr(os, "open", twice)
    store.create("keys/1.json", [b"ours"])
    assert store.read("keys/1.json") == b"ours"
    assert not leftovers(store)

    def always(path: Path, flags: int, *more: int) -> int:
        left.append("again")
        return twice(path, flags, *more)

    monkeypatch.setattr(os, "open", always)
    with pytest.raises(StoreError) as refused:
        store.create("keys/2.json", [b"ours"])
    assert refused.value.code == IO


def broken_once(monkeypatch: pytest.MonkeyPatch, where: object, name: str, *, done: bool) -> list[str]:
    """A function that says EAGAIN the first time, as clients of SMB do of what was under way when their connection broke; with
    `done` it was carried out. Returns what it was, once that has happened."""
    real = getattr(where, name)
    seen: list[str] = []

    def broken(*given: object, **more: object) -> object:
        if seen:
            return real(*given, **more)
        seen.append(name)
        if done and isinstance(made := real(*given, **more), int) and name == "open":
            os.close(made)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(where, name, broken)
    return seen


@pytest.mark.parametrize(
    ("name", "done"),
    # What was written and not answered is written again at the same place, which is the system's business.
    [*((name, done) for name in ("mkdir", "open", "link", "fsync") for done in (True, False)), ("writev", False)],
)
def test_a_connection_that_breaks_while_a_file_is_made_keeps_it_from_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str, done: bool
) -> None:
    store.create("keys/0.json", [b"before"])  # the root is made
    with monkeypatch.context() as patched:
        seen = broken_once(patched, os, name, done=done)
        store.create("marks/1.json", [b"ours"])
        assert seen
    assert store.read("marks/1.json") == b"ours"
    with pytest.raises(StoreError) as refused:
        store.create("marks/1.json", [b"others"])
    assert refused.value.code == EXISTS
    assert not leftovers(store)


def test_a_connection_that_breaks_while_a_pack_grows_keeps_it_from_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = store.append("packs/aa")
    with monkeypatch.context() as patched:
        seen = broken_once(patched, os, "pwrite", done=True)
        more = broken_once(patched, os, "fsync", done=True)
        grown.write(b"grown")
        grown.close()
        assert seen
        assert more
    assert store.read("packs/aa") == b"grown"


def test_whose_a_pack_is_whose_making_was_not_answered_nobody_says(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("packs/a0").close()
    with monkeypatch.context() as patched:
        broken_once(patched, os, "open", done=True)
        with pytest.raises(StoreError, match="another name") as refused:
            store.append("packs/aa")
    assert refused.value.code == IO
    store.append("packs/ab").close()


@pytest.mark.parametrize(("kind", "through"), [("cifs", True), ("smb3", True), ("nfs4", False), ("ext4", False)])
def test_files_on_smb_are_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, through: bool
) -> None:
    monkeypatch.setattr(mounts, "type_of", lambda _: kind)
    store = LocalStore(tmp_path)
    opened, flags = os.open, []

    def noted(path: Path, flag: int, *more: int) -> int:
        if flag & os.O_CREAT:
            flags.append(flag)
        return opened(path, flag, *more)

    monkeypatch.setattr(os, "open", noted)
    store.create("points/a", [b"a"])
    store.append("packs/aa").close()
    assert [flag & os.O_SYNC == os.O_SYNC for flag in flags] == [through, through]
    assert {one.name for one in store.list()} == {"points/a", "packs/aa"}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nfs4", "rw,hard,vers=4.2", []),
        ("nfs", "rw,soft,nocto", ["soft", "nocto"]),
        ("cifs", "rw,hard,serverino,nolease", []),
        ("cifs", "rw,soft", ["soft", "serverino", "nolease"]),
    ],
)
def test_odd_options_of_a_mount_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, said: list[str]
) -> None:
    monkeypatch.setattr(mounts, "type_of", lambda _: kind)
    monkeypatch.setattr(mounts, "options_of", lambda _: frozenset(options.split(",")))
    notes = LocalStore(tmp_path).check().notes
    assert len(notes) == len(said)
    assert all(any(f"`{word}`" in note for note in notes) for word in said)


def test_a_rename_that_was_asked_for_twice_is_ours(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    class Twice:
        @staticmethod
        def renameat2(_: int, source: bytes, __: int, target: bytes, ___: int) -> int:
            if Path(os.fsdecode(target)).exists():
                ctypes.set_errno(errno.EEXIST)
            else:
                os.rename(source, target)
                ctypes.set_errno(errno.ENOENT)
            return -1

    monkeypatch.setattr(os, "link", none)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Twice)
    store.create("keys/1.json", [b"ours"])
    assert store.read("keys/1.json") == b"ours"
    with pytest.raises(StoreError) as refused:
        store.create("keys/1.json", [b"others"])
    assert refused.value.code == EXISTS


def test_what_another_machine_did_is_seen_though_this_one_remembers_otherwise(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grown = tmp_path / "packs" / "aa"
    grown.parent.mkdir()
    grown.write_bytes(b"1")
    RememberingClient(monkeypatch, tmp_path)

    def theirs(name: str, content: bytes) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def listed() -> dict[str, int]:
        return {one.name: one.size for one in store.list()}

    assert listed() == {"packs/aa": 1}
    for ask in (store.read, store.size):
        with pytest.raises(StoreError) as refused:
            ask("points/a")
        assert refused.value.code == MISSING
    grown.write_bytes(b"12345")
    assert store.size("packs/aa") == 5
    assert listed() == {"packs/aa": 5}
    theirs("points/a", b"a")
    assert store.read("points/a") == b"a"
    theirs("points/b", b"b")
    assert store.size("points/b") == 1
    theirs("points/c", b"c")
    assert listed() == {"packs/aa": 5, "points/a": 1, "points/b": 1, "points/c": 1}
    theirs("marks/d", b"d")
    store.delete("marks/d")
    assert not (tmp_path / "marks" / "d").exists()
    theirs("points/e", b"e")
    assert [one.name for one in store.list("points/e")] == ["points/e"]


def test_a_folder_that_a_server_knows_no_more_is_told(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("points/a", [b"a"])

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "open", stale)
    monkeypatch.setattr(fresh, "status", stale)
    for call in (lambda: store.read("points/a"), lambda: store.create("points/b", [b""]), lambda: list(store.list())):
        with pytest.raises(StoreError) as refused:
            call()
        assert refused.value.code == IO
        assert "mount it again" in refused.value.hint


def test_a_file_whose_deletion_died_before_it_was_durable_is_deleted_durably(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("points/a", [b"a"])
    (store.root / "points" / "a").unlink()
    flushed: list[Path] = []
    monkeypatch.setattr(module, "_flush_folder", flushed.append)
    store.delete("points/a")
    assert flushed == [store.root / "points"]
    store.delete("nowhere/a")
    assert flushed == [store.root / "points"]


def test_without_statx_the_system_is_asked_as_ever(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("points/a", [b"1234"])
    found = fresh.status(store.root / "points" / "a")
    monkeypatch.setattr(fresh, "_statx", None)
    assert fresh.status(store.root / "points" / "a") == found
    assert found.size == 4
    assert found.links == 1
    with pytest.raises(FileNotFoundError):
        fresh.status(store.root / "none")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_links_files_are_renamed_exclusively(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", none)
    store.create("keys/1.json", [b"first"])
    with pytest.raises(StoreError) as refused:
        store.create("keys/1.json", [b"second"])
    assert refused.value.code == EXISTS
    assert store.read("keys/1.json") == b"first"
    assert not leftovers(store)
    store.check()


def test_a_file_system_that_makes_nothing_exclusively_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    class NoRename:
        renameat2 = None

    monkeypatch.setattr(os, "link", none)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: NoRename)
    with pytest.raises(StoreError, match="neither links files nor renames") as refused:
        store.check()
    assert refused.value.code == UNFIT
    assert not leftovers(store)


def test_folders_that_cannot_be_flushed_are_a_file_servers_matter_and_nobody_elses(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_flushes_folders", lambda _: False)
    monkeypatch.setattr(mounts, "type_of", lambda _: "cifs")
    assert any("flushed by the file server" in note for note in store.check().notes)
    monkeypatch.setattr(mounts, "type_of", lambda _: "ext4")
    with pytest.raises(StoreError, match="does not make folders durable") as refused:
        store.check()
    assert refused.value.code == UNFIT


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, FULL), (errno.EDQUOT, FULL), (errno.EROFS, READ_ONLY), (errno.EIO, IO), (errno.ESTALE, IO)],
)
def test_what_the_system_says_while_flushing_is_told_and_nothing_stays(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(StoreError) as refused:
            store.create("keys/1.json", [b"x"])
        assert refused.value.code == code
    assert not leftovers(store)
    assert list(store.list()) == []
    store.create("keys/1.json", [b"x"])


def test_an_error_at_the_last_flush_of_a_pack_is_told(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = store.append("packs/aa/aa.pack")
    growing.write(b"x" * 100)

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError) as refused:
        growing.close()
    assert refused.value.code == IO
    growing.abandon()


def test_a_folder_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as refused:
        LocalStore(tmp_path / "not mounted")
    assert refused.value.code == MISSING
    assert not (tmp_path / "not mounted").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        LocalStore(tmp_path / "file")


def test_links_and_foreign_files_are_not_followed_or_hidden(store: LocalStore, tmp_path: Path) -> None:
    store.create("points/a.point", [b"a"])
    (tmp_path / "points/Foreign.txt").write_text("here")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "points/link.point").symlink_to(tmp_path / "points/a.point")
    assert {f.name for f in store.list()} == {"points/a.point", "points/Foreign.txt"}


def test_folders_and_files_are_their_owners_alone(store: LocalStore, tmp_path: Path) -> None:
    store.create("points/a.point", [b"a"])
    growing = store.append("packs/aa/aa.pack")
    growing.close()
    for path in ("points/a.point", "packs/aa/aa.pack"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "packs/aa").stat().st_mode & 0o777 == 0o700


def test_scratch_files_of_others_who_write_now_are_not_swept(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / f"{SCRATCH}now").write_bytes(b"being written")
    old = tmp_path / "points" / f"{SCRATCH}old"
    old.write_bytes(b"left by a crash")
    os.utime(old, (1_000_000, 1_000_000))
    assert store.sweep(older_than_s=86_400) == 1
    assert leftovers(store) == [f"{SCRATCH}now"]
