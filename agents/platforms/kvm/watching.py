"""Guests go on when there is no room left for what they overwrite.

While a snapshot stands, QEMU copies what a guest overwrites into a scratch file first. Where that fails, the guest's write fails,
and QEMU pauses the guest over it with the write undone (`error_policy`, which libvirt leaves at that for ENOSPC): it waits for
somebody to make room. That is us: the snapshot is given up, its scratch file with it, and the guest resumed, which then does the
write again. It has lost nothing but a moment; the backup has failed (`scratch-full`).

Domains are asked twice a second, by a thread of the snapshot's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from agents.errors import AgentError
from agents.platforms.kvm import seeing
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.library import libvirt

_LOOK_S: Final = 0.5


def stopped_over_a_write(domain: Any) -> bool:
    """QEMU has paused it because it could not write."""
    library = libvirt()
    return list(domain.state()) == [library.VIR_DOMAIN_PAUSED, library.VIR_DOMAIN_PAUSED_IOERROR]


class Watch:
    """Over the machines of one snapshot: `give_up` is called with each that has stopped, and lets it go on."""

    def __init__(
        self, connection: Connection, machines: Sequence[tuple[str, str]], scratch: str, give_up: Callable[[str], None]
    ) -> None:
        """`machines`: native identities and names of those that run."""
        self._connection = connection
        self._machines = machines
        self._scratch = scratch
        self._give_up = give_up
        self._over = threading.Event()
        self._error: AgentError | None = None
        self._thread = threading.Thread(target=self._watch, name="kvm-watch", daemon=True)
        if machines:
            self._thread.start()

    @property
    def error(self) -> AgentError | None:
        """Why the snapshot was given up."""
        return self._error

    def stop(self) -> None:
        """May be called twice. Nothing is given up from now on."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            for native, name in self._machines:
                with contextlib.suppress(AgentError):  # whoever reads finds out, too
                    self._look(native, name)

    def _look(self, native: str, name: str) -> None:
        domain = seeing.domain_of(self._connection, native)
        with self._connection.errors():
            if not stopped_over_a_write(domain):
                return
        self._error = self._error or AgentError(
            "scratch-full",
            f"{name} could not write any more and was paused by its host, as it is when there is no room in {self._scratch}:"
            " the backup was given up, and the machine goes on",
            f"give {self._scratch} on the host room for what guests overwrite during a backup, or another place (option"
            " scratch); if the machine is paused again, its own storage is full",
        )
        self._give_up(native)
