"""The agent's children: one capture and one indexer process for every source that is to have them.

What is wanted is said from outside; one thread brings what runs in line with it: starts, stops, and starts again what
died, after a pause that grows while it keeps dying. A child that ends with `EXIT_STOPPED` has said that only a user can
help; it stays down until it is wanted anew. Children die with us (`agents.child`).

Knows nothing of what the children do.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["capture", "index"]
MODULES: Mapping[Role, str] = {"capture": "agents.capture", "index": "agents.capture.index"}
EXIT_STOPPED = 3  # of a child that must not go on: only a user's decision mends it
GRACE_S = 15.0
_TURN_S = 0.1
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_GOOD_LIFE_S = 60.0  # whoever lived that long starts with the first pause again
_log = logging.getLogger("holdfast.processes")

Key = tuple[str, Role]


@dataclass
class _Child:
    wanted: bool = False
    stopped: bool = False  # ended with EXIT_STOPPED
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    asked_at: float = 0.0  # when it was asked to end; 0: it was not
    pause_s: float = _FIRST_PAUSE_S
    due_at: float = 0.0
    starts: int = 0


class Processes:
    """`on_stopped(source, role)` is called from the thread of this object. `command` is for tests."""

    def __init__(
        self,
        config: Path,
        on_stopped: Callable[[str, Role], None] = lambda *_: None,
        command: Callable[[str, Role], list[str]] | None = None,
    ) -> None:
        self._config = config
        self._on_stopped = on_stopped
        self._command = command or self._usual_command
        self._children: dict[Key, _Child] = {}
        self._changed = threading.Condition()
        self._closing = False
        # A child is killed when the thread that started it ends, so one thread starts them all and ends last.
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anybody looks after the children."""
        return self._thread.is_alive()

    def want(self, source: str, roles: frozenset[Role], *, anew: bool = False) -> None:
        """These children of `source` are to run, others not. `anew`: also those that stopped for good."""
        with self._changed:
            for role in MODULES:
                child = self._children.setdefault((source, role), _Child())
                child.wanted = role in roles
                if anew or not child.wanted:
                    child.stopped = False
                    child.pause_s, child.due_at = _FIRST_PAUSE_S, 0.0
            self._changed.notify_all()

    def restart(self, source: str) -> None:
        """Children of `source` that run end in order and are started again; what they were told when they began is stale."""
        with self._changed:
            for (name, role), child in self._children.items():
                if name == source and child.process is not None:
                    self._end((name, role), child, child.process, time.monotonic())
            self._changed.notify_all()

    def running(self, source: str, role: Role) -> bool:
        with self._changed:
            child = self._children.get((source, role))
            return child is not None and child.process is not None

    def pid(self, source: str, role: Role) -> int | None:
        with self._changed:
            child = self._children.get((source, role))
            return child.process.pid if child is not None and child.process is not None else None

    def await_settled(self, source: str, timeout: float = 2 * GRACE_S) -> bool:
        """Wait until nothing of `source` runs that is not wanted; False when the time is over."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while any(
                child.process is not None and not child.wanted
                for (name, _), child in self._children.items()
                if name == source
            ):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, _TURN_S))
            return True

    def figures(self) -> dict[str, float]:
        """For a heartbeat: how many are wanted, run, have stopped for good, and how often any was started."""
        with self._changed:
            children = list(self._children.values())
        return {
            "children_wanted": float(sum(c.wanted for c in children)),
            "children_running": float(sum(c.process is not None for c in children)),
            "children_stopped": float(sum(c.stopped for c in children)),
            "children_started": float(sum(c.starts for c in children)),
        }

    def close(self) -> None:
        """End all children and the thread; returns when they are gone."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _usual_command(self, source: str, role: Role) -> list[str]:
        arguments = ["--config", str(self._config), "--source", source]
        return [sys.executable, "-P", "-m", "agents.child", str(os.getpid()), MODULES[role], *arguments]

    def _run(self) -> None:
        stopped: list[Key] = []
        while True:
            with self._changed:
                for key, child in self._children.items():
                    if self._closing:
                        child.wanted = False
                    if self._turn(key, child):
                        stopped.append(key)
                self._changed.notify_all()
                if self._closing and all(c.process is None for c in self._children.values()):
                    return
            for source, role in stopped:
                self._on_stopped(source, role)
            stopped.clear()
            with self._changed:
                self._changed.wait(_TURN_S)

    def _turn(self, key: Key, child: _Child) -> bool:
        """One look at one child; True when it has stopped for good just now."""
        now = time.monotonic()
        process = child.process
        if process is None:
            if child.wanted and not child.stopped and now >= child.due_at:
                self._start(key, child, now)
            return False
        status = process.poll()
        if status is None:
            if not child.wanted or child.asked_at:
                self._end(key, child, process, now)
            return False
        child.process = None
        asked, child.asked_at = child.asked_at, 0.0
        if not child.wanted or asked:
            return False
        if now - child.started_at > _GOOD_LIFE_S:
            child.pause_s = _FIRST_PAUSE_S
        child.due_at = now + child.pause_s
        child.pause_s = min(2 * child.pause_s, _LONGEST_PAUSE_S)
        child.stopped = status == EXIT_STOPPED
        _log.warning("%s of %s ended with %s%s", key[1], key[0], status, " for good" if child.stopped else "")
        return child.stopped

    def _start(self, key: Key, child: _Child, now: float) -> None:
        command = self._command(*key)
        try:
            # A group of its own: a Ctrl-C at the terminal is for us, who end the children in order.
            child.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
        except OSError as error:
            _log.error("cannot start %s of %s: %s", key[1], key[0], error)
            child.due_at = now + child.pause_s
            return
        child.started_at = now
        child.starts += 1
        _log.info("%s of %s runs as process %d", key[1], key[0], child.process.pid)

    def _end(self, key: Key, child: _Child, process: subprocess.Popen[bytes], now: float) -> None:
        if not child.asked_at:
            child.asked_at = now
            process.send_signal(signal.SIGTERM)
        elif now - child.asked_at > GRACE_S:
            _log.warning("%s of %s did not end within %g s and is killed", key[1], key[0], GRACE_S)
            process.kill()
