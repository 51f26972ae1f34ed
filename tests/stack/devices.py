"""Block devices of tests: files as loop devices, which takes root and a kernel that has them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """`file` as a block device, while it lasts; the test is skipped, with the reason, where none can be had."""
    if os.geteuid():
        pytest.skip("only root makes loop devices")
    if not Path("/dev/loop-control").exists() or shutil.which("losetup") is None:
        pytest.skip("this machine has no loop devices (no /dev/loop-control, or no losetup)")
    made = subprocess.run(["losetup", "--find", "--show", str(file)], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
