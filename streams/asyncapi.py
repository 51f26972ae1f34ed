"""The AsyncAPI 3.0 document of the log, made from the topic catalogue and the event types.

`python -P -m streams.asyncapi` writes `schemas/asyncapi.yaml`; a test holds the file to what this makes.
https://www.asyncapi.com/docs/reference/specification/v3.0.0, Kafka bindings 0.5.0. Payloads are the Avro schemas beside
it; values are in Avro single-object encoding, which the format has no word for, so the document says it in prose.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from streams.avro_schemas import file_name
from streams.events import REGISTRY, Event
from streams.topics import CATALOGUE, COMMON, Topic

_FORMAT = "application/vnd.apache.avro+json;version=1.9.0"
_HEADERS: dict[str, tuple[str, bool]] = {
    "ce_specversion": ("`1.0`", True),
    "ce_id": ("UUIDv7 of this event", True),
    "ce_type": ("`holdfast.<type>.v<version>`", True),
    "ce_source": ("`/sites/<site>/<writer>`", True),
    "ce_time": ("when it was published: RFC 3339, UTC, microseconds", True),
    "ce_subject": ("the Kafka key", True),
    "content-type": ("`application/avro`", True),
    "hlc": ("hybrid logical clock, 16 hexadecimal digits: 48 bits of milliseconds, 16 of count", True),
    "correlationid": ("id of the command that this belongs to", False),
    "causationid": ("`ce_id` of the event that caused this one", False),
    "hf-unsettled": ("capture topics only: see docs/design.md", False),
}


def path() -> Path:
    """Where the document is in this checkout."""
    return Path(str(resources.files("schemas").joinpath("asyncapi.yaml")))


def document() -> dict[str, Any]:
    """The document as plain data."""
    events = sorted(REGISTRY.values(), key=lambda e: (e.TOPIC, e.TYPE, e.VERSION))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "The log of Holdfast",
            "version": "1",
            "description": "Every topic and every event. Values are Avro single-object encodings (C3 01, CRC-64-AVRO "
            "fingerprint of the schema, body); metadata are CloudEvents 1.0 headers in binary mode. `{prefix}` is "
            "`kafka.prefix` of holdfast.toml, `holdfast.` unless changed.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/avro",
        "channels": {t.name: _channel(t, [e for e in events if t.name == e.TOPIC]) for t in CATALOGUE},
        "operations": {
            f"publish_{_id(e)}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{e.TOPIC}"},
                "messages": [{"$ref": f"#/channels/{e.TOPIC}/messages/{_id(e)}"}],
            }
            for e in events
        },
        "components": {
            "messages": {_id(e): _message(e) for e in events},
            "messageTraits": {"record": _trait()},
        },
    }


def _channel(topic: Topic, events: list[type[Event]]) -> dict[str, Any]:
    address = f"{{prefix}}{topic.name}" + (f".{{{topic.per}}}" if topic.per else "")
    parameters: dict[str, Any] = {"prefix": {"description": "what every topic of a site starts with"}}
    if topic.per:
        parameters[topic.per] = {"description": f"name of the {topic.per}: small letters, digits, hyphens"}
    flags = {name: value for name, value in COMMON.items() if name in ("retention.ms", "retention.bytes")}
    return {
        "address": address,
        "title": topic.carries,
        "description": f"Carries: {topic.carries}. Key: {topic.key}. Kept: {topic.kept}.",
        "messages": {_id(e): {"$ref": f"#/components/messages/{_id(e)}"} for e in events},
        "parameters": parameters,
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": [COMMON["cleanup.policy"]],
                    **{name: int(value) for name, value in flags.items()},
                    "max.message.bytes": topic.max_message_bytes,
                },
                "bindingVersion": "0.5.0",
            }
        },
    }


def _message(event: type[Event]) -> dict[str, Any]:
    doc = re.sub(r"\s+", " ", event.__doc__ or "").strip()
    return {
        "name": f"holdfast.{event.TYPE}.v{event.VERSION}",
        "title": doc.split(". ")[0].rstrip(".") + ".",
        "description": doc,
        "contentType": "application/avro",
        "traits": [{"$ref": "#/components/messageTraits/record"}],
        "payload": {"schemaFormat": _FORMAT, "schema": {"$ref": f"./events/{file_name(event)}"}},
    }


def _trait() -> dict[str, Any]:
    return {
        "headers": {
            "type": "object",
            "properties": {name: {"type": "string", "description": text} for name, (text, _) in _HEADERS.items()},
            "required": [name for name, (_, always) in _HEADERS.items() if always],
        },
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": "0.5.0"}},
    }


def _id(event: type[Event]) -> str:
    return file_name(event).removesuffix(".avsc").replace(".", "_")


def text() -> str:
    """The document as it stands in the file."""
    head = "# Generated by `python -P -m streams.asyncapi`: change streams/topics.py or streams/events/ instead.\n"
    return head + str(yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120))


def main() -> None:
    """Write `schemas/asyncapi.yaml`."""
    path().write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
