"""From a moment or one of the source's own coordinates to a step. Reads the tail, and one granule or a few."""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct

from api.errors import ApiError
from api.shapes import time as time_text
from api.timeline.source import Now, Timeline, ends_large
from api.timeline.steps import closing_time
from projections.views import catalogue
from projections.views import timeline as view
from projections.views.base import Connection
from projections.views.timeline import Granule
from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.binlog.events import HEADER_SIZE
from streams.formats.binlog.gtids import parse_gtid

_MARIADB = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,20})")
# One GTID, or a set that a source's transactions without gaps come to: its last one is meant.
_MYSQL = re.compile(
    r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?::[a-z_][a-z0-9_]{0,31})?):(?:\d{1,19}-)?(\d{1,19})"
)
_FILE = re.compile(r"(?:[^/]+/\d+/)?([^/:]+\.\d+:\d{1,19})")
_HINT = (
    "as MariaDB says it: domain-server-sequence, 0-1-100; as MySQL does: its UUID and a number, 3e11fa47-…:100; where a "
    "server has no GTIDs: the log file and offset that the timeline shows, binlog.000003:1567"
)
_APART = 200_000
_header = Struct("<IBIIIH").unpack_from


def gtid_of(fragment: StepFragment) -> str:
    """The GTID of a step, from the fragment that has it: the first; of an XA transaction, whose step begins with the group that
    prepared it, the last. Empty for any other."""
    payload, at, found = fragment.payload or b"", 0, ""
    while at + HEADER_SIZE <= len(payload):
        _, kind, server, size, _, _ = _header(payload, at)
        if kind in ev.GTIDS:
            gtid = parse_gtid(kind, server, payload[at + HEADER_SIZE : at + size])
            if kind == ev.GTID and not gtid.prepared_xa:
                return gtid.text
            if kind != ev.GTID:  # MySQL's do not say what they are of
                found = gtid.text
        elif at == 0 and not fragment.last:
            break
        at += max(size, HEADER_SIZE)
    return found


def place_of(fragment: StepFragment) -> str:
    """File and offset after the step whose last fragment this is, `binlog.000003:1567`."""
    at, payload = 0, fragment.payload or b""
    if not fragment.last or not payload:
        return _FILE.sub(r"\1", fragment.position_after)
    offset = 0
    while at + HEADER_SIZE <= len(payload):
        _, _, _, size, offset, _ = _header(payload, at)
        at += max(size, HEADER_SIZE)
    return f"{fragment.file}:{offset}"


def at_time(timeline: Timeline, conn: Connection, now: Now, at_us: int) -> int:
    """The last step, in log order, that was committed at or before a moment; 0 when the baseline was the state then.

    Raises `ApiError` (`time-before-baseline`).
    """
    assert now.lineage is not None
    found = 0
    for fragment in timeline.fragments(now.lineage, now.closed + 1, now.head, []):
        if fragment.last and closing_time(fragment) <= at_us:
            found = fragment.ordinal
    if found:
        return found
    granule = view.granule_at_time(conn, timeline.source, now.lineage, at_us)
    if granule is not None:
        for fragment in _of(timeline, now.lineage, granule):
            if fragment.last and closing_time(fragment) <= at_us:
                found = fragment.ordinal
        if ends_large(granule) and granule.last_time_us <= at_us:
            found = granule.last_ordinal
        return found or granule.first_ordinal - 1
    began = next((x for x in catalogue.lineages(conn, timeline.source) if x.lineage == now.lineage), None)
    if began is not None and at_us < began.first_us - began.first_us % 1_000_000:
        raise ApiError(
            422,
            "time-before-baseline",
            f"{timeline.source} is protected since {time_text(began.first_us)}; before that nothing is known",
            "choose a later moment, or `--to-step 0` for the baseline",
        )
    return 0


def at_position(timeline: Timeline, conn: Connection, now: Now, text: str) -> int:
    """The step after which the source stood at `text`: a GTID, or a set of them, one a domain or server; or a log file and
    offset.

    Raises `ApiError` (`position-invalid`, `position-unknown`, `position-not-a-state`).
    """
    wanted = [_canonical(part.strip()) for part in text.split(",")]
    if not all(wanted):
        raise ApiError(422, "position-invalid", f"{text!r} is not a GTID", _HINT)
    found = {gtid: _with_gtid(timeline, conn, now, gtid) for gtid in wanted}
    last = max(found.values())
    for gtid, ordinal in found.items():
        if ordinal != last:
            _newest_of_domain(timeline, now, gtid, ordinal, last)
    return last


def _canonical(text: str) -> str:
    """One position as steps are compared by; empty when it is none."""
    if _MARIADB.fullmatch(text):
        return text
    if m := _MYSQL.fullmatch(text.lower()):
        return f"{m[1]}:{int(m[2])}"
    m = _FILE.fullmatch(text)
    return m[1] if m else ""


def _is(fragment: StepFragment, wanted: str) -> bool:
    """Whether `wanted` is this fragment's step's."""
    if _FILE.fullmatch(wanted):
        return fragment.last and place_of(fragment) == wanted
    return gtid_of(fragment) == wanted


def _domain(gtid: str) -> str:
    """What numbers GTIDs in order: a MariaDB domain, a MySQL server (and tag)."""
    return gtid.rpartition(":")[0] or gtid.split("-")[0]


def _with_gtid(timeline: Timeline, conn: Connection, now: Now, gtid: str) -> int:
    assert now.lineage is not None
    for fragment in timeline.fragments(now.lineage, now.closed + 1, now.head, []):
        if _is(fragment, gtid):
            return fragment.ordinal
    for granule in view.granules_with_gtid(conn, timeline.source, now.lineage, gtid):
        if granule.last_position == gtid:
            return granule.last_ordinal
        for fragment in _of(timeline, now.lineage, granule):
            if _is(fragment, gtid):
                return fragment.ordinal
    raise ApiError(
        422,
        "position-unknown",
        f"no step of {timeline.source} has GTID or place {gtid}",
        f"`holdfast timeline show {timeline.source}` shows those there are",
    )


def _newest_of_domain(timeline: Timeline, now: Now, gtid: str, ordinal: int, last: int) -> None:
    """A set of GTIDs is a state only when each is its domain's newest at that point."""
    assert now.lineage is not None
    if last - ordinal > _APART:
        raise ApiError(
            422, "position-not-a-state", f"{gtid} lies {last - ordinal} steps before the others", "give one GTID"
        )
    domain = _domain(gtid)
    for fragment in timeline.fragments(now.lineage, ordinal + 1, last, []):
        other = gtid_of(fragment)
        if other and _domain(other) == domain:
            raise ApiError(
                422,
                "position-not-a-state",
                f"the source was never at that set: {other} came after {gtid} and before step {last}",
                f"`--to-step {last}` is the state right after the newest of them",
            )


def _of(timeline: Timeline, lineage: str, granule: Granule) -> Iterator[StepFragment]:
    """A granule's steps, but for a large one at its end."""
    last = granule.last_ordinal - 1 if ends_large(granule) else granule.last_ordinal
    return timeline.fragments(lineage, granule.first_ordinal, last, [granule])
