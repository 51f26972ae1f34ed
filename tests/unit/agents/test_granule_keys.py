"""The keys of a granule: those of every row its steps changed, whatever pieces they came in, and bounded."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

import pytest

from agents.capture import keys as module
from agents.capture.granules import Indexer
from agents.capture.keys import KeyCollector, Recorded
from agents.mysql.definitions import schema_version
from streams.capture_log import StepFragment
from streams.events import GranuleKeys, SchemaRecorded, TableDefinition
from streams.formats.binlog.keys import declared, declared_key, key_of_texts
from streams.formats.binlog.step import decode_step
from streams.formats.binlog.table_map import TableMap
from streams.formats.binlog.values import display
from streams.formats.errors import FormatError
from streams.key_runs import Run, hasher
from tests.unit.agents.test_granules import FILES, fragments, steps_of

LINEAGE, SECRET = "lineage", bytes(range(32))
Log = tuple[bytes, list[bytes], dict[tuple[str, str], TableDefinition]]


def define(table: TableMap) -> TableDefinition:
    """The definition that a table of this map has, as far as the key index looks at it."""
    columns = [
        {"name": c.label, "type": c.type_name, "nullable": c.nullable, "generated": None, "charset": c.charset}
        for c in table.columns
    ]
    key = [table.columns[i].label for i in table.primary_key or ()]
    document = {
        "engine": "InnoDB", "columns": columns, "primary_key": key, "unique_keys": {}, "foreign_keys": {},
        "referenced_by": [], "triggers": {}, "system_versioned": False,
    }  # fmt: skip
    text = json.dumps(document, sort_keys=True)
    return TableDefinition(table.schema, table.table, "", text, text.encode()[:32].ljust(32))


@pytest.fixture(scope="module")
def log() -> Log:
    """The golden log with most tables, several times over; definitions of its tables but one."""
    preamble, steps = max((steps_of(path) for path in FILES), key=lambda found: len(found[1]))
    found: dict[tuple[str, str], TableDefinition] = {}

    def describe(table: TableMap) -> TableMap:
        found.setdefault(table.key, define(table))
        return table

    for step in steps:
        decode_step(preamble, step, describe=describe)
    assert len(found) > 2
    return preamble, steps * 3, found


def recorded(definitions: dict[tuple[str, str], TableDefinition], ordinal: int = 0) -> SchemaRecorded:
    tables = tuple(definitions.values())
    return SchemaRecorded(
        lineage=LINEAGE, source="shop", ordinal=ordinal, position="", full=True, origin="baseline", statement="",
        tables=tables, version=schema_version(tables), at_us=0,
    )  # fmt: skip


def collect(parts: Iterator[StepFragment], *versions: SchemaRecorded) -> GranuleKeys:
    """One granule of all that comes."""
    indexer = Indexer("shop", LINEAGE, 1, "topic")
    collector = KeyCollector("shop", LINEAGE, 1, "id", SECRET, Recorded(LINEAGE, versions))
    for part in parts:
        assert indexer.add(part) is None
        collector.add(part)
    granule = indexer.rest()
    assert granule is not None
    return collector.close(granule)


def test_every_row_is_found_by_its_keys_before_and_after(log: Log) -> None:
    preamble, steps, definitions = log
    keys = collect(fragments(preamble, steps), recorded(definitions))
    run = Run(keys.first_ordinal, keys.last_ordinal, 1, keys.entries)
    dense = {(t.schema, t.table) for t in keys.tables if t.dense}
    shapes = {(t.schema, t.table): t.columns for t in keys.tables}
    looked = 0
    for ordinal, step in enumerate(steps, 1):
        for change in decode_step(preamble, step):
            name = (change.schema, change.table)
            raw = json.loads(definitions[name].definition)
            key = declared_key(raw)
            if name in dense or change.schema == "holdfast":
                continue
            assert shapes[name] == (key[1] if key else ())
            if key is None:
                continue
            columns = declared(raw)
            places = [next(i for i, c in enumerate(columns) if c.name == part) for part in key[1]]
            hashed = hasher(SECRET, *name, key[1])
            for image in (change.before, change.after):
                if image is not None:
                    texts = [display(image[i], change.columns[i]) for i in places]
                    form = key_of_texts([columns[i] for i in places], texts)
                    assert ordinal in list(run.steps(hashed(form))), (name, texts)
                    looked += 1
    assert looked > 5


@pytest.mark.parametrize("seed", range(3))
def test_pieces_and_restarts_change_nothing(log: Log, seed: int) -> None:
    preamble, steps, definitions = log
    version = recorded(definitions)
    once = collect(fragments(preamble, steps), version)
    assert collect(fragments(preamble, steps, random.Random(seed)), version) == once


def test_a_table_whose_definition_comes_later_is_dense_until_then(log: Log) -> None:
    preamble, steps, definitions = log
    middle = len(steps) * 2 // 3
    late = collect(fragments(preamble, steps), recorded(definitions, middle))
    early = collect(fragments(preamble, steps), recorded(definitions))
    assert any(t.dense and not t.columns for t in late.tables)
    kept = {late.entries[i : i + 12] for i in range(0, len(late.entries), 12)}
    every = {early.entries[i : i + 12] for i in range(0, len(early.entries), 12)}
    # What was recorded with a step holds from the next on. (Tables without a key stay dense: they have no other shape.)
    assert kept
    assert kept <= {e for e in every if int.from_bytes(e[8:], "big") + 1 > middle}


def test_too_many_keys_make_a_table_dense_and_leave_others(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    preamble, steps, definitions = log
    whole = collect(fragments(preamble, steps), recorded(definitions))
    monkeypatch.setattr(module, "MOST", 20)
    few = collect(fragments(preamble, steps), recorded(definitions))
    assert len(few.entries) < len(whole.entries)
    assert any(t.dense for t in few.tables)
    assert {(t.schema, t.table) for t in few.tables} == {(t.schema, t.table) for t in whole.tables}


def test_what_does_not_fit_into_an_event_is_dense_the_largest_table_first(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    preamble, steps, definitions = log
    whole = collect(fragments(preamble, steps), recorded(definitions))
    assert not whole.tables[0].dense or len(whole.tables) > 1
    monkeypatch.setattr(module, "MOST_BYTES", 40 * len(whole.tables) + len(whole.entries))
    less = collect(fragments(preamble, steps), recorded(definitions))
    assert 0 < len(less.entries) < len(whole.entries)
    dense = {(t.schema, t.table) for t in less.tables if t.dense} - {
        (t.schema, t.table) for t in whole.tables if t.dense
    }
    assert dense
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    none = collect(fragments(preamble, steps), recorded(definitions))
    assert none.entries == b""
    assert all(t.dense for t in none.tables)


def test_sealed_steps_leave_no_key(log: Log) -> None:
    preamble, _, definitions = log
    sealed = (StepFragment(i, 0, True, preamble, None, True, 0, "", i) for i in range(1, 4))
    keys = collect(sealed, recorded(definitions))
    assert (keys.tables, keys.entries, keys.first_ordinal, keys.last_ordinal) == ((), b"", 1, 3)


def test_damage_is_an_error_of_ours(log: Log) -> None:
    preamble, steps, definitions = log
    rng = random.Random(7)
    for step in steps[: len(steps) // 3]:
        data = bytearray(step)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        collector = KeyCollector("shop", LINEAGE, 1, "id", SECRET, Recorded(LINEAGE, [recorded(definitions)]))
        with contextlib.suppress(FormatError):
            collector.add(StepFragment(1, 0, True, preamble, bytes(data), False, 0, "", 1))
