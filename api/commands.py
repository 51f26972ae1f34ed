"""Asking agents for work: a command event, whose id is its job's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from api.calls import Call
from streams.events import CommandRequested
from streams.ids import now_us, uuid7


def ask(call: Call, kind: str, asset: str, parameters: Mapping[str, Any], *, node: str = "", priority: int = 0) -> str:
    """Publish the command; its id. It is durable once the call's record is (`api.app`). `node`: who alone is to do it."""
    command = uuid7()
    event = CommandRequested(
        command=command,
        kind=kind,
        asset=asset,
        parameters=json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        requester=call.actor,
        requested_us=now_us(),
        priority=priority,
        node=node,
    )
    call.site.live.note(call.site.log.publish(event, correlation=command), event)
    return command
