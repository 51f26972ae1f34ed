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


def file_name(event: type[Event]) -> str:
    """`commits.recorded` version 1 stands in `commits_recorded.v1.avsc`."""
    return f"{event.TYPE.replace('.', '_')}.v{event.VERSION}.avsc"


def load(event: type[Event]) -> dict[str, Any]:
    """The schema as released."""
    text = resources.files("schemas").joinpath("events", file_name(event)).read_text("utf-8")
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
        out["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
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
