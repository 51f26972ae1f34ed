"""Backups of machines' disks as QEMU serves them: incremental ones by what changed, and whole ones beside `qemu-img convert`.

`backup-incremental`: qcow2 disks with a persistent dirty bitmap, which QEMU's own code keeps while the disk is written to
(`qemu-nbd`), served read-only with that bitmap as libvirt's pull-mode backups are; extents and bytes go through the platform's
classes. Two layouts: runs of 1 MiB, aligned, and 4 KiB in blocks all over the disk; two amounts; a disk of 16 GiB and a sparse
one of 1 TiB with as much in it. A point is made of each, encrypted, sealed and on disk before the clock stops. The scrub is
left out of the times: what it reads grows with what is on the disk, by a thirtieth; how much is in the figures.

`backup-kvm`: an image of files, whole, from one NBD export: by `qemu-img convert` into a raw file, and by us with digests,
compression and encryption. The packages are Debian's qemu-utils; without them the benchmarks are skipped.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.backup import reading
from agents.backup.progress import Pace, Reading
from agents.machines import DiskSeen
from agents.nbd import Nbd, Pool
from agents.platforms.kvm.snapshot import KvmDiskSnapshot
from agents.repository.ingest import Ingest
from agents.repository.points import Disk
from agents.repository.repository import Repository
from tests.bench import repository_ours
from tests.bench.report import Report, Skip, report
from tests.bench.repository import _flushed, _ground, _image
from tests.stand_ins.repository_session import LoneSession

GIB: Final = 1 << 30
_MARK: Final = "changes"  # as the platform has snapshots name the bitmap that they serve
_CONNECTIONS: Final = 4
_PIECE: Final = 1 << 20


def _need() -> None:
    for program in ("qemu-img", "qemu-nbd"):
        if shutil.which(program) is None:
            raise Skip(f"there is no {program} (Debian: qemu-utils)")


@contextlib.contextmanager
def _served(image: Path, *options: str) -> Iterator[Path]:
    """The socket of an export of `image`."""
    where = image.with_suffix(".socket")
    argv = ["qemu-nbd", "-t", "-e", "16", "-k", str(where), *options, str(image)]
    with subprocess.Popen(argv) as server:
        try:
            deadline = time.monotonic() + 60
            while not where.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"qemu-nbd did not serve {image}")
                time.sleep(0.01)
            yield where
        finally:
            server.terminate()
            server.wait()
            where.unlink(missing_ok=True)


def _connect(where: Path, contexts: Sequence[str] = ("base:allocation",)) -> Nbd:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(where))
    return Nbd(connection, "", contexts)


@contextlib.contextmanager
def _snapshot(where: Path, since: str) -> Iterator[KvmDiskSnapshot]:
    """The export as the platform would hand it out."""
    with contextlib.closing(Pool(lambda: _connect(where), _CONNECTIONS)) as pool:
        seen = DiskSeen("vda", pool.size, "qcow2")
        yield KvmDiskSnapshot(seen, "", since, "", lambda contexts: _connect(where, contexts), pool)


@dataclass(frozen=True, slots=True)
class _Took:
    seconds: float
    disk: Disk
    read: int


def _back_up(repository: Repository, where: Path, before: Disk | None) -> _Took:
    """One point, as `agents.backup.run` makes one of one disk; on disk when it is sealed."""
    started = time.perf_counter()
    with _snapshot(where, _MARK if before else "") as snapshot, Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("vda", size=snapshot.seen.size, continues=before)
        found = reading.blocks(snapshot.extents(), disk.block_size, snapshot.seen.size)
        disk.feed(Reading(snapshot, Pace()), found, compare=before is not None)
        sealed = ingest.seal(repository_ours.draft(disk.finish()))
        read = ingest.figures.read_bytes
    return _Took(time.perf_counter() - started, sealed.point.disks[0], read)


# --- incremental ------------------------------------------------------------------------------------------------------


def _filled(image: Path, size: int, content: int) -> None:
    """A qcow2 of `size` bytes in which `content` bytes stand, spread evenly in pieces of 1 MiB."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)], check=True)
    rng = random.Random(size)
    with _served(image, "-f", "qcow2", "--cache=unsafe") as where, contextlib.closing(_connect(where)) as disk:
        count = content // _PIECE
        for number in range(count):
            disk.write(size // count * number // _PIECE * _PIECE, rng.randbytes(_PIECE))
        disk.flush()


def _changed(image: Path, size: int, block: int, blocks: int, layout: str, seed: int) -> int:
    """Write so that `blocks` blocks change; how many did. The bitmap is begun anew before: what it has is this alone."""
    qemu = ["qemu-img", "bitmap", "-f", "qcow2"]
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run([*qemu, "--remove", str(image), _MARK], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*qemu, "--add", "--enable", str(image), _MARK], check=True)
    rng = random.Random(seed)
    with _served(image, "-f", "qcow2", "--cache=unsafe") as where, contextlib.closing(_connect(where)) as disk:
        if layout == "runs":
            per = _PIECE // block
            chosen = rng.sample(range(size // _PIECE), blocks // per)
            for at in chosen:
                disk.write(at * _PIECE, rng.randbytes(_PIECE))
            written = len(chosen) * per
        else:
            picked = rng.sample(range(size // block), blocks)
            for at in picked:
                disk.write(at * block + rng.randrange(block // 4096) * 4096, rng.randbytes(4096))
            written = len(picked)
        disk.flush()
    return written


def incremental(rounds: int, scale: float) -> Report:
    """Seconds of an incremental backup of 1 % of 16 GiB, 4 KiB all over it; the peer is the same of a sparse disk of 1 TiB."""
    _need()
    sizes = {"16gib": int(16 * GIB * scale) // _PIECE * _PIECE, "1tib": 1024 * GIB}
    content = int(2 * GIB * scale)
    took: dict[tuple[str, str, int], list[float]] = {}
    figures: dict[str, float] = {}
    with _ground() as folder:
        repository_ours.make(folder / "repo")
        with contextlib.closing(repository_ours.opened(folder / "repo", folder / "cache")) as repository:
            block = repository.definition.block_size
            before: dict[str, Disk] = {}
            for name, size in sizes.items():
                _filled(folder / name, size, content)
                with _served(folder / name, "-r", "-f", "qcow2") as where:
                    before[name] = _back_up(repository, where, None).disk
            seed = 0
            for turn in range(rounds + 1):
                for name, size in sizes.items():
                    for layout in ("scattered", "runs"):
                        for percent in (1, 2):
                            seed += 1
                            blocks = sizes["16gib"] * percent // 100 // block
                            written = _changed(folder / name, size, block, blocks, layout, seed)
                            with _served(folder / name, "-r", "-f", "qcow2", "-B", _MARK) as where:
                                one = _back_up(repository, where, before[name])
                            if one.disk.counts["changed"] != written:
                                raise RuntimeError(
                                    f"{written} blocks were written, {one.disk.counts['changed']} are in the point"
                                )
                            before[name] = one.disk
                            what = f"{name}_{layout}_{percent}"
                            figures[f"{what}_read_of_changed"] = one.read / (written * block)
                            if turn:
                                took.setdefault((name, layout, percent), []).append(one.seconds)
    for (name, layout, percent), times in took.items():
        figures[f"{name}_{layout}_{percent}pc_s"] = sorted(times)[len(times) // 2]
    for name in sizes:
        for layout in ("scattered", "runs"):
            figures[f"{name}_{layout}_time_of_twice_the_changes"] = (
                figures[f"{name}_{layout}_2pc_s"] / figures[f"{name}_{layout}_1pc_s"]
            )
    figures["changed_mb_of_1pc"] = sizes["16gib"] // 100 / 1e6
    figures["content_mb"] = content / 1e6
    figures["block_kib"] = block / 1024
    figures["scrub_reads_mb_each_run"] = content / 30 / 1e6
    ours, peer = took["16gib", "scattered", 1], took["1tib", "scattered", 1]
    return report("backup-incremental", ours, peer, "the same changes on a sparse disk of 1 TiB", "s", "less", figures)


# --- whole ------------------------------------------------------------------------------------------------------------


def kvm(rounds: int, scale: float) -> Report:
    """Bytes a second of a whole disk out of an NBD export into a repository, beside `qemu-img convert` from the same export."""
    _need()
    image = _image(scale)
    size = image.stat().st_size
    ours: list[float] = []
    peer: list[float] = []
    figures: dict[str, float] = {"image_mb": size / 1e6}
    for turn in range(rounds + 1):
        with _ground() as folder:
            link = folder / "image"
            os.link(image, link)
            with _served(link, "-r", "-f", "raw") as where:
                target = folder / "raw"
                started = time.perf_counter()
                subprocess.run(
                    ["qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={where}", str(target)],
                    check=True,
                )
                _flushed(folder)
                converted = time.perf_counter() - started
                target.unlink()
                _flushed(folder)
                repository_ours.make(folder / "repo")
                with contextlib.closing(repository_ours.opened(folder / "repo", folder / "cache")) as repository:
                    used = time.process_time()
                    started = time.perf_counter()
                    _back_up(repository, where, None)
                    _flushed(folder)
                    taken = time.perf_counter() - started
                    figures["ours_cpu_s"] = time.process_time() - used
            if turn:
                ours.append(size / taken / 1e6)
                peer.append(size / converted / 1e6)
    return report("backup-kvm", ours, peer, "qemu-img convert from the same NBD export", "MB/s", "more", figures)
