"""The record of calls: everything that changes something, everything refused, every look at the record itself.

Refusals of callers that nobody knows are written once a second for each remote address, with how many there were since:
otherwise anybody who can reach the port could fill the log.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from api.auth.tokens import Principal
from streams.events import CallAudited
from streams.ids import now_us

_APART_S = 1.0
_REMOTES = 10_000
_LONG = 500
# Never in the record, whatever a body looks like: `contract` keeps unknown fields out, this keeps known ones out.
_SECRET = ("password", "passphrase", "recovery_code", "secret", "token", "tls_ca")


def redact(value: Any) -> Any:
    """`value` without what may be secret and without long text; names stay, so that one sees what was given."""
    if isinstance(value, Mapping):
        return {k: "…" if any(s in k.lower() for s in _SECRET) else redact(v) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(v) for v in value[:50]]
    if isinstance(value, str) and len(value) > _LONG:
        return value[:_LONG] + "…"
    return value


def event(
    request: str,
    who: Principal | None,
    action: str,
    object: str,
    outcome: int,
    remote: str,
    detail: Mapping[str, Any],
) -> CallAudited:
    """One call. `detail` may be what came from outside: it is redacted here."""
    return CallAudited(
        request=request,
        actor=who.actor if who else "",
        role=who.role if who else "",
        token=who.token if who else "",
        action=action,
        object=object[:200],
        outcome=outcome,
        detail=json.dumps(redact(detail), sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        remote=remote,
        at_us=now_us(),
    )


class Strangers:
    """Counts refused calls of unknown callers between those that are written."""

    def __init__(self, apart_s: float = _APART_S) -> None:
        self._apart = apart_s
        self._seen: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def refused(self, remote: str) -> int | None:
        """How many calls the record to be written now stands for; None when this one is only counted."""
        now = time.monotonic()
        with self._lock:
            last, count = self._seen.get(remote, (-self._apart, 0))
            if now - last < self._apart:
                self._seen[remote] = (last, count + 1)
                return None
            if len(self._seen) >= _REMOTES:
                self._seen.clear()
            self._seen[remote] = (now, 0)
            return count + 1

    def leftovers(self) -> list[tuple[str, int]]:
        """`(remote, count)` of calls that were only counted, and whose time to be written has come."""
        now = time.monotonic()
        with self._lock:
            due = [(r, n) for r, (last, n) in self._seen.items() if n and now - last >= self._apart]
            for remote, _ in due:
                self._seen[remote] = (now, 0)
        return due
