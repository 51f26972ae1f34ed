"""Net changes against a model: a table as a dictionary, changed at random, must be led back and forward again by them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.formats.binlog import events as ev
from streams.formats.binlog.net import NetTable, column_slicer, core_content
from streams.formats.binlog.rows import layout_of, parse_rows
from streams.formats.binlog.table_map import LONG, VARCHAR, TableMap, table_map_of
from streams.formats.errors import FormatError

# id int not null, name varchar(40) null, code varchar(300) not null, up int null
_TYPES = bytes([LONG, VARCHAR, VARCHAR, LONG])
_META = (40).to_bytes(2, "little") + (300).to_bytes(2, "little")


def table_map(nulls: int = 0b1010) -> TableMap:
    names = b"\x01s\0\x01t\0"
    return table_map_of(names + bytes([len(_TYPES)]) + _TYPES + bytes([len(_META)]) + _META + bytes([nulls]))


@dataclass(frozen=True)
class Row:
    id: int
    name: str | None
    code: str
    up: int | None

    @property
    def image(self) -> bytes:
        nulls = 0xF0 | (self.name is None) << 1 | (self.up is None) << 3
        out = bytes([nulls]) + self.id.to_bytes(4, "little")
        if self.name is not None:
            out += bytes([len(self.name.encode())]) + self.name.encode()
        out += len(self.code.encode()).to_bytes(2, "little") + self.code.encode()
        return out + (b"" if self.up is None else self.up.to_bytes(4, "little"))


ROWS = st.builds(
    Row,
    st.integers(0, 6),
    st.none() | st.text("aé", max_size=3),
    st.text("xyz", max_size=2),
    st.none() | st.integers(0, 9),
)
ACTIONS = st.lists(st.tuples(st.sampled_from("iud"), st.integers(0, 6), ROWS), max_size=60)


def net(key: tuple[int, ...], split: tuple[int, ...] = (2,), referenced: tuple[int, ...] = ()) -> NetTable:
    mapped = table_map()
    return NetTable(mapped, layout_of(mapped, b"\x0f"), key, split, referenced)


def add(table: NetTable, before: Row | None, after: Row | None) -> None:
    table.add(None if before is None else before.image, None if after is None else after.image)


def happen(state: dict[int, Row], actions: list[tuple[str, int, Row]]) -> list[tuple[Row | None, Row | None]]:
    """Apply what is possible to a table keyed by id and unique by code; the changes that were made."""
    made: list[tuple[Row | None, Row | None]] = []
    for action, which, row in actions:
        old = state.get(which)
        if action == "i" and row.id not in state and row.code not in {r.code for r in state.values()}:
            state[row.id] = row
            made.append((None, row))
        elif action == "d" and old is not None:
            del state[which]
            made.append((old, None))
        elif action == "u" and old is not None and old != row:
            others = {k: r for k, r in state.items() if k != which}
            if row.id not in others and row.code not in {r.code for r in others.values()}:
                del state[which]
                state[row.id] = row
                made.append((old, row))
    return made


def carry_out(table: NetTable, state: dict[int, Row]) -> dict[int, Row]:
    """The result on a model of the server: rows found by key, unique keys checked at every single row."""
    by_image = {r.image: r for r in ALL}
    changes = table.result()
    now = dict(state)
    assert set(changes.expected) <= {r.image for r in state.values()}
    for image in changes.deletes:
        del now[by_image[image].id]
    for before, after in changes.updates:
        assert by_image[before].id == by_image[after].id
        assert by_image[before].code == by_image[after].code
        now[by_image[after].id] = by_image[after]
    for image in changes.inserts:
        row = by_image[image]
        assert row.id not in now
        assert row.code not in {r.code for r in now.values()}
        now[row.id] = row
    return now


ALL: list[Row] = []


@settings(deadline=None, max_examples=300)
@given(ACTIONS, ACTIONS, ACTIONS)
def test_net_changes_lead_back_and_over_to_another_branch(
    first: list[tuple[str, int, Row]], left: list[tuple[str, int, Row]], right: list[tuple[str, int, Row]]
) -> None:
    ALL[:] = [row for actions in (first, left, right) for _, _, row in actions]
    base: dict[int, Row] = {}
    happen(base, first)
    one, two = dict(base), dict(base)
    undo, redo = happen(one, left), happen(two, right)
    table = net((0,))
    for before, after in undo:
        add(table, before, after)
    forward = carry_out(table, base)
    assert forward == one
    table.invert()
    assert carry_out(table, one) == base
    for before, after in redo:
        add(table, before, after)
    assert carry_out(table, one) == two
    touched = {r.id for pair in (*undo, *redo) for r in pair if r is not None}
    assert all(table.touches(row.image) is (row.id in touched) for row in ALL)


@settings(deadline=None, max_examples=200)
@given(ACTIONS)
def test_without_a_key_copies_are_counted(actions: list[tuple[str, int, Row]]) -> None:
    state: dict[int, Row] = {}
    table = net(())
    for before, after in happen(state, actions):
        add(table, before, after)
    changes = table.result()
    assert Counter(changes.inserts) == Counter(r.image for r in state.values())
    assert [len(images) for images in (changes.deletes, changes.updates, changes.expected)] == [0, 0, 0]
    table.invert()
    assert Counter(table.result().deletes) == Counter(r.image for r in state.values())


@pytest.mark.parametrize(
    "changes",
    [
        [(None, Row(1, "a", "x", 0)), (Row(1, "b", "x", 0), None)],
        [(None, Row(1, "a", "x", 0)), (None, Row(1, "a", "y", 0))],
        [(Row(1, "a", "x", 0), None), (Row(1, "a", "x", 0), None)],
        [(Row(1, "a", "x", 0), Row(2, "a", "x", 0)), (Row(1, "a", "x", 0), None)],
        [(None, Row(2, "a", "x", 0)), (Row(1, "a", "y", 0), Row(2, "a", "y", 0))],
    ],
)
def test_changes_that_do_not_follow_from_one_another_are_noticed(changes: list[tuple[Row | None, Row | None]]) -> None:
    table = net((0,))
    (before, after), (wrong, wrong_after) = changes
    add(table, before, after)
    with pytest.raises(FormatError) as caught:
        add(table, wrong, wrong_after)
    assert caught.value.code == "chain-broken"


def test_rows_whose_referenced_value_goes_away_are_told() -> None:
    table = net((0,), split=(), referenced=(2,))
    for before, after in (
        (Row(1, None, "gone", 0), None),
        (Row(2, None, "moves", 0), None),
        (None, Row(3, None, "moves", 0)),
        (Row(4, None, "kept", 0), Row(4, "n", "kept", 1)),
        (Row(5, None, "changes", 0), Row(5, None, "changed", 0)),
    ):
        add(table, before, after)
    assert [Row(1, None, "gone", 0).image, Row(5, None, "changes", 0).image] == list(table.result().removed)


@given(ROWS, st.lists(st.sampled_from(range(4)), min_size=1, max_size=4, unique=True))
def test_a_slice_of_columns_is_the_same_for_equal_values_only(row: Row, columns: list[int]) -> None:
    mapped = table_map()
    cut = column_slicer(layout_of(mapped, b"\x0f"), columns)
    fields = ("id", "name", "code", "up")
    for other in (
        Row(row.id + 1, row.name, row.code, row.up),
        Row(row.id, None if row.name is not None else "", row.code, row.up),
        Row(row.id, row.name, row.code + "a", row.up),
        Row(row.id, row.name, row.code, None if row.up is not None else 0),
    ):
        equal = all(getattr(row, fields[c]) == getattr(other, fields[c]) for c in columns)
        assert (cut(row.image) == cut(other.image)) is equal


@given(st.lists(ROWS, min_size=1, max_size=30), st.integers(20, 200))
def test_statements_hold_whole_rows_in_order_and_keep_to_their_size(rows: list[Row], most: int) -> None:
    table = net(())
    for row in rows:
        table.add(None, row.image)
    wanted = list(table.result().inserts)
    found: list[bytes] = []
    for count, statement in table.result().statements(most):
        mapped, written = ev.iter_events(statement, checksum=False)
        assert table_map_of(bytes(mapped.body[8:])).key == ("s", "t")
        parsed = parse_rows(written.type, written.body)
        images = wanted[len(found) : len(found) + count]
        assert parsed.data == b"".join(images)
        assert len(parsed.data) <= most or count == 1
        found += images
    assert found == wanted


def test_a_table_map_for_another_table_keeps_the_layout() -> None:
    other = table_map_of(core_content(table_map(), "holdfast", "guard_1"))
    assert other.key == ("holdfast", "guard_1")
    assert other.columns == table_map().columns
