"""What a case of the rewind matrix is: tables, seeded writes, a trap in their midst, and what must come of crossing it.

Statements are templates: `{n}` is a number that no write of the case had before, `{k}` one that some write had, `{w}` a word.
A write is one statement, or several: `begin` … `commit` then. `(session, statement)` runs on a connection of that name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Statement = str | tuple[str, str]
Write = Statement | tuple[Statement, ...]

_WORDS = ("a", "A", "zebra", "é", "日本", "x ", "", "''", "😀", "null")

TABLE = "create table t (id int primary key, v varchar(40) character set utf8mb4, n int)"
OTHER = "create table o (id int primary key, v int)"
WRITES: tuple[Write, ...] = (
    "insert into t values ({n}, '{w}', {k})",
    "insert into t values ({n}, '{w}', 1), ({n}0001, '{w}{w}', 2)",
    "update t set v = concat(v, '{w}.'), n = {n} where id % 2 = {k} % 2",
    "update t set n = {n}, v = '{w}' order by id limit 3",
    "delete from t where id < 100 order by id desc limit 1",
    (
        "begin",
        "insert into t values ({n}, 'b', 0)",
        "update t set v = '{w}' where id = {n}",
        "update t set n = {n}",
        "commit",
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix.

    - `about`: the trap, as docs/rewind-matrix.md says it.
    - `tables`: what is there before the writes (in a database of the case's own, `m_<name>`).
    - `writes`: drawn from at random, before the trap (`before` of them) and after it (`after` of them).
    - `trap`: carried out in this order, each a write of its own.
    - `refused`: codes, one of which a plan that crosses the trap is refused with; empty: it is crossed like anything else.
    - `sometimes`: it is refused only when rows change that were written before the trap.
    - `stops`: codes, one of which capture stops with; nothing is rolled back then.
    - `settings`: global, for the time of the case, for connections made in it.
    - `options`: of every plan.
    - `compared`: tables that are compared; empty: all of the case's database. `renamed`: names then, names now.
    - `differs`: by the beginning of a server's name, the first that fits: fields that are others there. None: it has nothing
      that the case is about.
    """

    name: str
    about: str
    tables: tuple[Statement, ...] = (TABLE,)
    writes: tuple[Write, ...] = WRITES
    trap: tuple[Write, ...] = ()
    refused: tuple[str, ...] = ()
    sometimes: bool = False
    stops: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    before: int = 3
    after: int = 3
    turns: int = 3
    differs: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def on(self, server: str) -> Case | None:
        """The case as it is on a server of this name."""
        for name, fields in self.differs.items():
            if server.startswith(name):
                return None if fields is None else replace(self, differs={}, **fields)
        return self

    @property
    def database(self) -> str:
        return f"m_{self.name}"

    @property
    def expected(self) -> str:
        """The cell of the table."""
        if self.stops:
            return "capture stops: " + " or ".join(self.stops)
        if self.refused:
            refused = "refused: " + " or ".join(self.refused)
            return f"walked; {refused} where rows from before it change" if self.sometimes else refused
        return "walked"


@dataclass
class Writer:
    """Fills in templates; the same for the same seed."""

    rng: random.Random
    used: int = 0

    def draw(self, writes: tuple[Write, ...]) -> list[tuple[str, str]]:
        return self.fill(self.rng.choice(writes))

    def fill(self, write: Write) -> list[tuple[str, str]]:
        """(session, statement) of one write. A statement with another session's name is a pair, a write of several is not."""
        if isinstance(write, str) or (len(write) == 2 and write[0] in SESSIONS):
            write = (write,)  # type: ignore[assignment]
        self.used += 1
        values = {"n": self.used, "k": self.rng.randint(1, self.used), "w": self.rng.choice(_WORDS)}
        out = []
        for statement in write:
            session, text = ("a", statement) if isinstance(statement, str) else statement
            for name, value in values.items():
                text = text.replace("{" + name + "}", str(value))
            out.append((session, text))
        return out


SESSIONS = frozenset({"a", "b", "c"})
