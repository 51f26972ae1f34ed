"""Files of a point as a directory: read back and compared before it has its name; one that was interrupted is gone on with, and
nothing that is half-written passes for whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Command, Interrupted
from agents.errors import AgentError
from agents.repository import backups, file_targets, packs, unpacking
from agents.repository.format import DATA
from agents.repository.pack_format import FRAME_BYTES
from agents.repository.points import Point
from agents.restore import handlers, paths
from streams.ids import uuid7
from tests.unit.agents.backup.site import closing
from tests.unit.agents.repository.trees import described, zoo
from tests.unit.agents.restore.site import Restores


class Directories(Restores):
    """And `take`, `bring`, `compare` carry out `backup.make`, `point.restore`, `point.compare` of a directory, or an image."""

    def take(self, path: Path, kind: str = "files") -> Point:
        p = {"kind": kind, "repository": "main", "path": str(path), "asset": "web"}
        command = Command(uuid7(), "backup.make", "asset/web", p, "tests", 1)
        return self.held["main"].repository.point(backups.make(command, self.ctx(command))["point"])

    def bring(self, point: Point, target: Path, job: str = "", resumed: bool = False, **more: Any) -> dict[str, Any]:
        p = {"repository": "main", "point": point.point, "target": str(target), **more}
        command = Command(job or uuid7(), "point.restore", f"restore/{point.point}", p, "tests", 1)
        self.warned.clear()
        return dict(paths.restore(replace(command, resumed=resumed), self.ctx(command)))

    def compare(self, point: Point, target: Path, **more: Any) -> dict[str, Any]:
        p = {"repository": "main", "point": point.point, "target": str(target), **more}
        command = Command(uuid7(), "point.compare", f"compare/{point.point}", p, "tests", 1)
        return dict(handlers.compare(command, self.ctx(command)))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Directories]:
    with closing(Directories(tmp_path)) as made:
        assert isinstance(made, Directories)
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    zoo(tmp_path / "tree")
    return tmp_path / "tree"


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.holdfast-part")


def left(target: Path) -> list[str]:
    """What stands beside a target that is not whole."""
    return sorted(path.name for path in target.parent.glob(f".{target.name}.*"))


def interrupted(site: Directories, point: Point, target: Path, after: int = 12) -> None:
    """A restore to `target` that ends when a file or two are there."""

    def check() -> None:
        nonlocal after
        after -= 1
        if after < 0:
            raise Interrupted

    site.check = check
    with pytest.raises(Interrupted):
        site.bring(point, target)
    site.check = lambda: None
    assert not target.exists()


def test_a_directory_is_compared_before_it_has_its_name(site: Directories, tree: Path, tmp_path: Path) -> None:
    point = site.take(tree)
    target = tmp_path / "back"
    told = site.bring(point, target)
    assert described(target) == described(tree)
    assert (told["compared"], told["kept"], told["metadata_differs"]) == (point.trees[0].size, 0, 0)
    assert told["files"] == point.trees[0].files
    assert site.warned == []
    assert left(target) == []
    one = site.bring(point, tmp_path / "one", path="folder/deeper/file")
    assert ((tmp_path / "one").read_bytes(), one["compared"], one["folders"]) == (b"deep", 4, 0)


def test_one_that_was_interrupted_goes_on_and_believes_no_name_no_size_and_no_time(
    site: Directories, tree: Path, tmp_path: Path
) -> None:
    point = site.take(tree)
    target = tmp_path / "back"
    interrupted(site, point, target)
    part = part_of(target)
    there = sorted(path for path in part.rglob("*") if path.is_file() and path.stat().st_size > 4)
    assert there
    # What a power cut makes of files that had their names: the same size, the same times, other bytes.
    found = there[0].stat()
    with there[0].open("r+b") as file:
        file.write(b"\0\0\0\0")
    os.utime(there[0], ns=(found.st_atime_ns, found.st_mtime_ns))
    (part / "empty").write_bytes(b"not")
    told = site.bring(point, target)
    assert described(target) == described(tree)
    assert told["compared"] == point.trees[0].size
    assert told["bytes"] + told["kept"] == point.trees[0].size
    assert left(target) == []


def test_what_is_whole_is_not_brought_again(
    site: Directories, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = site.take(tree)
    target = tmp_path / "back"
    with monkeypatch.context() as patched:
        patched.setattr("agents.restore.directory._proven", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            site.bring(point, target)
    monkeypatch.setattr(unpacking, "readable", lambda *_: pytest.fail("nothing is read from the repository"))
    told = site.bring(point, target)
    assert (told["bytes"], told["kept"]) == (0, point.trees[0].size)
    assert described(target) == described(tree)


def test_another_restore_to_the_same_target_is_refused_until_that_one_is_away(
    site: Directories, tree: Path, tmp_path: Path
) -> None:
    point = site.take(tree)
    (tree / "small").write_bytes(b"other")
    second = site.take(tree)
    target = tmp_path / "back"
    interrupted(site, point, target)
    for other in ({"point": second}, {"point": point, "path": "folder"}):
        with pytest.raises(AgentError) as refused:
            site.bring(other["point"], target, path=other.get("path", ""))  # type: ignore[arg-type]
        assert (refused.value.code, "did not end" in refused.value.message) == ("path-taken", True)
        assert str(part_of(target)) in refused.value.hint
    assert left(target) == [".back.holdfast-part", ".back.holdfast-restore"]


def test_a_file_system_that_loses_writes_is_found_out_and_the_next_try_mends_it(
    site: Directories, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = site.take(tree)
    target = tmp_path / "back"
    real = unpacking._flush

    def flush(descriptor: int) -> None:
        real(descriptor)
        with (part_of(target) / "large").open("r+b") as file:
            os.pwrite(file.fileno(), b"!", 2_500_000)

    with monkeypatch.context() as patched:
        patched.setattr(unpacking, "_flush", flush)
        with pytest.raises(AgentError) as found:
            site.bring(point, target)
    assert (found.value.code, "large: " in found.value.message) == ("restore-differs", True)
    assert not target.exists()
    (part_of(target) / "folder" / "theirs").write_bytes(b"mine")
    with pytest.raises(AgentError) as extra:
        site.bring(point, target)
    assert "folder/theirs: it is not in the point" in extra.value.message
    (part_of(target) / "folder" / "theirs").unlink()
    site.bring(point, target)
    assert described(target) == described(tree)


def test_a_job_that_died_when_all_was_done_is_done_if_all_is_there(
    site: Directories, tree: Path, tmp_path: Path
) -> None:
    point, job = site.take(tree), uuid7()
    target = tmp_path / "back"
    site.bring(point, target, job=job)
    told = site.bring(point, target, job=job, resumed=True)
    assert (told["bytes"], told["compared"]) == (0, point.trees[0].size)
    with pytest.raises(AgentError) as again:
        site.bring(point, target)
    assert again.value.code == "path-taken"
    (target / "small").write_bytes(b"HELLO")
    with pytest.raises(AgentError) as other:
        site.bring(point, target, job=job, resumed=True)
    assert other.value.code == "path-taken"


def test_what_a_file_system_does_not_keep_is_told_and_the_restore_stands(
    site: Directories, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = site.take(tree)
    real = os.utime

    def utime(of: int | bytes, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        real(of, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9), follow_symlinks=follow_symlinks)

    monkeypatch.setattr("agents.repository.unpacking.os.utime", utime)
    told = site.bring(point, tmp_path / "back")
    assert told["metadata_differs"] == sum(told[kind] for kind in ("files", "folders", "others"))
    assert {problem.code for problem in site.warned} == {"file-metadata", "files-unread"}
    assert "at another time" in site.warned[0].message


def test_what_is_lost_is_told_and_all_else_is_compared(
    site: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.repository.files._YOUNG_NS", -1)
    tree, store = tmp_path / "tree", site.stores["main"]
    tree.mkdir()
    (tree / "lost").write_bytes(os.urandom(100_000))
    site.take(tree)
    for listed in list(store.list("packs/")):
        body = bytearray(store.read(listed.name))
        for entry in packs.contents_of(store, listed.name).entries:
            if entry.place.kind == DATA:
                body[entry.place.offset + FRAME_BYTES] ^= 1
        store.put(listed.name, bytes(body))
    (tree / "whole").write_bytes(os.urandom(50_000))
    point = site.take(tree)
    with pytest.raises(AgentError) as refused:
        site.bring(point, tmp_path / "back")
    assert "--skip-lost" in refused.value.hint
    told = site.bring(point, tmp_path / "back", skip_lost=True)
    assert (told["lost_bytes"], told["compared"]) == (100_000, 50_000)
    assert (tmp_path / "back" / "whole").read_bytes() == (tree / "whole").read_bytes()
    assert site.compare(point, tmp_path / "back")["differs"] == 1
    assert site.compare(point, tree)["differs"] == 0


def test_a_directory_is_compared_with_a_point_whenever_somebody_asks(
    site: Directories, tree: Path, tmp_path: Path
) -> None:
    point = site.take(tree)
    same = site.compare(point, tree)
    assert (same["differs"], same["entries"], same["compared"]) == (0, [], point.trees[0].size)
    (tree / "folder" / "deeper" / "file").write_bytes(b"DEEP")
    (tree / "set-uid").chmod(0o755)
    told = site.compare(point, tree)
    assert (told["content"], told["metadata"], told["left_out"]) == (1, 2, 0)
    assert {(each["path"], each["what"]) for each in told["entries"]} == {
        ("folder/deeper/file", "content"),
        ("folder/deeper/file", "time"),
        ("set-uid", "mode"),
    }
    assert site.compare(point, tree / "folder", path="folder")["content"] == 1
    with pytest.raises(AgentError) as missing:
        site.compare(point, tree, path="none")
    assert missing.value.code == "path-missing"


def test_an_image_is_read_back_too_and_a_disk_that_loses_writes_is_found_out(
    site: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.repository.comparing._PIECE_BYTES", 65_536)
    image, size = tmp_path / "image", (3 << 20) + 512
    image.write_bytes(os.urandom(1 << 20))
    os.truncate(image, size)
    point = site.take(image, "image")
    told = site.bring(point, tmp_path / "back")
    assert (told["compared"], (tmp_path / "back").read_bytes()) == (size, image.read_bytes())
    # Who ends while it is read back goes on there, and writes nothing again.
    job = uuid7()

    def check() -> None:
        if any(said.startswith("comparing ") for said in site.progress):
            raise Interrupted

    site.progress.clear()
    site.check = check
    with pytest.raises(Interrupted):
        site.bring(point, tmp_path / "again", job=job)
    site.check = lambda: None
    told = site.bring(point, tmp_path / "again", job=job, resumed=True)
    assert (told["bytes"], told["kept"], told["compared"]) == (0, size, size)
    real = file_targets.FileTarget.flush

    def flush(self: file_targets.FileTarget) -> None:
        real(self)
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), b"?", 2 << 20)

    monkeypatch.setattr(file_targets.FileTarget, "flush", flush)
    with pytest.raises(AgentError) as found:
        site.bring(point, tmp_path / "torn")
    assert (found.value.code, f"at {2 << 20:,}" in found.value.message) == ("restore-differs", True)
    monkeypatch.setattr(file_targets.FileTarget, "flush", real)
    site.bring(point, tmp_path / "torn", overwrite=True)
    assert (tmp_path / "torn").read_bytes() == image.read_bytes()
