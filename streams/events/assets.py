"""Hosts (hypervisors, and what manages several) and the machines found on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

HostState = Literal["added", "changed", "removed"]
AssetState = Literal["seen", "gone"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class HostDefined(Event):
    """A host is of this site from now on, or its definition changed: the newest event is the definition.

    `url` is the platform's own, without secrets; `secrets` are references into the secret store by purpose (`password`).
    """

    TYPE: ClassVar[str] = "host.defined"
    TOPIC: ClassVar[str] = "inventory"

    host: str
    kind: str
    state: str
    url: str
    account: str = ""
    tls_ca: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    problems: tuple[Problem, ...] = ()
    defined_us: int
    by: str

    @property
    def key(self) -> str:
        return f"host/{self.host}"


@dataclass(frozen=True, slots=True)
class AssetDisk:
    """A disk as it was seen (`agents.machines.DiskSeen`). `size` in bytes."""

    disk: str
    size: int
    format: str
    bus: str = ""
    storage: str = ""
    place: str = ""
    tracked: bool = False
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class AssetNic:
    """A network card as it was seen."""

    mac: str
    network: str = ""
    model: str = ""


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class AssetChanged(Event):
    """A machine was found on a host, is different from how it was last seen, or is there no more (`gone`).

    `asset` is what people call it from its first event on, whatever it is renamed to: a slug of its name, with a number behind it
    where another asset has that. `native` is the host's own identity, unique with `host`. `memory` in bytes.
    """

    TYPE: ClassVar[str] = "asset.changed"
    TOPIC: ClassVar[str] = "inventory"

    asset: str
    state: str
    host: str
    native: str
    name: str
    folder: str = ""
    tags: tuple[str, ...] = ()
    power: str = ""
    cpus: int = 0
    memory: int = 0
    firmware: str = ""
    disks: tuple[AssetDisk, ...] = ()
    nics: tuple[AssetNic, ...] = ()
    seen_us: int
    by: str

    @property
    def key(self) -> str:
        return self.asset
