"""Restores to image files beside `qemu-img convert` from the raw disk: into qcow2, vmdk and vhdx.

Ours reads an encrypted, compressed repository, verifies every chunk, writes the image through a `qemu-nbd`, and reads all of it
back to compare it with the point; the peer copies a raw file that is in the page cache. So that like stands beside like, the
figures have ours without reading back, too, and the peer with `qemu-img compare`. All is on disk (`sync -f`) before the clock
stops. The image is that of `restore-restic`. The packages are Debian's qemu-utils; without them the benchmark is skipped.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.backup.limits import Limits
from agents.repository.comparing import same_by
from agents.restore import folder as folders
from agents.restore import writing
from agents.restore.progress import Limit
from agents.restore.task import Task
from tests.bench import repository_ours
from tests.bench.report import Report, Skip, report
from tests.bench.repository import _flushed, _ground, _image

FORMATS = ("qcow2", "vmdk", "vhdx")


def images(rounds: int, scale: float) -> Report:
    """MB/s of the image's size into qcow2, read back and compared; the peer copies and does not look again."""
    for program in ("qemu-img", "qemu-nbd"):
        if shutil.which(program) is None:
            raise Skip(f"there is no {program} (Debian: qemu-utils)")
    image = _image(scale)
    size = image.stat().st_size
    took: dict[str, list[float]] = {}
    with _ground() as folder:
        repository_ours.make(folder / "repo")
        with contextlib.closing(repository_ours.opened(folder / "repo", folder / "cache")) as repository:
            sealed, _ = repository_ours.backup(repository, [image])
            services = SimpleNamespace(limits=Limits())
            ctx: Any = SimpleNamespace(
                check=lambda: None, progress=lambda *_: None, warn=lambda *_: None, services=services
            )
            same = same_by(repository.naming())
            point = sealed.point
            task = Task(ctx, "bench", repository, point, point.disks, same, Limit(0, time.sleep))
            for turn in range(rounds + 1):
                for format in FORMATS:
                    for what, seconds in _turn(task, image, folder, format):
                        if turn:
                            took.setdefault(f"{format}_{what}", []).append(size / seconds / 1e6)
    figures = {f"{what}_mb_s": sorted(rates)[len(rates) // 2] for what, rates in took.items()}
    figures["image_mb"] = size / 1e6
    ours, peer = took["qcow2_ours"], took["qcow2_convert"]
    return report("restore-images", ours, peer, "qemu-img convert from a raw file", "MB/s", "more", figures)


def _turn(task: Task, image: Path, folder: Path, format: str) -> list[tuple[str, float]]:
    out = []
    target = folder / "target"
    for what in ("ours", "ours_not_read_back"):
        with pytest.MonkeyPatch.context() as patched:
            if what != "ours":
                patched.setattr(writing, "compare", lambda work, place, done, meter: done)
            started = time.perf_counter()
            folders.restore(task, target, format, dry_run=False)
            _flushed(folder)
            out.append((what, time.perf_counter() - started))
        shutil.rmtree(target)
        _flushed(folder)
    started = time.perf_counter()
    copy = folder / "copy"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, str(image), str(copy)], check=True)
    _flushed(folder)
    out.append(("convert", time.perf_counter() - started))
    compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", format, str(image), str(copy)]
    subprocess.run(compare, check=True)
    out.append(("convert_and_compare", time.perf_counter() - started))
    copy.unlink()
    _flushed(folder)
    return out
