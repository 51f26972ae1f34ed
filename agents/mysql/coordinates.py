"""How the steps of a log are told apart and put in order: three kinds of coordinates, one interface.

    Domains   MariaDB: one GTID a domain, the newest
    Sources   MySQL with GTIDs: a set of numbers a source
    Files     MySQL without: a file and an offset

The cutter gives each step a *mark* when it begins; `advance` takes the marks of consecutive steps and says where the source
stood before the last of them and after it. Positions go through everything else as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import itemgetter, lt
from typing import Any, Protocol

from agents.errors import CaptureStopped
from agents.mysql import file_positions, gtid_sets
from agents.mysql import positions as domains
from agents.mysql.file_positions import FilePosition, file_number

_sequence, _domain = itemgetter(1), itemgetter(2)

Mark = Any  # opaque to the cutter


class Coordinates(Protocol):
    """Where a reader of a log is. Mutable: one object serves one reader."""

    def text(self, *marks: Mark) -> str:
        """The position, as it would be after steps of these marks."""
        ...

    def advance(self, marks: Sequence[Mark], where: str) -> tuple[str, str]:
        """Move on past steps with these marks (at least one): the position before the last of them, and after it.

        `where`: the file, for messages. Raises `CaptureStopped` (`capture-out-of-order`).
        """
        ...

    def check(self, mark: Mark, where: str) -> None:
        """Whether a step with this mark may come next; raises as `advance`."""
        ...


class Domains:
    """MariaDB's. A mark is a GTID as `agents.mysql.positions` has it."""

    def __init__(self, position: str) -> None:
        self.position = domains.parse(position)

    def text(self, *marks: domains.Gtid) -> str:
        return domains.show({**self.position, **{g[2]: g for g in marks}})

    def advance(self, marks: Sequence[domains.Gtid], where: str) -> tuple[str, str]:
        position = self.position
        one_domain = self._in_order(marks, where) == 1
        last = marks[-1]
        position.update({g[2]: g for g in (marks[-2:-1] if one_domain else marks[:-1])})
        before = domains.show(position)
        position[last[2]] = last
        return before, domains.show(position)

    def check(self, mark: domains.Gtid, where: str) -> None:
        self._in_order([mark], where)

    def _in_order(self, gtids: Sequence[domains.Gtid], where: str) -> int:
        """Sequence numbers of a domain must rise, or a position would not say what is behind it; how many domains."""
        found = set(map(_domain, gtids))
        for domain in found:
            numbers = list(map(_sequence, gtids if len(found) == 1 else [g for g in gtids if g[2] == domain]))
            if domain in self.position:
                numbers.insert(0, self.position[domain][1])
            if not all(map(lt, numbers, numbers[1:])):
                raise CaptureStopped(
                    "capture-out-of-order",
                    f"sequence numbers of GTID domain {domain} go back, in {where} after {self.text()}",
                    "SET GLOBAL gtid_strict_mode = ON (and gtid_strict_mode=ON in my.cnf), then take a new baseline",
                )
        return len(found)


class Sources:
    """MySQL's GTIDs. A mark is one, as `agents.mysql.gtid_sets` has it."""

    def __init__(self, position: str) -> None:
        self.position = gtid_sets.parse(position)

    def text(self, *marks: gtid_sets.Gtid) -> str:
        position = {source: list(intervals) for source, intervals in self.position.items()}
        for mark in marks:
            gtid_sets.add(position, mark)
        return gtid_sets.show(position)

    def advance(self, marks: Sequence[gtid_sets.Gtid], where: str) -> tuple[str, str]:
        for mark in marks[:-1]:
            self._add(mark, where)
        before = gtid_sets.show(self.position)
        self._add(marks[-1], where)
        return before, gtid_sets.show(self.position)

    def check(self, mark: gtid_sets.Gtid, where: str) -> None:
        if gtid_sets.contains(self.position, {mark[0]: [(mark[1], mark[1])]}):
            raise self._again(mark, where)

    def _add(self, mark: gtid_sets.Gtid, where: str) -> None:
        if not gtid_sets.add(self.position, mark):
            raise self._again(mark, where)

    def _again(self, mark: gtid_sets.Gtid, where: str) -> CaptureStopped:
        return CaptureStopped(
            "capture-out-of-order",
            f"the source sent {gtid_sets.show({mark[0]: [(mark[1], mark[1])]})} a second time, in {where}",
            "its log was tampered with or reset: take a new baseline",
        )


class Files:
    """A file and an offset. A mark is the position after its step: (created, file, offset).

    Where a file begins is a position as well: nothing but the ends and heads of files is between there and the last step. A
    reader that has come to it does not need the files before any more, which may be purged.
    """

    def __init__(self, position: str) -> None:
        self.position = file_positions.parse(position)
        self._begun = self.position  # where the file being read begins

    def text(self, *marks: FilePosition) -> str:
        return str(marks[-1] if marks else max(self.position, self._begun, key=lambda at: at.order))

    def advance(self, marks: Sequence[FilePosition], where: str) -> tuple[str, str]:
        before, last = marks[-2] if len(marks) > 1 else self.position, marks[-1]
        if before.file != last.file:
            before = dataclasses.replace(last, offset=4)
        self.position = last
        return str(before), str(last)

    def check(self, mark: FilePosition, where: str) -> None:
        """Offsets are the server's: nothing to check."""

    def began(self, file: str, created: int) -> None:
        """The file being read says when it was begun. Raises `CaptureStopped` when it is not the one that was read before."""
        if file == self.position.file and not self.position.created:
            self.position = dataclasses.replace(self.position, created=created)
        if file == self.position.file and created != self.position.created:
            raise CaptureStopped(
                "capture-position-lost",
                f"{file} is not the file it was: it was begun at {created}, the one captured from at {self.position.created}",
                "the source's log was reset, or another server answers here: take a new baseline (a new lineage starts)",
            )
        if file_number(file) > file_number(self.position.file):
            self._begun = self.at(file, created, 4)

    def at(self, file: str, created: int, offset: int) -> FilePosition:
        return dataclasses.replace(self.position, file=file, created=created, offset=offset)


def covers(position: str, other: str) -> bool:
    """Whether a server at `position` has all of `other` behind it, whatever kind of position they are."""
    if not other:
        return True
    if file_positions.is_file_position(other):
        return file_positions.is_file_position(position) and file_positions.reaches(
            file_positions.parse(position), file_positions.parse(other)
        )
    if file_positions.is_file_position(position):
        return False
    if ":" in position or ":" in other:
        return gtid_sets.contains(gtid_sets.parse(position), gtid_sets.parse(other))
    return domains.reaches(domains.parse(position), domains.parse(other))


def of_mysql(position: str) -> Sources | Files:
    """Where a reader of a MySQL log begins. Raises `AgentError` (`position-invalid`)."""
    return Files(position) if file_positions.is_file_position(position) else Sources(position)
