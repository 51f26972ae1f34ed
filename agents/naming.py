"""An agent takes its name before it does anything under it, so that two of one name never work at once.

    inventory   … started(r1) ······ started(r2, replaces r1)
    r1            at work ── reads that the name is another's ── ends
    r2            listens ── heard nothing of r1 ── claims ── reads its claim back ── at work

A name is free when nobody had it, or who had it has ended in order. It is ours when the run that has it was of our data directory
(`home`) and machine, and since the same start of that (`boot`): the directory's lock vouches that it is over. Else we listen: of
another directory for the whole lease, of our own after the machine was started anew for as long as a beat can take (a copy of the
whole machine would be heard). Heard: we end (`node-name-taken`). Not heard: we take the name, and the other, should it come back,
reads that and ends.

And if we die here? Before the claim is in the log: nothing was said. After it: a run of ours has the name and is over, which the
next start finds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Final

from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.nodes import Names, machine_name, write_new
from streams.consume import Message, ends, follow, open_consumer, partitions, read_topic
from streams.events import HealthReported, NodeChanged
from streams.ids import now_us
from streams.node_log import NodeLog
from streams.publish import Publisher
from streams.settings import KafkaSettings, Settings
from streams.topics import topic_name

HOME: Final = "node.id"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MARGIN_S: Final = 1.0
_TURN_S: Final = 0.2
_log = logging.getLogger("holdfast.agent")


def taken(node: str, by: NodeChanged | None) -> AgentError:
    """What the one of two agents of a name is told that has to end."""
    where = f" ({by.machine}, since {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(by.at_us / 1e6))})" if by else ""
    return AgentError(
        "node-name-taken",
        f"another agent of this site is called {node}{where}",
        "give each its own name: `node` under [agent] in holdfast.toml; `holdfast node list` shows them",
    )


def home_of(settings: Settings) -> str:
    """What names the data directory; made when it is new. For the owner of its lock."""
    path = settings.data_dir / HOME
    if not path.exists():
        write_new(path, f"{uuid.uuid4()}\n")
    return path.read_text("utf-8").strip()


class Naming:
    """The name of one run of an agent. `beat_s`: how often agents speak."""

    def __init__(self, settings: Settings, publisher: Publisher, called: Names, beat_s: float) -> None:
        self._kafka = settings.kafka
        self._publisher = publisher
        self._called = called
        self._run = publisher.chain.writer
        self._home = home_of(settings)
        self._boot = _boot(settings.data_dir)
        self._lease_s = settings.agent.lease_s
        self._beat_s = beat_s
        self._log = NodeLog()
        self._place: dict[int, int] = {}
        self._topic = topic_name(settings.kafka.prefix, "inventory")
        self._has = False

    def take(self, stop: threading.Event) -> bool:
        """Have the name, or raise `AgentError` (`node-name-taken`). False: `stop` was set before that."""
        self._read()
        while not stop.is_set():
            there = self._standing(self._called.agent)
            wait_s = self._patience(there)
            if there is not None and wait_s and not self._silent(there, wait_s, stop):
                continue
            claim = self._said("started", self._called.agent, replaces=there.run if there else "")
            self._publisher.sent_and_durable(claim)
            failpoint("node.claimed")
            self._read()
            now = self._standing(self._called.agent)
            if now is not None and now.run == self._run:
                self._has = True
                self._let_go_of_former_names()
                return True
        return False

    def let_go(self) -> None:
        """Say that this run has ended in order. Void if somebody else has the name by now."""
        if self._has:
            self._publisher.publish(self._said("stopped", self._called.agent))

    def _standing(self, node: str) -> NodeChanged | None:
        return self._log.standing.get(node)

    def _patience(self, there: NodeChanged | None) -> float:
        """For how long there must be nothing heard of who has the name."""
        if there is None or there.state == "stopped":
            return 0.0
        if there.home != self._home:
            return max(there.lease_s, 2 * self._beat_s) + _MARGIN_S
        return 0.0 if self._boot and there.boot == self._boot else 2 * self._beat_s + _MARGIN_S

    def _silent(self, there: NodeChanged, wait_s: float, stop: threading.Event) -> bool:
        """Listen until `wait_s` have passed; False when the name changed hands meanwhile, or we are to end.

        Raises `AgentError` (`node-name-taken`) when its run is heard.
        """
        health = topic_name(self._kafka.prefix, "health")
        place = {**_ends_of(self._kafka, health), **{(self._topic, p): at for p, at in self._place.items()}}
        _log.warning("%s is the name of another run: listening for it for %.0f s", there.node, wait_s)
        until = time.monotonic() + wait_s
        for batch in follow(self._kafka, [self._topic, health], place, stop, ticks=True, turn_s=_TURN_S):
            for message in batch:
                if message.topic == self._topic:
                    self._take(message)
                elif isinstance(message.event, HealthReported) and message.stamp.writer == there.run:
                    raise taken(there.node, there)
            if self._standing(there.node) is not there:
                return False
            if time.monotonic() > until:
                break
        return not stop.is_set()

    def _let_go_of_former_names(self) -> None:
        """Those that runs of this directory had: under its lock they are over."""
        for node in self._called.all - {self._called.agent}:
            there = self._standing(node)
            if there is not None and there.state == "started" and there.home == self._home:
                self._publisher.publish(self._said("stopped", node, run=there.run))

    def _said(self, state: str, node: str, *, run: str = "", replaces: str = "") -> NodeChanged:
        return NodeChanged(
            node=node,
            state=state,
            run=run or self._run,
            replaces=replaces,
            home=self._home,
            boot=self._boot,
            machine=machine_name(),
            version=_version(),
            names=tuple(sorted(self._called.all)),
            lease_s=round(self._lease_s),
            at_us=now_us(),
            by=self._called.agent,
        )

    def _read(self) -> None:
        for message in read_topic(self._kafka, self._topic, self._place or None):
            self._take(message)

    def _take(self, message: Message) -> None:
        self._place[message.partition] = message.offset + 1
        self._publisher.observe(message.hlc)
        self._log.apply(message.event)


def _ends_of(kafka: KafkaSettings, topic: str) -> dict[tuple[str, int], int]:
    with contextlib.closing(open_consumer(kafka)) as consumer:
        return {(topic, number): ends(consumer, topic, number)[1] for number in partitions(consumer, topic)}


def _boot(data_dir: Path) -> str:
    """The machine's start and the directory's place on it: of a copy of the directory the place is another."""
    try:
        found, place = _BOOT.read_text("ascii").strip(), data_dir.stat()
    except OSError:
        return ""
    return f"{found}/{place.st_dev}/{place.st_ino}"


def _version() -> str:
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return ""
