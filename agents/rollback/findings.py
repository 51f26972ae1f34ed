"""What a rollback cannot undo, as it is met step by step: *findings*, each with what to do instead.

A finding is reported once a code and subject, with the first step that shows it and how many do. Knows no events: who reads
them (`agents.rollback.fold`) says what it met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agents.rollback.schema import Definition, TableName
from streams.events import Problem
from streams.formats.binlog.inverse import SYSTEM_SCHEMAS
from streams.formats.binlog.table_map import TableMap
from streams.formats.errors import FormatError

ENGINES: Final = frozenset({"InnoDB"})
SCRATCH: Final = "or bring the table alone back: `holdfast rollback table SOURCE SCHEMA.TABLE --to STEP`"
_MOST: Final = 50


@dataclass(slots=True)
class _Finding:
    problem: Callable[[int, int], Problem]
    first: int
    last: int
    steps: int = 1


class Findings:
    """Findings of the steps read so far. Set `ordinal` to the step that is read; `counts(code, table, text)` says whether
    one stands in the way at all: of a table, or (None) of the step, `text` being its statement."""

    def __init__(self, counts: Callable[[str, TableName | None, str], bool] = lambda *_: True) -> None:
        self.ordinal = 0
        self._counts = counts
        self._found: dict[tuple[str, str], _Finding] = {}

    def problems(self) -> tuple[Problem, ...]:
        """What stands in the way, by the step that shows it first."""
        found = sorted(self._found.values(), key=lambda f: f.first)
        out = []
        for f in found[:_MOST]:
            problem = f.problem(f.first, f.last)
            if f.steps > 1:
                message = f"{problem.message} (and in {f.steps - 1} more, up to step {f.last})"
                problem = Problem(problem.code, message, problem.hint)
            out.append(problem)
        return tuple(out)

    def _note(
        self,
        code: str,
        about: str,
        problem: Callable[[int, int], Problem],
        name: TableName | None = None,
        text: str = "",
    ) -> None:
        """`problem` is given the first and the last step that show it; `name` is the table it is of."""
        if not self._counts(code, name, text):
            return
        known = self._found.get((code, about))
        if known is None:
            self._found[code, about] = _Finding(problem, self.ordinal, self.ordinal)
        elif known.last != self.ordinal:
            known.steps += 1
            known.last = self.ordinal

    # -- of steps -------------------------------------------------------------------------------------------------

    def rollback_step(self) -> None:
        self._note("rollback-step", "", lambda n, _: Problem(
            "rollback-step", f"step {n} is itself a rollback's and cannot be undone by its rows",
            "plan a way to a state on the timeline instead"))  # fmt: skip

    def incident(self) -> None:
        self._note("incident", "", lambda n, _: Problem(
            "incident", f"at step {n} the source itself lost events: what happened there is not in the log",
            "roll back no further than to this step"))  # fmt: skip

    def unsupported(self, event: str) -> None:
        self._note("unsupported-event", event, lambda n, _: Problem(
            "unsupported-event", f"step {n} holds a {event} event, which this version cannot undo",
            "roll back no further than to this step"))  # fmt: skip

    def rolled_back(self) -> None:
        self._note("not-transactional", "", lambda n, _: Problem(
            "not-transactional", f"step {n} was rolled back but left changes in tables that cannot roll back",
            "roll back no further than to this step"))  # fmt: skip

    def barrier(self, ordinal: int, text: str) -> None:
        """Step `ordinal` redefines what rows of the present step stand in."""
        words = text.split()
        verb = words[0].upper() if words else ""
        code = {"TRUNCATE": "truncate", "DROP": "drop"}.get(verb, "ddl")
        reading, self.ordinal = self.ordinal, ordinal
        self._note(code, text, lambda n, last: Problem(
            code, f"step {n} is a definition change: {text}",
            f"roll back to just after it (step {last}), {SCRATCH.replace('STEP', str(n - 1))}"), text=text)  # fmt: skip
        self.ordinal = reading

    def statement(self, text: str) -> None:
        self._note("statement-event", "", lambda n, _: Problem(
            "statement-event", f"step {n} was logged as a statement, not as rows" + (f": {text}" if text else ""),
            f"roll back to just after it (step {n}); set binlog_format=ROW on the source"), text=text)  # fmt: skip

    def account(self) -> None:
        self._note("account-statement", "", lambda n, _: Problem(
            "account-statement", f"step {n} is sealed, since it says something of accounts, and its key is not here",
            f"roll back to just after it (step {n}), or give the agent the site key it was sealed with"))  # fmt: skip

    def xa(self) -> None:
        self._note("xa", "", lambda n, _: Problem(
            "xa", f"step {n} belongs to an XA transaction, which this version does not undo",
            f"roll back to just after it (step {n})"))  # fmt: skip

    def too_large(self) -> None:
        self._note("plan-too-large", "", lambda n, _: Problem(
            "plan-too-large", f"the rows to be changed need more memory than a plan may take (reached at step {n})",
            "roll back in several plans, newest steps first"))  # fmt: skip

    # -- of tables ------------------------------------------------------------------------------------------------

    def layout_changed(self, name: TableName, text: str) -> None:
        self._note("layout-changed", text, lambda n, _: Problem(
            "layout-changed", f"from step {n} on, {text} is laid out differently, without DDL in the log",
            "roll back no further than to this step"), name)  # fmt: skip

    def fits(self, name: TableName, text: str, definition: Definition | None, table_map: TableMap) -> bool:
        """Whether rows of this table can be undone at all; if not, why is a finding."""
        problem = _unfit(name, text, definition, table_map)
        if problem is None:
            return True
        self._note(problem.code, text, lambda n, _: Problem(
            problem.code, problem.message.replace("{step}", f"step {n}"), problem.hint), name)  # fmt: skip
        return False

    def partial(self, name: TableName) -> None:
        text = ".".join(name)
        self._note("partial-image", text, lambda n, _: Problem(
            "partial-image", f"step {n} logged rows of {text} without all of their columns",
            f"roll back to just after it (step {n}); set binlog_row_image=FULL on the source"), name)  # fmt: skip

    def partial_json(self, name: TableName) -> None:
        text = ".".join(name)
        self._note("partial-image", text, lambda n, _: Problem(
            "partial-image", f"step {n} logged of JSON documents in {text} only what changed in them",
            f"roll back to just after it (step {n}); set binlog_row_value_options='' on the source"), name)  # fmt: skip

    def cascade(self, name: TableName, verb: str, children: str) -> None:
        """`verb`: deletes or changes."""
        text = ".".join(name)
        self._note("cascade", f"{text} {verb}", lambda n, _: Problem(
            "cascade", f"step {n} {verb} rows of {text}, and a foreign key carries that on to {children}: "
            "the log does not hold what it did there",
            f"roll back to just after it (step {n}), {SCRATCH}"), name)  # fmt: skip

    def broken(self, name: TableName, error: FormatError) -> None:
        self._note("chain-broken", ".".join(name), lambda n, _: Problem(
            "chain-broken", f"at step {n}: {error.message}", error.hint), name)  # fmt: skip


def _unfit(name: TableName, text: str, definition: Definition | None, table_map: TableMap) -> Problem | None:
    """Why rows of this table cannot be undone. `{step}` in the message stands for the step."""
    if name[0] in SYSTEM_SCHEMAS:
        return Problem(
            "system-schema", f"{{step}} changes {text}, a table of the server itself", "roll back to just after it"
        )
    if definition is None:
        return Problem(
            "schema-unknown", f"{{step}} changes {text}, whose definition is not recorded",
            "the schema topic may be behind: plan again in a moment",
        )  # fmt: skip
    if definition.engine not in ENGINES:
        return Problem(
            "not-transactional", f"{{step}} changes {text}, whose engine {definition.engine} cannot roll back safely",
            "roll back to just after it; ALTER TABLE … ENGINE=InnoDB makes later steps undoable",
        )  # fmt: skip
    if definition.system_versioned:
        return Problem(
            "system-versioned", f"{{step}} changes {text}, which keeps its own history (system versioning)",
            "read the earlier rows with FOR SYSTEM_TIME AS OF",
        )  # fmt: skip
    # A unique key over a long column is kept by a hidden last column, which the log shows and the schema does not. (One
    # of the user's may have such a name too.)
    recorded = tuple(c.name for c in definition.columns)
    hidden = [c.index for c in table_map.columns[len(recorded) :] if (c.name or "").startswith("DB_ROW_HASH_")]
    names = tuple(c.name for c in table_map.columns if c.index not in hidden)
    if len(names) != len(recorded) or (table_map.named and names != recorded):
        return Problem(
            "schema-differs", f"{{step}} wrote {text} with other columns than are recorded for it",
            "the definition was changed without the log (sql_log_bin=0), or the schema topic is behind: plan again",
        )  # fmt: skip
    return None
