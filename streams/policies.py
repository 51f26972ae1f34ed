"""What a policy says, as JSON and as a value; what it selects; the ids of what it asks for. Pure.

    {"kind": "backup.run", "repository": "vault",
     "assets": {"names": ["web-*"], "hosts": [], "folders": ["/prod"], "tags": []}, "except": {"names": ["web-test*"], …},
     "mode": "incremental", "quiesce": "try", "bandwidth": 0, "together": false, "disks": {"web-1": ["vda"]},
     "schedule": ["daily 02:00"], "zone": "Europe/Berlin", "windows": ["22:00-06:00"], "blackouts": [],
     "missed": "run", "overrun": "finish", "retries_s": [300, 900], "priority": 0, "late_s": 3600, "enabled": true}

`kind` is that of the commands it makes:

    backup.run           one for each machine that is selected when it runs: `assets`, less `except`; `mode`, `quiesce`, and
                         `bandwidth` in bytes a second (0: as fast as can be); of machines in `disks` only those disks.
                         With `together` one for all of them, as they are at one moment
    backup.make          one for each of `paths`, asset → path on the agent's machine; `what`: files or image
    repository.verify    of `repository`; `level`, `percent`
    repository.collect   of `repository`
    point.expire         of `repository`, by its rules of that moment
    asset.discover       what machines there are on all hosts; no `repository`

A selection takes what every list that is not empty has a pattern for: `*`, `?`, `[…]`, capitals or not. A folder holds what is in
folders below it. `schedule`, `windows`, `blackouts` are `streams.rules`'. An empty schedule is a saved job's: it runs when
somebody asks for it, and is never due (ADR 0030).

`missed`: what was due while nobody could run it is made up for by one run (`run`), or not (`skip`). `overrun`: what is at work
when the windows close may `finish`, or is told to `stop`; what waits is given up. `retries_s`: pauses before a failed task
is tried again. `late_s`: how long after it was due a point counts as late.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final, Protocol

from blake3 import blake3

from streams import calendar, rules
from streams.calendar import Schedule
from streams.errors import StreamError

KINDS: Final = (
    "backup.run",
    "backup.make",
    "repository.verify",
    "repository.collect",
    "point.expire",
    "asset.discover",
)
BACKUPS: Final = ("backup.run", "backup.make")
MODES: Final = ("", "full", "incremental", "differential")
QUIESCE: Final = ("off", "try", "require")
LEVELS: Final = ("metadata", "sample", "full")
MOST_ASSETS: Final = 10_000
_LISTS: Final = ("names", "hosts", "folders", "tags")


class PolicyError(StreamError):
    """A document says what no policy can (`policy-invalid`)."""


class Asset(Protocol):
    """What a selection looks at (`streams.events.AssetChanged`, a row of the catalogue)."""

    @property
    def asset(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def tags(self) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Patterns; empty lists say nothing."""

    names: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.names or self.hosts or self.folders or self.tags)

    def takes(self, asset: Asset) -> bool:
        """Whether every list that is not empty has a pattern for it; an empty selection takes nothing."""
        return not self.empty and all(
            not patterns or _any(patterns, values)
            for patterns, values in (
                (self.names, (asset.asset, asset.name)),
                (self.hosts, (asset.host,)),
                (self.folders, tuple(_above(asset.folder))),
                (self.tags, tuple(asset.tags)),
            )
        )


def _any(patterns: Iterable[str], values: Iterable[str]) -> bool:
    lowered = [v.lower() for v in values]
    return any(fnmatchcase(value, pattern.lower()) for pattern in patterns for value in lowered)


def _above(folder: str) -> Iterable[str]:
    """`/a/b` and `/a`, with and without a slash in front."""
    parts = [p for p in folder.split("/") if p]
    for count in range(len(parts), 0, -1):
        found = "/".join(parts[:count])
        yield found
        yield f"/{found}"
    if not parts:
        yield "/"


@dataclass(frozen=True, slots=True)
class Policy:
    """A document as a value; texts of the schedule in their one spelling (`streams.rules.rule_text`)."""

    kind: str
    schedule: tuple[str, ...] = ()
    repository: str = ""
    zone: str = "UTC"
    assets: Selection = Selection()
    excepts: Selection = Selection()
    paths: tuple[tuple[str, str], ...] = ()
    what: str = "files"
    mode: str = ""
    quiesce: str = "try"
    bandwidth: int = 0
    together: bool = False
    disks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    level: str = "sample"
    percent: int = 10
    windows: tuple[str, ...] = ()
    blackouts: tuple[str, ...] = ()
    missed: str = "run"
    overrun: str = "finish"
    retries_s: tuple[int, ...] = ()
    priority: int = 0
    late_s: int = 3600
    enabled: bool = True

    @property
    def backs_up(self) -> bool:
        return self.kind in BACKUPS

    @property
    def by_hand(self) -> bool:
        """Whether it runs only when somebody asks for it."""
        return not self.schedule


@dataclass(frozen=True, slots=True)
class Task:
    """What one command of a run is of. `name` tells it from the run's others; empty: all of the run's assets."""

    name: str
    assets: tuple[str, ...]


# Which fields mean something for which kinds; the others mean something for all.
_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "assets": ("backup.run",),
    "except": ("backup.run",),
    "mode": ("backup.run",),
    "quiesce": ("backup.run",),
    "bandwidth": ("backup.run",),
    "together": ("backup.run",),
    "disks": ("backup.run",),
    "paths": ("backup.make",),
    "what": ("backup.make",),
    "level": ("repository.verify",),
    "percent": ("repository.verify",),
    "late_s": BACKUPS,
    "repository": tuple(kind for kind in KINDS if kind != "asset.discover"),
}
# Came later: left out where they say nothing, so that a document is the same text as before, which older agents can read.
_LATER: Final = ("together", "disks")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "kind": KINDS,
    "mode": MODES,
    "quiesce": QUIESCE,
    "what": ("files", "image"),
    "level": LEVELS,
    "missed": ("run", "skip"),
    "overrun": ("finish", "stop"),
}
_NUMBERS: Final[Mapping[str, tuple[int, int]]] = {
    "percent": (1, 100),
    "priority": (-9, 9),
    "late_s": (0, 366 * 86_400),
    "bandwidth": (0, 1 << 40),
}


def parse(document: str | Mapping[str, Any]) -> Policy:
    """A policy from its document. Raises `PolicyError`, `CalendarError`."""
    try:
        given = json.loads(document) if isinstance(document, str) else dict(document)
    except ValueError as error:
        raise PolicyError("policy-invalid", f"a policy is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise _wrong("it is not a JSON object")
    names = {("except" if f.name == "excepts" else f.name) for f in fields(Policy)}
    if strange := given.keys() - names:
        raise _wrong(f"there is no {', '.join(sorted(map(repr, strange)))}", f"known: {', '.join(sorted(names))}")
    kind = _choice("kind", given.get("kind"))
    if kind in _OF["repository"] and not given.get("repository"):
        raise _wrong("repository is missing")
    if "schedule" not in given:
        raise _wrong("schedule is missing", "an empty one is a job's that runs when somebody asks for it")
    if out := [n for n in given if kind not in _OF.get(n, (kind,))]:
        raise _wrong(f"{', '.join(sorted(out))} says nothing for {kind}")
    values: dict[str, Any] = {"kind": kind}
    for name, value in given.items():
        match name:
            case "kind":
                pass
            case "assets" | "except":
                values["assets" if name == "assets" else "excepts"] = _selection(name, value)
            case "paths":
                values[name] = _paths(value)
            case "disks":
                values[name] = _disks(value)
            case "schedule":
                values[name] = tuple(rules.rule_text(rules.parse_rule(t)) for t in _texts(name, value))
            case "windows" | "blackouts":
                values[name] = tuple(rules.span_text(rules.parse_span(t)) for t in _texts(name, value))
            case "retries_s":
                if not isinstance(value, list) or len(value) > 20 or not all(_whole(v, 0, 7 * 86_400) for v in value):
                    raise _wrong("retries_s is a list of at most 20 pauses in seconds")
                values[name] = tuple(value)
            case "enabled" | "together":
                if not isinstance(value, bool):
                    raise _wrong(f"{name} is true or false")
                values[name] = value
            case _ if name in _CHOICES:
                values[name] = _choice(name, value)
            case _ if name in _NUMBERS:
                low, high = _NUMBERS[name]
                if not _whole(value, low, high):
                    raise _wrong(f"{name} is a whole number from {low} to {high}")
                values[name] = value
            case _:
                if not isinstance(value, str) or not value or "\0" in value:
                    raise _wrong(f"{name} is a text")
                values[name] = value
    found = Policy(**values)
    rules.zone_of(found.zone)
    if found.by_hand and (found.windows or found.blackouts):
        raise _wrong("it has windows and no schedule", "what somebody asks for runs at once, whatever the windows")
    if kind == "backup.run" and found.assets.empty:
        raise _wrong("it selects nothing", "say which: names, hosts, folders or tags; `*` takes all")
    if kind == "backup.make" and not found.paths:
        raise _wrong("it names no path", "asset and path of each")
    return found


def _wrong(why: str, hint: str = "") -> PolicyError:
    return PolicyError("policy-invalid", f"this is no policy: {why}", hint)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _choice(name: str, value: object) -> str:
    if value not in _CHOICES[name]:
        raise _wrong(f"{name} is {value!r}", f"one of {', '.join(c or '(nothing)' for c in _CHOICES[name])}")
    assert isinstance(value, str)
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 100 or not all(isinstance(v, str) for v in value):
        raise _wrong(f"{name} is a list of at most 100 texts")
    return tuple(value)


def _selection(name: str, value: object) -> Selection:
    if not isinstance(value, Mapping) or value.keys() - set(_LISTS):
        raise _wrong(f"{name} has lists of patterns: {', '.join(_LISTS)}")
    return Selection(**{key: _texts(f"{name}.{key}", patterns) for key, patterns in value.items()})


def _paths(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or len(value) > MOST_ASSETS:
        raise _wrong("paths names a path by asset")
    for asset, path in value.items():
        if not isinstance(path, str) or not path.startswith("/") or not asset or "\0" in asset + path:
            raise _wrong(f"{path!r}, of {asset!r}, is no absolute path")
    return tuple(sorted(value.items()))


def _disks(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, Mapping) or len(value) > MOST_ASSETS or not all(isinstance(a, str) for a in value):
        raise _wrong("disks names disks by asset")
    found = {asset: _texts(f"disks.{asset}", disks) for asset, disks in value.items()}
    for asset, disks in found.items():
        if not asset or not disks or not all(disks):
            raise _wrong(f"disks says nothing of {asset!r}", "leave an asset out of which all disks are meant")
    return tuple(sorted(found.items()))


def document(policy: Policy) -> dict[str, Any]:
    """The document with everything that means something for its kind; `parse` gives the policy back."""
    out: dict[str, Any] = {}
    for f in fields(Policy):
        name = "except" if f.name == "excepts" else f.name
        if policy.kind not in _OF.get(name, (policy.kind,)):
            continue
        value = getattr(policy, f.name)
        if name in _LATER and not value:
            continue
        if isinstance(value, Selection):
            value = {key: list(getattr(value, key)) for key in _LISTS}
        elif name == "paths":
            value = dict(value)
        elif name == "disks":
            value = {asset: list(disks) for asset, disks in value}
        elif isinstance(value, tuple):
            value = list(value)
        out[name] = value
    return out


def canonical(policy: Policy) -> str:
    """The document as it stands in the log: equal policies are equal texts."""
    return json.dumps(document(policy), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4096)
def parsed(document: str) -> Policy:
    """`parse` of what stands in the log."""
    return parse(document)


@lru_cache(maxsize=4096)
def schedule_of(policy: Policy) -> Schedule:
    """When it is due."""
    return Schedule(
        tuple(rules.parse_rule(t) for t in policy.schedule),
        policy.zone,
        tuple(rules.parse_span(t) for t in policy.windows),
        tuple(rules.parse_span(t) for t in policy.blackouts),
    )


def selected(policy: Policy, assets: Iterable[Asset]) -> list[str]:
    """What a run would be of, by name. Of a repository's kinds: the repository."""
    match policy.kind:
        case "backup.run":
            return sorted(a.asset for a in assets if policy.assets.takes(a) and not policy.excepts.takes(a))
        case "backup.make":
            return [asset for asset, _ in policy.paths]
        case "asset.discover":
            return ["hosts"]
        case _:
            return [policy.repository]


def tasks(policy: Policy, assets: Iterable[str]) -> list[Task]:
    """What a run of these assets asks for: a command for each, or one for all that are to be of one moment."""
    chosen = tuple(assets)
    if policy.together and len(chosen) > 1:
        return [Task("", chosen)]
    return [Task(asset, (asset,)) for asset in chosen]


def command_of(policy: Policy, task: Task, run: str) -> tuple[str, dict[str, Any]]:
    """The key and the parameters of the command for a run's task (docs/design.md, "Commands")."""
    repository, asset = policy.repository, task.assets[0]
    match policy.kind:
        case "backup.run":
            more: dict[str, Any] = {"mode": policy.mode} if policy.mode else {}
            more |= {"bandwidth": policy.bandwidth} if policy.bandwidth else {}
            disks = {name: list(chosen) for name, chosen in policy.disks if name in task.assets}
            more |= {"disks": disks} if disks else {}
            given = {"repository": repository, "quiesce": policy.quiesce, **more}
            if not task.name:
                return f"group/{run}", {**given, "assets": list(task.assets)}
            return f"asset/{asset}", {**given, "asset": asset}
        case "backup.make":
            path = dict(policy.paths)[asset]
            return f"asset/{asset}", {"kind": policy.what, "repository": repository, "path": path, "asset": asset}
        case "asset.discover":
            return "hosts", {"host": ""}
        case "repository.verify":
            given = {"repository": repository, "level": policy.level, "percent": policy.percent}
            return f"verify/{repository}", given
        case "repository.collect":
            return f"repository/{repository}", {"repository": repository, "dry_run": False}
        case _:
            return f"repository/{repository}", {"repository": repository, "dry_run": False, "unattended": True}


def run_id(policy: str, version: int, instant_us: int) -> str:
    """The id of the run of a policy's version at an instant; version 0: of one that somebody asked for then."""
    return _id(instant_us, policy, version)


def command_id(run: str, instant_us: int, task: str, attempt: int) -> str:
    """The id of what a run asks for, by the task's name: the same whoever asks, and however often."""
    return _id(instant_us, run, task, attempt)


def _id(instant_us: int, *what: str | int) -> str:
    """A UUID of version 8 (RFC 9562) that sorts by the instant, as version 7 does by its time."""
    name = json.dumps([instant_us, *what], ensure_ascii=False).encode()
    number = (instant_us // 1000 & (1 << 48) - 1) << 80 | int.from_bytes(blake3(name).digest(10))
    number = number & ~(0xF << 76) | 8 << 76
    return str(uuid.UUID(int=number & ~(0x3 << 62) | 2 << 62))


def moment(us: int) -> datetime:
    """µs since 1970 as the calendar takes it."""
    seconds, fraction = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=fraction)


def microseconds(at: datetime) -> int:
    """The other way round, exactly."""
    return calendar.since_1970_us(at)
