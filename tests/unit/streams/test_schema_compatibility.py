"""What lies in somebody's log stays readable: golden records of every version, and what a new version may change."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from streams import golden
from streams.avro_schemas import derive, file_name, incompatibilities, load
from streams.codec import decode, encode
from streams.events import REGISTRY, Event

EVENTS = pytest.mark.parametrize("event", REGISTRY.values(), ids=lambda e: f"{e.TYPE}.v{e.VERSION}")
GOLDEN = sorted(golden.folder().glob("*.bin"))


def without_docs(schema: Any) -> Any:
    """A docstring may be improved; what bytes mean may not."""
    if isinstance(schema, dict):
        return {k: without_docs(v) for k, v in schema.items() if k != "doc"}
    return [without_docs(v) for v in schema] if isinstance(schema, list | tuple) else schema


@EVENTS
def test_the_schema_file_is_what_the_dataclass_says(event: type[Event]) -> None:
    assert without_docs(derive(event)) == without_docs(load(event))


@EVENTS
def test_every_version_has_a_schema_and_a_golden_record(event: type[Event]) -> None:
    for version in range(1, event.VERSION + 1):
        assert load(event, version)["name"] == event.__name__
        stem = file_name(event, version).removesuffix(".avsc")
        assert (golden.folder() / f"{stem}.bin").is_file(), "python -P -m streams.golden"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: str(p.stem))
def test_a_golden_record_decodes_to_what_stands_beside_it(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text("utf-8"))

    event, stamp = decode(path.read_bytes())

    assert expected["type"] == event.TYPE
    decoded = golden.plain(event)
    assert {name: decoded[name] for name in expected["event"]} == expected["event"]
    assert golden.plain(stamp) == expected["stamp"]


@EVENTS
def test_the_writer_of_today_still_writes_the_golden_record(event: type[Event]) -> None:
    path = golden.folder() / file_name(event).replace(".avsc", ".bin")
    assert encode(golden.sample(event), golden.STAMP) == path.read_bytes()


@EVENTS
def test_every_version_can_be_read_as_the_newest(event: type[Event]) -> None:
    for version in range(1, event.VERSION + 1):
        assert incompatibilities(load(event, version), load(event)) == []


RECORD: dict[str, Any] = {
    "type": "record",
    "name": "Thing",
    "namespace": "io.holdfast",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "size", "type": "long"},
        {"name": "maybe", "type": ["null", "long"], "default": None},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "figures", "type": {"type": "map", "values": "double"}},
        {
            "name": "first",
            "type": {"type": "record", "name": "Part", "fields": [{"name": "number", "type": "long"}]},
        },
        {"name": "others", "type": {"type": "array", "items": "io.holdfast.Part"}},
    ],
}
VALUE = {
    "id": "a",
    "size": 3,
    "maybe": 4,
    "tags": ["x"],
    "figures": {"y": 0.5},
    "first": {"number": 1},
    "others": [{"number": 2}],
}


def changed(field: str, **to: Any) -> dict[str, Any]:
    schema = copy.deepcopy(RECORD)
    for f in schema["fields"]:
        if f["name"] == field:
            f.update(to)
    return schema


def with_field(**field: Any) -> dict[str, Any]:
    schema = copy.deepcopy(RECORD)
    schema["fields"].insert(2, field)
    return schema


def without(name: str) -> dict[str, Any]:
    schema = copy.deepcopy(RECORD)
    schema["fields"] = [f for f in schema["fields"] if f["name"] != name]
    return schema


def part_with(*fields: dict[str, Any]) -> dict[str, Any]:
    schema = copy.deepcopy(RECORD)
    schema["fields"][5]["type"]["fields"] = [*fields]
    return schema


NUMBER = {"name": "number", "type": "long"}
COMPATIBLE = {
    "the same": RECORD,
    "a new field with a default": with_field(name="colour", type="string", default="red"),
    "a field less": without("tags"),
    "a field that may be missing from now on": changed("size", type=["null", "long"]),
    "a new field inside a part": part_with(NUMBER, {"name": "last", "type": "boolean", "default": False}),
    "fields in another order": {**RECORD, "fields": RECORD["fields"][:5][::-1] + RECORD["fields"][5:]},
}
INCOMPATIBLE = {
    "a new field without a default": with_field(name="colour", type="string"),
    "a field renamed": changed("size", name="bytes"),
    "another type": changed("size", type="string"),
    "a narrower type": changed("size", type="int"),
    "no longer optional": changed("maybe", type="long"),
    "other items": changed("tags", type={"type": "array", "items": "long"}),
    "an array of what was one": changed("id", type={"type": "array", "items": "string"}),
    "other values in a map": changed("figures", type={"type": "map", "values": "string"}),
    "a new field inside a part without a default": part_with(NUMBER, {"name": "last", "type": "boolean"}),
    "another type inside a part": part_with({"name": "number", "type": "string"}),
}


def read_with(reader: dict[str, Any]) -> Any:
    """What Avro itself makes of a record written with RECORD."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(RECORD), VALUE)
    out.seek(0)
    return fastavro.schemaless_reader(out, fastavro.parse_schema(RECORD), fastavro.parse_schema(reader))


@pytest.mark.parametrize("reader", COMPATIBLE.values(), ids=COMPATIBLE.keys())
def test_a_compatible_change_is_accepted_and_avro_can_read_it(reader: dict[str, Any]) -> None:
    assert incompatibilities(RECORD, reader) == []
    assert read_with(reader)["id"] == "a"


@pytest.mark.parametrize("reader", INCOMPATIBLE.values(), ids=INCOMPATIBLE.keys())
def test_an_incompatible_change_is_refused_and_says_where(reader: dict[str, Any]) -> None:
    reasons = incompatibilities(RECORD, reader)
    assert reasons
    with pytest.raises(Exception):  # noqa: B017 - fastavro raises several kinds
        read_with(reader)


def test_digits_are_not_lost_though_avro_would_allow_it() -> None:
    assert incompatibilities(RECORD, changed("size", type="double")) == [
        "size is written as long and cannot be read as double"
    ]
