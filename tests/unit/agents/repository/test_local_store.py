"""A store on file systems that are not like the one at hand: what they would say is put into the system's mouth."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from agents.repository import mounts
from agents.repository.stores import EXISTS, FULL, IO, MISSING, READ_ONLY, UNFIT, StoreError
from agents.repository.stores import local as module
from agents.repository.stores.local import SCRATCH, LocalStore


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
