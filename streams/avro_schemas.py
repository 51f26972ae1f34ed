"""Avro schemas of events: loaded from `schemas/events`, and derived from the dataclasses to prove that both agree.

`python -P -m streams.avro_schemas` writes the file of every registered event that has none yet. A file that has been
released is never rewritten: a changed event gets a new version (tests/unit/streams/test_schema_compatibility.py).
Avro 1.11, https://avro.apache.org/docs/1.11.1/specification/.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from importlib import resources
from typing import Any

from streams.events import REGISTRY, Event

NAMESPACE = "io.holdfast"
_PRIMITIVE: dict[type, str] = {str: "string", int: "long", float: "double", bool: "boolean", bytes: "bytes"}
STAMP_FIELDS: tuple[dict[str, Any], ...] = (
    {"name": "writer", "type": "string"},
    {"name": "sequence", "type": "long"},
    {"name": "previous", "type": "bytes"},
    {"name": "signature", "type": ["null", "bytes"], "default": None},
)


def file_name(event: type[Event], version: int | None = None) -> str:
    """`commits.recorded` version 1 stands in `commits_recorded.v1.avsc`. Without `version`: the event's own."""
    return f"{event.TYPE.replace('.', '_')}.v{version or event.VERSION}.avsc"


def load(event: type[Event], version: int | None = None) -> dict[str, Any]:
    """The schema as released."""
    text = resources.files("schemas").joinpath("events", file_name(event, version)).read_text("utf-8")
    return typing.cast("dict[str, Any]", json.loads(text))


def derive(event: type[Event]) -> dict[str, Any]:
    """The schema that the dataclass implies, with the stamp's fields at its end."""
    return {**_record(event, set()), "fields": [*_record(event, set())["fields"], *STAMP_FIELDS]}


def _record(cls: type, seen: set[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    seen.add(cls.__name__)
    fields = [_field(f, hints[f.name], seen) for f in dataclasses.fields(cls)]
    doc = re.sub(r"\s+", " ", cls.__doc__ or "").strip()
    return {"type": "record", "name": cls.__name__, "namespace": NAMESPACE, "doc": doc, "fields": fields}


def _field(f: dataclasses.Field[Any], hint: Any, seen: set[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"name": f.name, "type": _type(hint, seen)}
    if f.default is not dataclasses.MISSING:
        default = (
            f.default.decode("latin-1") if isinstance(f.default, bytes) else f.default
        )  # as Avro writes bytes in JSON
        out["default"] = list(default) if isinstance(default, tuple) else default
    elif f.default_factory is not dataclasses.MISSING:
        out["default"] = f.default_factory()
    return out


def _type(hint: Any, seen: set[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in args if a is not type(None)]
        return ["null", _type(inner[0], seen)]
    if origin is tuple:
        return {"type": "array", "items": _type(args[0], seen)}
    if origin is Mapping:
        return {"type": "map", "values": _type(args[1], seen)}
    if hint in _PRIMITIVE:
        return _PRIMITIVE[hint]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"{NAMESPACE}.{hint.__name__}" if hint.__name__ in seen else _record(hint, seen)
    raise TypeError(f"no Avro type for {hint!r}")


# What a writer's primitive may be read as, beside itself (Avro 1.11, "Schema Resolution").
_PROMOTED: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


def incompatibilities(writer: Any, reader: Any) -> list[str]:
    """Why records written with one schema cannot be read with another; empty when they can.

    Avro's rules of schema resolution, as far as our schemas go (no enums, fixed, aliases). Stricter in one thing: a `long`
    is not read as a `double`, which loses digits.
    """
    return _differences(writer, reader, "", {}, {}, set())


def _differences(
    writer: Any, reader: Any, path: str, written: dict[str, Any], read: dict[str, Any], done: set[tuple[str, str]]
) -> list[str]:
    writer, reader = _named(writer, written), _named(reader, read)
    if isinstance(reader, list) or isinstance(writer, list):
        branches = writer if isinstance(writer, list) else [writer]
        options = reader if isinstance(reader, list) else [reader]
        tried = [[_differences(b, o, path, dict(written), dict(read), set(done)) for o in options] for b in branches]
        return [why for results in tried if all(results) for why in results[-1]]
    kind, wanted = _kind(writer), _kind(reader)
    if kind != wanted:
        lossy = wanted == "double" and kind == "long"
        if wanted in _PROMOTED.get(kind, ()) and not lossy:
            return []
        return [f"{path or 'the record'} is written as {kind} and cannot be read as {wanted}"]
    if kind == "array":
        return _differences(writer["items"], reader["items"], f"{path}[]", written, read, done)
    if kind == "map":
        return _differences(writer["values"], reader["values"], f"{path}{{}}", written, read, done)
    if kind != "record":
        return []
    if writer["name"] != reader["name"]:
        return [f"{path or 'the record'} is a {writer['name']} and cannot be read as a {reader['name']}"]
    if (writer["name"], path) in done:
        return []
    done.add((writer["name"], path))
    fields = {f["name"]: f for f in writer["fields"]}
    out: list[str] = []
    for f in reader["fields"]:
        name = f"{path}.{f['name']}".lstrip(".")
        if f["name"] in fields:
            out += _differences(fields[f["name"]]["type"], f["type"], name, written, read, done)
        elif "default" not in f:
            out.append(f"{name} is new and has no default")
        _remember(f["type"], read)
    return out


def _named(schema: Any, known: dict[str, Any]) -> Any:
    """The schema that a name stands for."""
    _remember(schema, known)
    if isinstance(schema, str) and schema.rpartition(".")[2] in known:
        return known[schema.rpartition(".")[2]]
    return schema


def _remember(schema: Any, known: dict[str, Any]) -> None:
    """Take note of the records defined in `schema`."""
    if isinstance(schema, list):
        for branch in schema:
            _remember(branch, known)
    elif isinstance(schema, dict):
        if schema["type"] == "record":
            known[schema["name"]] = schema
            for f in schema["fields"]:
                _remember(f["type"], known)
        else:
            _remember(schema.get("items", schema.get("values")), known)


def _kind(schema: Any) -> str:
    return str(schema["type"] if isinstance(schema, dict) else schema)


def main() -> None:
    """Write the files that are missing into `schemas/events` of this checkout."""
    folder = resources.files("schemas").joinpath("events")
    for event in REGISTRY.values():
        path = folder.joinpath(file_name(event))
        if not path.is_file():
            with open(str(path), "w", encoding="utf-8") as out:
                out.write(json.dumps(derive(event), indent=1) + "\n")
            print(f"wrote {file_name(event)}")


if __name__ == "__main__":
    main()
