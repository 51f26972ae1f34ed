"""Read models: how far each is, what it says as one number, and building it again from the log."""

from __future__ import annotations

from typing import Any

from api.calls import Call, Reply
from projections import generations, log, offsets, rebuild
from projections.digest import Digest, digest
from projections.errors import ViewAbsent
from projections.views import VIEWS, view
from streams.errors import StreamError


def list_all(call: Call) -> Reply:
    kafka = call.site.settings.kafka
    topics = sorted({topic for v in VIEWS.values() for topic in log.full_topics(kafka, v)})
    try:
        ends = {place: extent.end for place, extent in log.extents(kafka, topics).items()}
    except StreamError:
        ends = {}  # Kafka is away: how far the views are can still be said, what they lack cannot
    items: list[dict[str, Any]] = []
    with call.site.views() as conn:
        for name, found in VIEWS.items():
            status = generations.status(conn, name)
            try:
                stand = offsets.live(conn, name)
            except ViewAbsent:
                stand = {}
            state = "absent" if status is None or status.state != "live" else "live"
            if state == "live" and status is not None and status.version != found.VERSION:
                state = "outdated"
            mine = set(log.full_topics(kafka, found))
            places = sorted({p for p in (*stand, *ends) if p[0] in mine})
            lag = sum(max(0, ends[p] - stand.get(p, 0)) for p in places) if ends else None
            items.append(
                {
                    "name": name,
                    "version": status.version if status else found.VERSION,
                    "state": state,
                    "lag": lag if state == "live" else None,
                    "partitions": [
                        {"topic": t, "partition": n, "next": stand.get((t, n), 0), "end": ends.get((t, n))}
                        for t, n in places
                    ],
                    "tables": sorted(found.TABLES),
                }
            )
    return Reply({"items": items})


def show_digest(call: Call) -> Reply:
    found = view(call.text("projection"))
    with call.site.views() as conn:
        return Reply(_digest_json(digest(conn, found)))


def _digest_json(found: Digest) -> dict[str, Any]:
    return {
        "name": found.view,
        "version": found.version,
        "digest": found.digest,
        "tables": [{"table": t, "rows": found.rows[t], "digest": d} for t, d in sorted(found.tables.items())],
        "offsets": [{"topic": t, "partition": n, "next": at} for (t, n), at in sorted(found.cut.items())],
    }


def start_rebuild(call: Call) -> Reply:
    name = view(call.text("projection")).NAME
    job = call.site.rebuilds.start(name, call.actor)
    return Reply({"job": job}, status=202, note={"job": job})


def drop(call: Call) -> Reply:
    """Take the view away, tables and all; its last digest is kept, for the rebuild to be compared with."""
    name = view(call.text("projection")).NAME
    last = rebuild.drop(call.site.settings, name)
    return Reply({"name": name, "digest": last.digest if last else None})
