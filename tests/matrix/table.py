"""The matrix as a page: `python -P -m tests.matrix.table` writes docs/rewind-matrix.md. Tests hold each cell to the truth."""

from __future__ import annotations

from pathlib import Path

from tests.matrix.cases import Case
from tests.matrix.elsewhere import ELSEWHERE
from tests.matrix.servers import SERVERS, ServerKind
from tests.matrix.traps import STOPS, TRAPS

PAGE = Path(__file__).parents[2] / "docs" / "rewind-matrix.md"

_HEAD = """# The rewind matrix

What happens when a rollback meets a trap, on each server. Made from `tests/matrix` (`python -P -m tests.matrix.table`) and
held to it by `tests/e2e/test_rewind_matrix.py`, which runs every cell: seeded writes, the trap in their midst, more writes;
then to states before it and after it in random order, back and forward, with writes in between.

- **walked**: every state asked for was reached, the trap crossed both ways, and `CHECKSUM TABLE` of every table was the one
  recorded there.
- **refused**: the plan that crosses the trap says so beforehand, with this code; to either side of it the walk goes on.
- **capture stops**: with this code; a new baseline begins a new lineage.

–: the server has nothing of the kind, or its own limits forbid it. The log of MariaDB 10.11 is encrypted (`encrypt_binlog`,
`file_key_management`) for all of its column.
"""


def outcome(kind: ServerKind, case: Case) -> str:
    """What is promised of this case on this server."""
    there = case.on(kind.name)
    return there.expected if there is not None else "–"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    """The whole page."""
    lines = [_HEAD, "## Types", "", _row("what it is", *(k.name for k in SERVERS)), _row(*["---"] * (1 + len(SERVERS)))]
    lines += [_row("the type zoo (`tests/matrix/types.py`)", *("walked" for _ in SERVERS)), "", "## Traps", ""]
    lines += [_row("case", "what it is", *(k.name for k in SERVERS)), _row(*["---"] * (2 + len(SERVERS)))]
    for case in (*TRAPS, *STOPS):
        lines.append(_row(f"`{case.name}`", case.about, *(outcome(kind, case) for kind in SERVERS)))
    lines += [
        "",
        "## Traps shown elsewhere",
        "",
        _row("trap", "what comes of it", "shown by"),
        _row("---", "---", "---"),
    ]
    lines += [_row(trap, what, ", ".join(f"`{t.split('/')[-1]}`" for t in tests)) for trap, what, tests in ELSEWHERE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
