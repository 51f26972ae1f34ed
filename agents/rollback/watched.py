"""The rows of one table as a selective undo looks at them: their keys, what they hold of foreign and unique keys, and which of
them hang together. Knows no steps, and does not decide: that is `agents.rollback.choose`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from agents.rollback.schema import Definition, TableName, fitted
from streams.formats.binlog.keys import KeyReader, has_null, key_reader
from streams.formats.binlog.net import NetTable
from streams.formats.binlog.rows import RowLayout, layout_of
from streams.formats.binlog.table_map import TableMap

Node = tuple[TableName, bytes]
Relation = tuple[str, str, str]


@dataclass(slots=True)
class Link:
    """One side of a foreign key, or a unique key: reads its value out of an image. `other` is the table on the other side."""

    relation: Relation
    read: KeyReader
    null: Callable[[bytes], bool]
    other: TableName
    columns: tuple[str, ...] = ()


class Watched:
    """The rows of one table on their way into its net changes (`agents.rollback.fold.Sink`)."""

    def __init__(
        self,
        row: Callable[[Watched, bytes | None, bytes | None], None],
        net: NetTable,
        definition: Definition,
        others: Callable[[TableName], Definition | None],
    ) -> None:
        """`row` is told of each; `others`: definitions of the tables on the other sides of foreign keys."""
        self._row, self.net, self.definition = row, net, definition
        self.name = definition.name
        described = fitted(net.table_map, definition) or net.table_map
        count = len(described.columns)
        self.layout: RowLayout = layout_of(described, ((1 << count) - 1).to_bytes((count + 7) >> 3, "little"))
        self.columns = definition.key[1] if definition.key else ()
        key = definition.indexes(self.columns)
        self.form: KeyReader = key_reader(self.layout, key) if key else bytes
        self.key_places = key
        self.first = 0  # the step that tainted the table first
        self.looked_up = 0
        self.looked_through = False
        self.parents = [
            Link((child.schema, child.table, fk.name), *self._reader(fk.references), child.name, fk.references)
            for child, fk in _children_of(definition, others)
        ]
        self.children = [
            Link((*self.name, fk.name), *self._reader(fk.columns), (fk.schema, fk.table), fk.references)
            for fk in definition.foreign_keys
        ]
        uniques = dict(definition.unique_keys)
        by_name = {c.name: c for c in definition.columns}
        if any(by_name[c].charset not in (None, "binary") for c in self.columns):
            # Texts that a collation holds equal are one key to the server, and several to whoever compares bytes.
            uniques["PRIMARY"] = self.columns
        self.uniques = [
            Link((*self.name, name), *self._reader(names), self.name, names)
            for name, names in uniques.items()
            if not any(by_name[c].generated == "virtual" for c in names)
        ]

    def _reader(self, names: tuple[str, ...]) -> tuple[KeyReader, Callable[[bytes], bool]]:
        places = self.definition.indexes(names)
        return key_reader(self.layout, places), has_null(self.layout, places)

    @property
    def size(self) -> int:
        return self.net.size

    @size.setter
    def size(self, value: int) -> None:
        self.net.size = value

    @property
    def unchecked(self) -> bool:
        return self.net.unchecked

    @unchecked.setter
    def unchecked(self, value: bool) -> None:
        self.net.unchecked = value

    @property
    def table_map(self) -> TableMap:
        return self.net.table_map

    @property
    def referenced(self) -> tuple[int, ...]:
        return self.net.referenced

    def add(self, before: bytes | None, after: bytes | None) -> None:
        self._row(self, before, after)


@dataclass(slots=True)
class Groups:
    """Rows that hang together (a row that changed its key, a child selected with its parent): all are left, or none."""

    parent: dict[Node, Node] = field(default_factory=dict)
    left: set[Node] = field(default_factory=set)

    def find(self, node: Node) -> Node:
        parent = self.parent
        root = parent.setdefault(node, node)
        while parent[root] != root:
            root = parent[root]
        while parent[node] != root:
            parent[node], node = root, parent[node]
        return root

    def join(self, a: Node, b: Node) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[b] = a
            if b in self.left:
                self.left.add(a)

    def leave(self, node: Node) -> None:
        self.left.add(self.find(node))

    def is_left(self, node: Node) -> bool:
        return self.find(node) in self.left


def held(
    noted: dict[tuple[Relation, bytes], Node], links: list[Link], without: bytes | None, image: bytes
) -> list[Node]:
    """Nodes noted under a value that `image` has and `without` has not."""
    out = []
    for link in links:
        if link.null(image):
            continue
        value = link.read(image)
        node = noted.get((link.relation, value))
        if node is not None and (without is None or link.null(without) or link.read(without) != value):
            out.append(node)
    return out


def new_links(links: list[Link], without: bytes | None, image: bytes) -> Iterator[Link]:
    """Links under which `image` has a value that `without` has not."""
    for link in links:
        if not link.null(image) and (without is None or link.null(without) or link.read(without) != link.read(image)):
            yield link


def _children_of(
    definition: Definition, others: Callable[[TableName], Definition | None]
) -> Iterator[tuple[Definition, _ForeignKey]]:
    """Foreign keys that point at a table."""
    for reference in definition.referenced_by:
        child = others((reference.schema, reference.table))
        for fk in child.foreign_keys if child is not None else ():
            if child is not None and fk.name == reference.constraint:
                yield child, fk


class _ForeignKey(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def references(self) -> tuple[str, ...]: ...
