"""Disks of machines that are off: read and written through a `qemu-nbd` of our own, which knows every image format and keeps
others, a machine that is started among them, from writing to the image meanwhile (QEMU's image locks). Those of machines on
another host by a machine of ours there (`carrier`)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agents.errors import AgentError, SourceUnavailable
from agents.nbd import Nbd, Pool
from agents.platforms.kvm import marks, notes, seeing
from agents.platforms.kvm.carrier import EXPORT, Place, carried
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.description import DiskDescribed
from agents.platforms.kvm.reach import start_child, stop_child, unix, wait_for_socket

_CLIENTS: Final = 16
_CONNECTIONS: Final = 4
_TIMEOUT_S: Final = 120


def open_disk(place: Place, native: str, disk: str, *, job: str) -> KvmDiskTarget:
    """See `agents.machines.Host.open_disk`."""
    connection = place.connection
    domain, described = _that_is_off(connection, native, disk)
    with connection.errors():
        if not domain.isPersistent():
            raise AgentError("machine-unknown", f"machine {native} is gone", "discover again")
        note = notes.begin_restore(domain, job)
        gone = marks.forget_all(domain)
        images = [d for d in seeing.as_running(domain).disks if d.tracked and gone]
    blank = note.get("blank") == "yes"
    if not connection.local:
        for image in images:
            if image.disk != disk:
                with (
                    contextlib.suppress(AgentError),
                    carried(place, domain, image.disk, job=job, read_only=False, unmark=True),
                ):
                    pass
        return _carried(place, domain, disk, job=job, blank=blank, read_only=False)
    for image in images:
        _remove_bitmaps(image, gone)
    return _opened(described, blank=blank, read_only=False)


def read_disk(place: Place, native: str, disk: str) -> KvmDiskTarget:
    domain, described = _that_is_off(place.connection, native, disk)
    if not place.connection.local:
        return _carried(place, domain, disk, job="", blank=False, read_only=True)
    return _opened(described, blank=False, read_only=True)


def _that_is_off(connection: Connection, native: str, disk: str) -> tuple[Any, DiskDescribed]:
    domain = seeing.domain_of(connection, native)
    with connection.errors():
        described = seeing.as_running(domain)
        found = next((d for d in described.disks if d.disk == disk), None)
        if found is None:
            raise AgentError("disk-unknown", f"{described.name} has no disk {disk}", "discover again")
        if domain.isActive():
            raise AgentError("machine-running", f"{described.name} is not off", "shut it down first")
    if found.kind not in ("file", "block"):
        raise AgentError(
            "disk-unsupported",
            f"disk {disk} of {described.name} is of kind {found.kind}: it cannot be opened from here",
            "restore to a new machine, or to files",
        )
    return domain, found


def _carried(place: Place, domain: Any, disk: str, *, job: str, blank: bool, read_only: bool) -> KvmDiskTarget:
    with contextlib.ExitStack() as stack:
        access = stack.enter_context(carried(place, domain, disk, job=job, read_only=read_only, unmark=not read_only))
        connect = access.connector(EXPORT)
        pool = Pool(lambda: connect(()), _CONNECTIONS)
        return KvmDiskTarget(pool.size, blank, read_only, disk, pool, stack.pop_all().close)


def _opened(disk: DiskDescribed, *, blank: bool, read_only: bool) -> KvmDiskTarget:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-nbd-"))
    socket = folder / "socket"
    command = [
        *("qemu-nbd", f"--socket={socket}", f"--format={disk.format}", f"--export-name={EXPORT}", "--persistent"),
        *(f"--shared={_CLIENTS}", "--discard=unmap", *(["--read-only"] if read_only else [])),
        disk.place,
    ]
    process = start_child(command)
    try:
        wait_for_socket(process, socket, "qemu-nbd")
        pool = Pool(lambda: Nbd(unix(str(socket))(), EXPORT), _CONNECTIONS)
    except BaseException as error:
        stop_child(process)
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SourceUnavailable) and "lock" in error.message:
            raise AgentError("disk-busy", f"{disk.place} is in use: {error.message}", "wait until it is not") from error
        raise

    def close() -> None:
        stop_child(process)
        shutil.rmtree(folder, ignore_errors=True)

    return KvmDiskTarget(pool.size, blank, read_only, disk.disk, pool, close)


def _remove_bitmaps(image: DiskDescribed, names: Sequence[str]) -> None:
    for name in names:
        command = ["qemu-img", "bitmap", "--remove", "-f", image.format, image.place, name]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            # It fails where the image has none of that name. One that stays counts on, and nobody asks it.
            subprocess.run(command, capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)


@dataclass(slots=True)
class KvmDiskTarget:
    """Implements `DiskTarget`."""

    size: int
    blank: bool
    _read_only: bool
    _disk: str
    _pool: Pool = field(repr=False)
    _let_go: Callable[[], None] = field(repr=False)  # may be called twice

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._io() as connection:
            connection.read_into(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._writing() as connection:
            connection.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        with self._writing() as connection:
            connection.zero(offset, length)

    def flush(self) -> None:
        # One server, one image: what any connection wrote is flushed by any other.
        with self._writing() as connection:
            connection.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Nbd]:
        if self._read_only:
            raise AgentError("disk-read-only", f"disk {self._disk} was opened to be read only")
        with self._io() as connection:
            yield connection

    @contextlib.contextmanager
    def _io(self) -> Iterator[Nbd]:
        try:
            with self._pool.one() as connection:
                yield connection
        except OSError as error:
            raise AgentError("disk-io", f"disk {self._disk}: {error}", "see the storage that it is on") from error

    def close(self) -> None:
        self._pool.close()
        self._let_go()
