"""What counts of what is said about policies: a fold over `policy.…` events in the order of the log. Pure.

    defined v1   fired 02:00   defined v2   fired 02:00   fired v1 03:00   skipped 03:00   rewound 01:30   fired 02:30
                               counts       void          void             counts          counts          counts

- A definition counts when its version is one more than the one that stands; a removal, when it names the one that stands.
- Up to `decided_us` everything is decided. `fired` and `skipped` count for the version that stands and for what is later;
  then all up to their instant is decided. What was asked for by somebody is beside that: it counts once.
- `rewound` counts when it is earlier than what is decided.
- `ended` counts once for a run that was fired.

Agents, read models and the API apply this to the same order, so they know the same. A command of a run has an id that
follows from the run (`streams.policies.command_id`), so that whatever is said twice is done once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from streams.events import Event, PolicyDefined, PolicyRemoved, PolicyRun


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy as the log has it. `version` 0: never defined. Instants of the rules that stand are due from `since_us` on,
    when they were defined; `decided_us` may be earlier, while what was due before is still to be decided."""

    policy: str
    version: int = 0
    document: str = ""
    removed: bool = False
    since_us: int = 0
    decided_us: int = 0

    @property
    def there(self) -> bool:
        return self.version > 0 and not self.removed


def counts(standing: Standing, event: Event) -> bool:
    """Whether the next event about this policy says anything. Of `asked` and `ended`, and of what was asked for, only whether
    the policy was ever defined: whether it was said before is known to who keeps runs."""
    match event:
        case PolicyDefined():
            return event.version == standing.version + 1
        case PolicyRemoved():
            return standing.there and event.version == standing.version
        case PolicyRun(state="ended"):
            return standing.version > 0
        case PolicyRun(state="rewound"):
            return standing.there and event.instant_us < standing.decided_us
        case PolicyRun(state="asked"):
            return standing.there
        case PolicyRun(state="fired" | "skipped", reason="asked"):
            return standing.there and event.version == standing.version
        case PolicyRun(state="fired"):
            return standing.there and event.version == standing.version and event.instant_us > standing.decided_us
        case PolicyRun(state="skipped"):
            return standing.there and event.version == standing.version and event.until_us > standing.decided_us
    return False


def after(standing: Standing, event: Event) -> Standing:
    """The standing after one more event; the very same object when that changes nothing."""
    if not counts(standing, event):
        return standing
    match event:
        case PolicyDefined():
            again = standing.version > 0 and not standing.removed
            return replace(
                standing,
                version=event.version,
                document=event.document,
                removed=False,
                since_us=event.defined_us,
                decided_us=min(standing.decided_us, event.defined_us) if again else event.defined_us,
            )
        case PolicyRemoved():
            return replace(standing, removed=True)
        case PolicyRun(state="rewound"):
            return replace(standing, decided_us=event.instant_us, since_us=min(standing.since_us, event.instant_us))
        case PolicyRun(state="fired", reason=reason) if reason != "asked":
            return replace(standing, decided_us=event.instant_us)
        case PolicyRun(state="skipped", reason=reason) if reason != "asked":
            return replace(standing, decided_us=event.until_us)
    return standing


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was fired; `ended` with what counted them."""

    fired: PolicyRun
    ended: PolicyRun | None = None


@dataclass(slots=True)
class PolicyLog:
    """All policies and their runs. `forget` ended runs where only what goes on matters."""

    standings: dict[str, Standing] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    asked: dict[str, PolicyRun] = field(default_factory=dict)
    documents: dict[tuple[str, int], str] = field(default_factory=dict)

    def apply(self, event: Event) -> bool:
        """Take in the next event; whether it counted. What is none of ours does not."""
        if not isinstance(event, PolicyDefined | PolicyRemoved | PolicyRun):
            return False
        before = self.standings.get(event.policy, Standing(event.policy))
        if not counts(before, event):
            return False
        if isinstance(event, PolicyRun) and not self._run(event):
            return False
        if isinstance(event, PolicyDefined):
            self.documents[event.policy, event.version] = event.document
        if isinstance(event, PolicyRemoved):
            self.asked = {run: a for run, a in self.asked.items() if a.policy != event.policy}
        self.standings[event.policy] = after(before, event)
        return True

    def _run(self, event: PolicyRun) -> bool:
        """Whether a run's event counts beside what is decided."""
        known = self.runs.get(event.run)
        match event.state:
            case "asked":
                if event.run in self.asked or known is not None:
                    return False
                self.asked[event.run] = event
            case "fired" | "skipped" if event.reason == "asked" and self.asked.pop(event.run, None) is None:
                return False
            case "fired" if known is None:  # one made again, after a rewinding, goes on as it was: so do its commands
                self.runs[event.run] = Run(event)
            case "ended":
                if known is None or known.ended is not None:
                    return False
                self.runs[event.run] = Run(known.fired, event)
        return True


def open_runs(runs: Mapping[str, Run]) -> list[Run]:
    return [run for run in runs.values() if run.ended is None]
