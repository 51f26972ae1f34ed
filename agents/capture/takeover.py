"""Who writes the capture topic, and from where on: starting a lineage, taking over capture.

    claim       epoch.started(n + 1)  →  acknowledged  →  the topic is read up to it: whatever a predecessor still got
                in before it counts, whatever it writes later is dropped by every reader
    start       claim, then lineage.started in that epoch: so the records of an old lineage's writer, should it live,
                are dropped as well
    stand       the last complete step, with the digest that the source must show for it

And if we die here? An epoch that was claimed and not used costs nothing. Two that claim the same number at once: the
first marker in the topic counts, the other one's writer finds that it is not its own and gives up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from agents.capture.records import Standing, steps_of
from agents.errors import CaptureStopped, Fenced
from agents.failpoints import failpoint
from agents.protocol import Steps, Stream
from streams.capture_log import CaptureLog, Tail
from streams.capture_record import lineage_digest
from streams.errors import BrokenChain, DeliveryFailed, StreamError
from streams.events import EpochStarted, LineageStarted
from streams.ids import now_us, uuid7
from streams.publish import Publisher

_PATIENCE_S = 60.0
_PROOF_PATIENCE_S = 20.0
_TAKE_S = 0.2
_TURN_S = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claim:
    """Capture belongs to us: the epoch, and the log's end as it was with our marker in it."""

    epoch: int
    tail: Tail


def start_lineage(
    publisher: Publisher,
    log: CaptureLog,
    *,
    source: str,
    position: str,
    baseline: str,
    reason: str,
    server_id: int,
    server_version: str,
    agent: str,
    lineage: str = "",
) -> str:
    """Begin a history of `source` at native `position`, of which `baseline` is the consistent full; its lineage.

    `lineage` is the id it is to have (UUIDv7, newer than that of any lineage before); left out, a new one.

    Capture of an earlier lineage is fenced by it. On return both markers are in the log. `reason`: `protected`, `reset`,
    `lost-tail` … Raises `Fenced`, `StreamError`.
    """
    claimed = claim(publisher, log, source=source, agent=agent, lineage="")
    lineage = lineage or uuid7()
    event = LineageStarted(
        lineage=lineage,
        epoch=claimed.epoch,
        source=source,
        position=position,
        server_id=server_id,
        server_version=server_version,
        reason=reason,
        baseline=baseline,
        digest=lineage_digest(lineage, position),
        at_us=now_us(),
    )
    failpoint("lineage-claimed")
    publisher.sent_and_durable(event, timeout=_PATIENCE_S)
    failpoint("lineage-started")
    tail = log.tail()
    if tail is None or tail.lineage != lineage:
        raise Fenced("capture-fenced", "another agent took over while a lineage was started", "look whose is in use")
    return lineage


def claim(
    publisher: Publisher,
    log: CaptureLog,
    *,
    source: str,
    agent: str,
    lineage: str | None = None,
    stop: threading.Event | None = None,
    ours: int | None = None,
) -> Claim:
    """Become the writer of `source`'s capture topic. Waits for Kafka, until `stop` is set.

    `ours`: the epoch that was last when Kafka went away; a later one is somebody else's, who took over meanwhile.

    Without `lineage` (an empty one will do) there must be one already. Raises `CaptureStopped` (`capture-no-lineage`, a
    broken chain), `Fenced`, `StreamError`, `Interrupted`.
    """
    before = patiently(log.tail, stop)
    if lineage is None and (before is None or not before.lineage):
        raise CaptureStopped(
            "capture-no-lineage", f"there is no baseline of {source} to capture on from", "add the source (again)"
        )
    if ours is not None and before is not None and before.epoch > ours:
        raise Fenced(
            "capture-fenced",
            f"another agent took over capture of {source} meanwhile (epoch {before.epoch}, this one had {ours})",
            "only one agent may capture a source; this one stops",
        )
    epoch = (before.epoch if before is not None else 0) + 1
    marker = EpochStarted(
        lineage=(before.lineage if before is not None else "") or None,
        epoch=epoch,
        source=source,
        agent=agent,
        at_us=now_us(),
    )
    failpoint("epoch-claiming")
    publisher.publish(marker)
    failpoint("epoch-sent")
    _until_durable(publisher, stop)
    failpoint("epoch-durable")
    tail = patiently(log.tail, stop)
    if tail is None or tail.epoch != epoch or tail.epoch_writer != publisher.chain.writer:
        has = "nobody" if tail is None else f"epoch {tail.epoch} of {tail.epoch_writer or 'somebody else'}"
        raise Fenced("capture-fenced", f"another agent took over capture of {source} at the same moment ({has})")
    return Claim(epoch, tail)


def standing(log: CaptureLog, tail: Tail) -> Standing:
    """Where the lineage in `tail` stands, with the proof that the source must give."""
    record = tail.record
    if record is None:
        if tail.started is None:
            raise CaptureStopped("capture-no-lineage", "the log does not say where the lineage starts", "see `doctor`")
        return Standing(0, tail.started.position, tail.started.position, None)
    proof = record.last_step_digest
    if not proof:
        # Nothing that could be tried out against is kept of account statements: read the step itself.
        hasher = blake3()
        for fragment in log.steps(tail.lineage, tail.ordinal, tail.ordinal):
            if fragment.payload is None:
                raise StreamError(
                    "payload-sealed", f"step {tail.ordinal} is encrypted", "give the agent the site's key"
                )
            hasher.update(fragment.payload)
        proof = hasher.digest()
    return Standing(tail.ordinal, record.before, record.after, proof)


def prove(reader: Stream, at: Standing, stop: threading.Event) -> bool:
    """Read the last captured step again and compare; False when `stop` was set before it came whole.

    Raises `CaptureStopped`: `capture-history-changed`, `capture-position-lost`.
    """
    hasher = blake3()
    heard = time.monotonic()
    while not stop.is_set():
        taken = reader.take(_TAKE_S)
        if taken is None:
            if time.monotonic() - heard > _PROOF_PATIENCE_S:
                raise CaptureStopped(
                    "capture-position-lost",
                    f"the source does not show step {at.ordinal} ({at.after}) again",
                    "take a new baseline (a new lineage starts)",
                )
            continue
        heard = time.monotonic()
        if isinstance(taken, Steps) or taken.first:
            hasher = blake3()  # pieces without a last one were of a step before
        hasher.update(taken.payload)
        if not steps_of(taken):
            continue
        if taken.after != at.after or hasher.digest() != at.proof:
            raise CaptureStopped(
                "capture-history-changed",
                f"what the source holds as {taken.after} is not what was captured as step {at.ordinal} ({at.after})",
                "its history was replaced (RESET MASTER, a restored copy, another server): take a new baseline "
                "(a new lineage starts)",
            )
        return True
    return False


class Interrupted(Exception):
    """Asked to stop while waiting for Kafka. Nothing is half done."""


def patiently(read: Callable[[], T], stop: threading.Event | None) -> T:
    """`read()`, again and again while Kafka is away. Raises `CaptureStopped` for a broken chain, `Interrupted`."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return read()
        except BrokenChain as error:
            raise CaptureStopped(error.code, error.message, error.hint) from error
        except StreamError as error:
            if error.code != "kafka-unreachable" or (stop is None and time.monotonic() > deadline):
                raise
        if stop is not None and stop.wait(_TURN_S):
            raise Interrupted
        if stop is None:
            time.sleep(_TURN_S)


def _until_durable(publisher: Publisher, stop: threading.Event | None) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            publisher.flush(_TURN_S)
            return
        except DeliveryFailed as error:
            if error.code != "delivery-unconfirmed" or (stop is None and time.monotonic() > deadline):
                raise
        if stop is not None and stop.is_set():
            raise Interrupted
