"""Where a repository is, as people name it: a directory, or a bucket; and the store that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.errors import AgentError
from agents.repository.stores import Store
from agents.repository.stores.local import LocalStore

INVALID = "place-invalid"


OF_PLACE = ("endpoint", "region", "access_key", "tls_ca")  # options that say how a bucket is reached


def location_of(place: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Kind, location and options (without secrets) of a place as commands carry it."""
    if place["kind"] == "local":
        return "local", str(place["path"]), {}
    bucket, prefix = str(place["bucket"]), str(place.get("prefix", "")).strip("/")
    options = {name: str(place[name]) for name in OF_PLACE if place.get(name)}
    return "s3", f"s3://{bucket}/{prefix}".rstrip("/"), options


def open_store(kind: str, location: str, options: Mapping[str, str], secret: str = "") -> Store:
    """The store at a location; nothing is tried yet. `secret`: of an S3 access key. Raises `AgentError`, `StoreError`."""
    if kind == "local":
        return LocalStore(Path(location))
    if kind == "s3":
        from agents.repository.stores.s3 import Bucket, S3Store

        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        region = options.get("region", "us-east-1")
        where = Bucket(
            options["endpoint"], bucket, options["access_key"], secret, region, f"{prefix}/" if prefix else "",
            options.get("tls_ca", ""),
        )  # fmt: skip
        return S3Store(where)
    raise AgentError(INVALID, f"there is no kind of store {kind!r}", "known: local, s3")
