"""The AsyncAPI document is the one the code makes, and everything it names exists."""

from __future__ import annotations

from typing import Any

import yaml

from schemas import __path__ as schemas_path
from streams import asyncapi
from streams.events import REGISTRY
from streams.topics import CATALOGUE


def refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [r for v in node.values() for r in refs(v)]
    return [r for v in node for r in refs(v)] if isinstance(node, list) else []


def test_the_file_is_what_the_code_makes() -> None:
    assert asyncapi.path().read_text("utf-8") == asyncapi.text(), "run python -P -m streams.asyncapi"


def test_every_topic_and_every_event_is_in_it() -> None:
    document = yaml.safe_load(asyncapi.text())

    assert set(document["channels"]) == {t.name for t in CATALOGUE}
    named = {m["name"] for m in document["components"]["messages"].values()}
    assert named == {f"holdfast.{e.TYPE}.v{e.VERSION}" for e in REGISTRY.values()}
    for event in REGISTRY.values():
        carried = refs(document["channels"][event.TOPIC]["messages"])
        assert any(event.TYPE.replace(".", "_") in ref for ref in carried)


def test_every_reference_leads_somewhere() -> None:
    document = yaml.safe_load(asyncapi.text())
    folder = asyncapi.path().parent
    assert str(folder) in schemas_path

    for ref in refs(document):
        if ref.startswith("#/"):
            node = document
            for step in ref[2:].split("/"):
                node = node[step]
        else:
            assert (folder / ref).is_file()
