"""The repository beside restic and borg: a backup of a disk image made of real files, restoring it, and what has no peer.

All read the same image, which is in the page cache, and write to the same file system, which is flushed (`sync -f`) before
the clock stops. Each is a process of its own, from its start to its end. The image is ext4 with files of /usr in it, full to nine
tenths: 4 GiB at scale 1. restic compresses as it does by itself (auto), borg with zstd 1; all three encrypt. restic and borg are
programs of their own, from the distribution's packages; without them, or without mke2fs, a benchmark says so and is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from agents.repository import pack_format, runs, tree
from agents.repository import repository as repositories
from agents.repository.content import DATA
from agents.repository.stores.local import LocalStore
from streams.ids import uuid7
from tests.bench import repository_ours
from tests.bench.report import FOLDER, Report, Skip, report

GIB = 1 << 30
IMAGE_BYTES = 4 * GIB
_FULL = 0.9
_KEPT = FOLDER / "repository"
_LIMIT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Ran:
    """Seconds until all was on disk, processor time of the program, and what it said at its end."""

    seconds: float
    cpu_s: float
    said: dict[str, Any]


@contextlib.contextmanager
def _ground() -> Iterator[Path]:
    """A folder on the disk that the checkout is on: /tmp may be memory."""
    _KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=_KEPT) as name:
        yield Path(name).absolute()


def _flushed(folder: Path) -> None:
    subprocess.run(["sync", "-f", str(folder)], check=True)


def _image(scale: float) -> Path:
    """The disk image, made when it is not there, and read once."""
    size = int(IMAGE_BYTES * scale) // (1 << 20) << 20
    path = (_KEPT / f"image-{size}").absolute()
    if not path.exists():
        if shutil.which("mke2fs") is None:
            raise Skip("there is no mke2fs (Debian: e2fsprogs)")
        _KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="files-", dir=_KEPT) as name:
            _copy_files(Path("/usr"), Path(name), int(size * _FULL))
            making = path.with_suffix(".new")
            argv = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", name, str(making), f"{size >> 10}k"]
            subprocess.run(argv, check=True)
            making.rename(path)
        _flushed(_KEPT)
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
    return path


def _copy_files(source: Path, target: Path, wanted: int) -> None:
    """Files of `source`, in the order of their names, until they take up `wanted` bytes on a disk."""
    got = 0
    for top, folders, files in os.walk(source):
        folders.sort()
        for name in sorted(files):
            path = Path(top) / name
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            size = -(-path.stat().st_size // 4096) * 4096
            if got + size > wanted:
                continue
            place = target / path.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            got += size
    if got < wanted * 0.95:
        raise Skip(f"{source} has {got >> 20} MiB of files, {wanted >> 20} MiB are needed (--scale)")


def _ran(folder: Path, argv: list[str], **kwargs: Any) -> Ran:
    used = _children_cpu_s()
    started = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **kwargs)
    used = _children_cpu_s() - used
    if done.returncode:
        raise RuntimeError(f"{argv[:3]}: {done.stderr[-2000:]}")
    _flushed(folder)
    took = time.perf_counter() - started
    try:
        said = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    except ValueError:
        said = {}
    return Ran(took, used, said if isinstance(said, dict) else {})


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Ours:
    name = "holdfast"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo, self.cache = folder / "repo", folder / "cache"
        repository_ours.make(self.repo)
        self.point = ""

    def run(self, what: str, *arguments: str, **kwargs: Any) -> Ran:
        module = "tests.bench.repository_ours"
        return _ran(
            self.folder,
            [sys.executable, "-P", "-m", module, what, str(self.repo), str(self.cache), *arguments],
            **kwargs,
        )

    def backup(self, image: Path) -> Ran:
        ran = self.run("backup", str(image))
        self.point = ran.said["point"]
        return ran

    def restore(self, target: Path) -> Ran:
        target.mkdir()
        return self.run("restore", self.point, str(target / "image"))


class Restic:
    name = "restic"

    def __init__(self, folder: Path) -> None:
        _need("restic", "restic")
        self.folder, self.repo = folder, folder / "restic"
        self._env = {
            **os.environ,
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_REPOSITORY": str(self.repo),
            "RESTIC_CACHE_DIR": str(folder / "restic-cache"),
        }
        subprocess.run(["restic", "-q", "init"], env=self._env, check=True)

    def backup(self, image: Path) -> Ran:
        return _ran(self.folder, ["restic", "-q", "backup", str(image)], env=self._env)

    def restore(self, target: Path) -> Ran:
        return _ran(self.folder, ["restic", "-q", "restore", "latest", "--target", str(target)], env=self._env)


class Borg:
    name = "borg"

    def __init__(self, folder: Path) -> None:
        _need("borg", "borgbackup")
        self.folder, self.repo = folder, folder / "borg"
        self._env = {
            **os.environ,
            "BORG_PASSPHRASE": "benchmark",
            "BORG_BASE_DIR": str(folder / "borg-home"),
        }
        argv = ["borg", "init", "--encryption", "repokey-blake2", str(self.repo)]
        subprocess.run(argv, env=self._env, check=True, capture_output=True)

    def backup(self, image: Path) -> Ran:
        return _ran(self.folder, ["borg", "create", "-C", "zstd,1", f"{self.repo}::one", str(image)], env=self._env)

    def restore(self, target: Path) -> Ran:
        target.mkdir()
        return _ran(self.folder, ["borg", "extract", f"{self.repo}::one"], env=self._env, cwd=target)


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise Skip(f"there is no {program} (Debian: {package})")


def backup_full_restic(rounds: int, scale: float) -> Report:
    return _backup_full(Restic, rounds, scale)


def backup_full_borg(rounds: int, scale: float) -> Report:
    return _backup_full(Borg, rounds, scale)


def _backup_full(peer: type[Restic] | type[Borg], rounds: int, scale: float) -> Report:
    image = _image(scale)
    took: dict[str, list[float]] = {"holdfast": [], peer.name: []}
    figures: dict[str, float] = {}
    for turn in range(rounds + 1):
        for kind in (Ours, peer):
            with _ground() as folder:
                made = kind(folder)
                _flushed(folder)
                ran = made.backup(image)
                figures[f"{kind.name}_repository_mb"] = _size(made.repo) / 1e6
                figures[f"{kind.name}_cpu_s"] = ran.cpu_s
                if kind is Ours:
                    figures["holdfast_anonymous_mib"] = ran.said["anonymous_mib"]
            if turn:
                took[kind.name].append(ran.seconds)
    figures["size_ratio"] = figures["holdfast_repository_mb"] / figures[f"{peer.name}_repository_mb"]
    figures["image_mb"] = image.stat().st_size / 1e6
    name = f"backup-full-{peer.name}"
    return report(name, took["holdfast"], took[peer.name], peer.name, "s", "less", figures)


def restore_restic(rounds: int, scale: float) -> Report:
    return _restore(Restic, rounds, scale)


def restore_borg(rounds: int, scale: float) -> Report:
    return _restore(Borg, rounds, scale)


def _restore(peer: type[Restic] | type[Borg], rounds: int, scale: float) -> Report:
    image = _image(scale)
    took: dict[str, list[float]] = {"holdfast": [], peer.name: []}
    figures: dict[str, float] = {"image_mb": image.stat().st_size / 1e6}
    with _ground() as folder:
        made: list[Ours | Restic | Borg] = [Ours(folder), peer(folder)]
        for one in made:
            one.backup(image)
        for turn in range(rounds + 1):
            for one in made:
                target = folder / "target"
                ran = one.restore(target)
                if turn:
                    took[one.name].append(ran.seconds)
                figures[f"{one.name}_cpu_s"] = ran.cpu_s
                (restored,) = [path for path in target.rglob("*") if path.is_file()]
                if not turn and not _equal(restored, image):
                    raise RuntimeError(f"what {one.name} restored is not what was backed up")
                shutil.rmtree(target)
    return report(f"restore-{peer.name}", took["holdfast"], took[peer.name], peer.name, "s", "less", figures)


def _equal(a: Path, b: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(a), str(b)], check=False).returncode == 0


def backup_unchanged(rounds: int, scale: float) -> Report:
    """The same image again, by a node that has the repository open: all of it read, hashed and compared, the point sealed and
    flushed. Beside reading it and nothing else. Both from the disk, as a disk is that is larger than memory; from the page cache,
    where reading is a copy that no digest can keep up with, is in the figures."""
    image = _image(scale)
    took: dict[str, list[float]] = {"ours": [], "plain": [], "ours_cached": [], "plain_cached": []}
    figures: dict[str, float] = {}
    with _ground() as folder:
        made = Ours(folder)
        made.backup(image)
        for turn in range(rounds + 1):
            for suffix in ("", "_cached"):
                if not suffix:
                    _forget(image)
                started = time.perf_counter()
                subprocess.run(["dd", f"if={image}", "of=/dev/null", "bs=1M"], check=True, capture_output=True)
                read = time.perf_counter() - started
                if not suffix:
                    _forget(image)
                ran = made.run("again", made.point, str(image))
                if ran.said["changed"]:
                    raise RuntimeError("an unchanged disk has changed")
                if turn:
                    took["plain" + suffix].append(read)
                    took["ours" + suffix].append(ran.said["seconds"] - ran.said["open_s"])
                    figures["with_starting_up_s" + suffix] = ran.seconds
                    figures["holdfast_cpu_s" + suffix] = ran.cpu_s
    for key in ("ours_cached", "plain_cached"):
        figures[key + "_s"] = sorted(took[key])[len(took[key]) // 2]
    figures["share_of_reading_cached"] = figures["plain_cached_s"] / figures["ours_cached_s"]
    figures["image_mb"] = image.stat().st_size / 1e6
    return report("backup-unchanged", took["ours"], took["plain"], "dd bs=1M", "s", "less", figures)


def _forget(image: Path) -> None:
    """Out of the page cache with it."""
    with image.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restore_depth(rounds: int, scale: float) -> Report:
    """Points 1, 50 and 365 of an image of which blocks are written anew every day, fed as dirty extents: how fast each is
    restored, and in how many pieces it lies. All three hold as much, and as compressible, data."""
    marks = (1, 50, 365)
    took: dict[int, list[float]] = {mark: [] for mark in marks}
    figures: dict[str, float] = {}
    with _ground() as folder:
        image = folder / "image"
        shutil.copyfile(_image(scale / 2), image)
        made = Ours(folder)
        blocks = image.stat().st_size // (256 << 10)
        a_day = max(1, blocks // 200)
        points = made.run("days", str(image), str(max(marks)), str(a_day)).said["points"]
        for turn in range(rounds + 1):
            for mark in (*marks[turn % 3 :], *marks[: turn % 3]):  # whatever comes first has it no better, nor worse
                target = folder / "target"
                made.point = points[mark - 1]
                ran = made.restore(target)
                if turn:
                    took[mark].append(ran.seconds)
                if mark == max(marks) and not turn and not _equal(target / "image", image):
                    raise RuntimeError("the last point is not the image as it is now")
                shutil.rmtree(target)
                _flushed(folder)
        for mark in marks:
            packs, pieces, stored = _pieces(made, points[mark - 1])
            figures[f"point_{mark}_packs"], figures[f"point_{mark}_pieces"] = packs, pieces
            figures[f"point_{mark}_stored_mb"] = stored / 1e6
            figures[f"point_{mark}_s"] = sorted(took[mark])[len(took[mark]) // 2]
    figures["changed_a_day_mib"] = a_day / 4
    slowest = max(marks, key=lambda mark: figures[f"point_{mark}_s"])
    fastest = min(marks, key=lambda mark: figures[f"point_{mark}_s"])
    figures["image_mb"] = (blocks * (256 << 10)) / 1e6
    return report("restore-depth", took[slowest], took[fastest], "fastest point", "s", "less", figures)


def _pieces(made: Ours, point: str) -> tuple[int, int, int]:
    """In how many packs a point's data lies, in how many stretches of them, and how many bytes that is."""
    repository = repository_ours.opened(made.repo, made.cache)
    names: list[bytes] = []
    for kind, joined in tree.walk(repository, repository.point(point).disks[0].root):
        if kind == DATA:
            names += [joined[at : at + 32] for at in range(0, len(joined), 32)]
    places = sorted(repository.index.locate(set(names)).values(), key=lambda place: (place.pack, place.offset))
    repository.close()
    pieces = 0
    pack, end = b"", -1
    for place in places:
        pieces += (place.pack, place.offset) != (pack, end)
        pack, end = place.pack, place.offset + pack_format.FRAME_BYTES + place.stored
    return len({place.pack for place in places}), pieces, sum(place.stored for place in places)


def adopt(rounds: int, scale: float) -> Report:
    """Opening a repository of a million chunks where nothing is known of it: from its index runs."""
    chunks = int(1_000_000 * scale)
    a_pack, a_run = 700, 100_000
    ours: list[float] = []
    with _ground() as folder:
        made = Ours(folder)
        identity = repositories.define(LocalStore(made.repo)).identity
        store = LocalStore(made.repo)
        for first in range(0, chunks, a_run):
            _write_run(store, identity, min(a_run, chunks - first), a_pack)
        for turn in range(rounds + 1):
            shutil.rmtree(made.cache, ignore_errors=True)
            ran = made.run("open")
            if ran.said["chunks"] != chunks:
                raise RuntimeError(f"{ran.said['chunks']} chunks of {chunks} were found")
            if turn:
                ours.append(ran.seconds)
    return report(
        "adopt", ours, [10.0], "limit", "s", "less", {"chunks": chunks, "anonymous_mib": ran.said["anonymous_mib"]}
    )


def _write_run(store: LocalStore, identity: UUID, chunks: int, a_pack: int) -> None:
    """A run of packs that are there by name: whoever believes the run never reads them."""
    covered: list[runs.Covered] = []
    entries: list[bytes] = []
    for first in range(0, chunks, a_pack):
        pack = secrets.token_bytes(16)
        name = pack_format.pack_file(pack, "bench", 1)
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        names = secrets.token_bytes(32 * min(a_pack, chunks - first))
        for number, (chunk,) in enumerate(struct.iter_unpack("32s", names)):
            entries.append(runs.entry(chunk, len(covered), 56 + number * 90_000, 89_000, 262_144, 1, 1))
        covered.append(runs.Covered(pack, name))
    runs.write(store, identity, runs.Run(UUID(uuid7()), tuple(covered), b"".join(entries)))


def node_memory(rounds: int, scale: float) -> Report:
    """Four disks at once, one of them of 1 TiB with little in it, in a process that is allowed 512 MiB with its page cache."""
    image = _image(scale)
    ours: list[float] = []
    figures: dict[str, float] = {}
    with _ground() as folder, _limited(_LIMIT_BYTES) as enter:
        sparse = folder / "sparse"
        with sparse.open("wb") as file:
            file.truncate(1 << 40)
            for number in range(2000):
                file.seek(number * (1 << 29) + number * 4096)
                file.write(os.urandom(65536))
        for turn in range(rounds):
            repo = folder / f"{turn}"
            repo.mkdir()
            made = Ours(repo)
            ran = made.run("backup", str(sparse), str(image), str(image), str(image), preexec_fn=enter)
            ours.append(ran.said["anonymous_mib"])
            figures["seconds"] = ran.seconds
            restored = made.run("restore", made.point or ran.said["point"], str(repo / "target"), preexec_fn=enter)
            figures["restore_anonymous_mib"] = restored.said["anonymous_mib"]
            shutil.rmtree(repo)
    return report("node-memory", ours, [400.0], "limit", "MiB", "less", figures)


@contextlib.contextmanager
def _limited(limit: int) -> Iterator[Any]:
    """A cgroup of this benchmark's own, of either version: what a child calls before it becomes the program."""
    name = f"holdfast-bench-{os.getpid()}"
    for root, knob in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        procs = group / "cgroup.procs"

        def enter(procs: Path = procs) -> None:
            procs.write_text(str(os.getpid()))

        try:
            yield enter
        finally:
            group.rmdir()
        return
    raise Skip("no cgroup can be made here that limits memory (be root)")
