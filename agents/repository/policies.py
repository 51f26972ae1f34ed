"""What has been decided about a repository and must survive the log: retention, and within what chunks are shared.

`policies/<number, 8 digits>.json`, numbered from 1, created exclusively, never changed; the highest number that can be
believed counts. A file is canonical JSON: what was decided, `repository`, `number`, and `proof`, 16 bytes of BLAKE3 over the
JSON without it, keyed with `derive_key("holdfast 1 policy", record key)`: nobody without the repository's key can shorten how
long points are kept.

Written before the event that says the same (`repository.defined`). A death in between leaves a decision that adoption would
find and the log does not know: the command, resumed, decides it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from blake3 import blake3

from agents.failpoints import failpoint
from agents.repository.points import RecordKey, canonical
from agents.repository.stores import EXISTS, MISSING, Store, StoreError

KNOWN: Final = ("keep", "dedupe")
_CONTEXT: Final = "holdfast 1 policy"
_PROOF: Final = 16
_LARGEST: Final = 1 << 16
_FILE = re.compile(r"policies/(\d{8})\.json")


def encode(decided: Mapping[str, str], number: int, key: RecordKey) -> bytes:
    plain = {**decided, "number": number, "repository": key.repository}
    return canonical({**plain, "proof": _proof(plain, key).hex()})


def decode(data: bytes, number: int, key: RecordKey) -> dict[str, str] | None:
    """What was decided; None for what is no file of this number and repository."""
    try:
        plain: Any = json.loads(data) if len(data) <= _LARGEST else None
        proof = bytes.fromhex(plain.pop("proof"))
        if proof != _proof(plain, key) or (plain["number"], plain["repository"]) != (number, key.repository):
            return None
        return {name: str(plain[name]) for name in KNOWN if name in plain}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _proof(plain: Mapping[str, Any], key: RecordKey) -> bytes:
    return blake3(canonical(plain), key=key.of(b"", _CONTEXT)).digest(_PROOF)


def decide(store: Store, decided: Mapping[str, str], key: RecordKey) -> int:
    """Durable on return: its number. Raises `StoreError`."""
    number = max(_numbers(store), default=0)
    while True:
        number += 1
        try:
            store.create(f"policies/{number:08}.json", [encode(decided, number, key)])
        except StoreError as error:
            if error.code != EXISTS:
                raise
            continue
        failpoint("policy-created")
        return number


def newest(store: Store, key: RecordKey) -> dict[str, str]:
    """What counts; empty where nothing was decided, or nothing of it can be believed. Raises `StoreError`."""
    for number in sorted(_numbers(store), reverse=True):
        try:
            found = decode(store.read(f"policies/{number:08}.json"), number, key)
        except StoreError as error:
            if error.code != MISSING:
                raise
            continue
        if found is not None:
            return found
    return {}


def _numbers(store: Store) -> list[int]:
    return [int(found[1]) for listed in store.list("policies/") if (found := _FILE.fullmatch(listed.name))]
