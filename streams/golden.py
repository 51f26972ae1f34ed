"""Golden encodings: one record of every released version of every event, and what it decodes to.

`python -P -m streams.golden` writes `schemas/golden/<type>.v<version>.bin` and `.json` of every registered event that has
none yet. What is there is never rewritten: it stands for records that lie in somebody's log.
In the JSON, bytes are `{"hex": …}`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from streams.avro_schemas import file_name
from streams.codec import encode
from streams.events import REGISTRY, Event, Stamp

STAMP = Stamp("agent-01890a5d-ac96-774b-bcce-b302099a8057", 7, bytes(range(32)), None)


def folder() -> Path:
    """Where golden files are in this checkout."""
    return Path(str(resources.files("schemas").joinpath("golden")))


def sample(event: type[Event]) -> Event:
    """An event with something in every field, the same every time."""
    filled: Event = _filled(event)
    return filled


def _filled(cls: Any) -> Any:
    hints = typing.get_type_hints(cls)
    return cls(**{f.name: _value(hints[f.name], f.name) for f in dataclasses.fields(cls)})


def _value(hint: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        return (_value(args[0], name), _value(args[0], f"another {name}"))
    if origin is Mapping:
        return {"first": _value(args[1], name), "second": _value(args[1], f"another {name}")}
    if dataclasses.is_dataclass(hint):
        return _filled(hint)
    number = sum(name.encode())
    samples: dict[Any, Any] = {
        str: f"{name}: 你好, “quoted”",
        int: -number if name.startswith("another") else number * 1_000_003,
        float: number / 7,
        bool: True,
        bytes: bytes([0, 255, number % 251, *name.encode()]),
    }
    return samples[hint]


def plain(value: Any) -> Any:
    """A decoded event or stamp as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return value


def main() -> None:
    """Write the files that are missing into `schemas/golden` of this checkout."""
    folder().mkdir(exist_ok=True)
    for event in REGISTRY.values():
        stem = file_name(event).removesuffix(".avsc")
        path = folder() / f"{stem}.bin"
        if path.exists():
            continue
        filled = sample(event)
        path.write_bytes(encode(filled, STAMP))
        document = {"type": event.TYPE, "version": event.VERSION, "event": plain(filled), "stamp": plain(STAMP)}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        path.with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
