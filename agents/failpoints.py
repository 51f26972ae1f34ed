"""Places where a test makes this process die: `failpoint("name")` does nothing unless HOLDFAST_FAILPOINT names it.

`HOLDFAST_FAILPOINT=name` kills the process (SIGKILL: no handler runs, no buffer is flushed) when it comes by for the
first time, `name:3` at the third time. Several are separated by commas. HOLDFAST_STOPPOINT is the same for stopping it
(SIGSTOP), so that a test can let it go on (SIGCONT) when everybody takes it for dead. Knows nothing of what it is placed in;
the names are listed in docs/design.md, "Failpoints".
"""

from __future__ import annotations

import os
import signal


def _parse(text: str) -> dict[str, int]:
    """`"a,b:3"` to `{"a": 1, "b": 3}`: at which visit each is due."""
    out: dict[str, int] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        name, _, visit = entry.partition(":")
        out[name] = int(visit or 1)
    return out


_due = _parse(os.environ.get("HOLDFAST_FAILPOINT", ""))
_stops = _parse(os.environ.get("HOLDFAST_STOPPOINT", ""))


def failpoint(name: str) -> None:
    """Die, or stop, here when the environment asks for it."""
    for due, number in ((_due, signal.SIGKILL), (_stops, signal.SIGSTOP)):
        if name in due:
            due[name] -= 1
            if due[name] == 0:
                os.kill(os.getpid(), number)
