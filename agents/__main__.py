"""`python -P -m agents --config FILE`: the agent of a site.

Carries out commands (`agents.loop`), makes policies happen (`agents.scheduling`), keeps a capture and an indexer process for
every source that is to have them (`agents.processes`), and says every few seconds that it is alive. Exit status: 0 stopped by
SIGTERM or SIGINT, 1 a defect, 2 the settings or this machine are not fit, 4 the log cannot be read or written; 3 is not used.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from agents.backup.limits import Limits
from agents.commands import Services
from agents.errors import AgentError
from agents.loop import Loop, beat_s
from agents.naming import Naming
from agents.nodes import names
from agents.processes import Processes, Role
from agents.repository.node import Node
from agents.scheduling.scheduler import Scheduler
from agents.scratch.handlers import recover as recover_copies
from agents.scratch.keeper import Keeper
from agents.sources import Sources
from streams.admin import ensure_topics
from streams.errors import DeliveryFailed, StreamError
from streams.events import HealthReported, Problem, SourceChanged
from streams.ids import now_us
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings, load

EXIT_DEFECT = 1
EXIT_UNFIT = 2
EXIT_LOG = 4
# How long a capture process that ended for good may take to be heard of through the log.
_WORD_S = 3.0
_SCHEDULING_S = 10.0
TOPICS = ("commands", "jobs", "inventory", "commits", "rollbacks", "repository", "blocks", "health")
ROLES: dict[str, frozenset[Role]] = {
    "capturing": frozenset({"capture", "index"}),
    "paused": frozenset({"index"}),
    "stopped": frozenset({"index"}),
}
_log = logging.getLogger("holdfast.agent")


class Agent:
    """One run of the agent, for the owner of its data directory's lock. `run` returns the exit status."""

    def __init__(self, settings: Settings, config: Path, stop: threading.Event) -> None:
        called = names(settings)
        self._settings = settings
        self._stop = stop
        self._publisher = Publisher(settings, "agent")
        self.processes = Processes(config, self._child_stopped)
        self.keeper = Keeper(settings.data_dir, called.agent, self._publisher.publish)
        secrets = SecretStore(settings)
        self.node = Node(settings, self._publisher, secrets, called.node)
        self.services = Services(
            agent=called.agent,
            settings=settings,
            publisher=self._publisher,
            secrets=secrets,
            sources=Sources(),
            processes=self.processes,
            stop=stop,
            keeper=self.keeper,
            repositories=self.node,
            names=called,
            limits=Limits(settings.agent.disks),
        )
        self.naming = Naming(settings, self._publisher, called, beat_s(settings.agent.lease_s))
        self.loop = Loop(self.services, on_inventory=self._inventory)
        self.scheduler = Scheduler(settings.kafka, self._publisher, self.services.agent, stop)

    def run(self) -> int:
        pulse = threading.Thread(target=self._pulse, name="heartbeat", daemon=True)
        scheduling = threading.Thread(target=self._schedule, name="scheduling", daemon=True)
        try:
            ensure_topics(self._settings.kafka, [(name, None) for name in TOPICS])
            if not self.naming.take(self._stop):
                return 0
            pulse.start()
            self.keeper.start()
            recover_copies(self.services)
            self.node.start()
            scheduling.start()
            self.loop.run()
            if self.loop.fatal is not None:
                raise self.loop.fatal
        finally:
            self._stop.set()
            self.processes.close()
            self.keeper.close()
            self.node.close()
            if scheduling.ident is not None:
                scheduling.join(_SCHEDULING_S)
            if pulse.ident is not None:
                pulse.join()
            with contextlib.suppress(DeliveryFailed):
                self.naming.let_go()
            self._publisher.close(5.0)
        return 0

    def _inventory(self, source: str, live: bool) -> None:
        """A source was said to be in some state: bring its processes in line."""
        entry = self.services.sources.find(source)
        roles: frozenset[Role] = frozenset()
        if entry is not None and entry.lineage:
            roles = ROLES.get(entry.state, roles)
        self.processes.want(source, roles, anew=live and entry is not None and entry.state == "capturing")

    def _child_stopped(self, source: str, role: Role) -> None:
        """A child ended for good. Capture says itself why, in the log; if it could not, we do."""
        if role == "capture":
            timer = threading.Timer(_WORD_S, self._say_stopped, (source,))
            timer.daemon = True
            timer.start()

    def _say_stopped(self, source: str) -> None:
        entry = self.services.sources.find(source)
        if entry is None or entry.state != "capturing" or self.processes.running(source, "capture"):
            return
        problem = Problem(
            "capture-stopped",
            "capture ended and said that it cannot go on",
            "see the agent's log; then `source resume`",
        )
        try:
            self._publisher.publish(
                SourceChanged(
                    lineage=entry.lineage,
                    source=source,
                    state="stopped",
                    at_us=now_us(),
                    by=self.services.agent,
                    problems=(problem,),
                )
            )
        except DeliveryFailed as error:
            _log.error("%s", error)

    def _pulse(self) -> None:
        try:
            while not self._stop.wait(beat_s(self._settings.agent.lease_s)):
                if self.keeper.failure is not None:
                    raise self.keeper.failure
                if not self.processes.alive:
                    raise RuntimeError("the thread that keeps the children has died")
                self._publisher.publish(self._health("running"))
        except DeliveryFailed as error:
            self.loop.give_up(error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: an agent whose heart has stopped must not go on
            _log.exception("the heartbeat met a defect")
            self.loop.give_up(error)

    def _schedule(self) -> None:
        try:
            self.scheduler.run()
        except StreamError as error:
            self.loop.give_up(error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: an agent that lets schedules pass must not go on
            _log.exception("the scheduler met a defect")
            self.loop.give_up(error)

    def _health(self, state: str) -> HealthReported:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return HealthReported(
            agent=self.services.agent,
            source="",
            state=state,
            at_us=now_us(),
            figures={
                **self.processes.figures(),
                **self.loop.figures(),
                "sources": float(len(self.services.sources.all())),
                "memory_max_bytes": float(memory),
            },
        )


def sole(data_dir: Path) -> TextIO:
    """Keep the returned file open: while it is, no other agent of this site runs on this machine.

    Raises `AgentError` (`agent-running`).
    """
    file = (data_dir / "agent.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise AgentError(
            "agent-running", f"another agent runs on {data_dir}", "one is enough: `holdfast status` shows it"
        ) from None
    return file


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m agents", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    config: Path = arguments.config.absolute()
    try:
        settings = load(config, os.environ)
        with sole(settings.data_dir):
            return Agent(settings, config, stop).run()
    except AgentError as error:
        _log.error("%s", error)
        return EXIT_UNFIT
    except StreamError as error:
        _log.error("%s", error)
        return EXIT_UNFIT if error.code.startswith(("settings-", "secret-", "site-key-")) else EXIT_LOG


if __name__ == "__main__":
    sys.exit(main())
