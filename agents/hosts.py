"""The hosts and machines there are, as `inventory` has them. Fed in the order of the log by one thread, asked by many.

An asset is one machine for ever: an event that says something of another machine under its name does not count (two agents that
found two machines of one name at once); who looks next finds the other one without a name and gives it another.
"""

from __future__ import annotations

import threading
from typing import Protocol

from agents.errors import AgentError
from agents.machines import HostSettings
from streams.events import AssetChanged, Event, HostDefined


class Secrets(Protocol):
    """What a reference names."""

    def get(self, reference: str) -> bytes: ...


class Hosts:
    """All hosts by name, and all assets that are machines."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostDefined] = {}
        self._assets: dict[str, AssetChanged] = {}
        self._lock = threading.Lock()

    def apply(self, event: Event) -> None:
        """Take in the next event of `inventory`; what is none of ours is left alone."""
        with self._lock:
            if isinstance(event, HostDefined):
                self._hosts[event.host] = event
            elif isinstance(event, AssetChanged):
                known = self._assets.get(event.asset)
                if known is None or known.native == event.native:
                    self._assets[event.asset] = event

    def find(self, name: str) -> HostDefined | None:
        """A host that is not removed."""
        with self._lock:
            found = self._hosts.get(name)
        return None if found is None or found.state == "removed" else found

    def get(self, name: str) -> HostDefined:
        """Raises `AgentError` (`host-unknown`)."""
        found = self.find(name)
        if found is None:
            raise AgentError("host-unknown", f"there is no host {name!r}", "see `holdfast host list`")
        return found

    def all(self) -> dict[str, HostDefined]:
        """Those that are not removed."""
        with self._lock:
            return {name: host for name, host in self._hosts.items() if host.state != "removed"}

    def asset(self, name: str) -> AssetChanged:
        """Raises `AgentError` (`asset-unknown`), `asset-gone` for a machine that is not on its host any more."""
        with self._lock:
            found = self._assets.get(name)
        if found is None:
            raise AgentError(
                "asset-unknown", f"there is no machine {name!r}", "`holdfast asset list` shows them; `asset discover`"
            )
        if found.state == "gone":
            raise AgentError(
                "asset-gone",
                f"{name} is not on {found.host} any more",
                "`holdfast asset discover` looks again; its points can be restored",
            )
        return found

    def assets(self) -> dict[str, AssetChanged]:
        """All that ever were, as they were last said to be."""
        with self._lock:
            return dict(self._assets)


def host_settings(defined: HostDefined, secrets: Secrets) -> HostSettings:
    """The settings that an event defines, the reference to its password resolved."""
    reference = defined.secrets.get("password", "")
    return HostSettings(
        host=defined.host,
        kind=defined.kind,
        url=defined.url,
        account=defined.account,
        password=secrets.get(reference).decode() if reference else "",
        tls_ca=defined.tls_ca,
        options=dict(defined.options),
    )
