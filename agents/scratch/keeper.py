"""Keeps whole scratch copies running until they expire: one thread starts, watches, starts again and removes them.

A copy's server dies with this process and is started again by the next one: whoever was connected connects again. A copy
that does not start is said to have ended, with what its server wrote, and is left on disk for whoever wants to look.

Expiry runs by the monotonic clock while we run; a start takes the wall clock's word, but leaves at least `GRACE_S`. A copy
that somebody is connected to is kept until nobody is: a clock may make a copy live longer, never end it under anyone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents import registry
from agents.errors import AgentError
from agents.scratch import folder as folders
from agents.scratch.engine import Server
from agents.scratch.folder import Copy
from streams.events import Problem, ScratchChanged
from streams.ids import now_us

GRACE_S = 60.0
_TURN_S = 0.2
_LOOK_S = 2.0
_STARTS = 3
_log = logging.getLogger("holdfast.scratch-copies")


@dataclass
class _Kept:
    copy: Copy
    folder: Path
    server: Server
    due: float | None  # monotonic
    failures: int = 0
    ready: bool = False  # it was started, and let us in
    next_look: float = 0.0
    dropping: bool = False


class Keeper:
    """`say` publishes an event; it is called from the keeper's thread. Call `start` once, `close` at the end."""

    def __init__(self, data_dir: Path, agent: str, say: Callable[[ScratchChanged], object]) -> None:
        self._data_dir = data_dir
        self._agent = agent
        self._say = say
        self._kept: dict[str, _Kept] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="scratch-copies", daemon=True)

    def start(self) -> None:
        """Take up what is on disk. Whatever is half made is removed: the command that it is for begins anew."""
        folders.clean(self._data_dir)
        for found in folders.whole(self._data_dir):
            try:
                copy = folders.read(found)
            except AgentError as error:
                _log.error("%s", error)
                continue
            self._take(copy, found, GRACE_S)
        self._thread.start()

    def adopt(self, copy: Copy, timeout: float = 180.0) -> Server:
        """Keep a copy that was just made; returns when it runs. Raises `AgentError` (`private-failed`)."""
        folder = folders.parent(self._data_dir) / copy.name
        with self._changed:
            kept = self._kept.get(copy.name) or self._take(copy, folder, 0.0)
            self._changed.notify_all()
            deadline = time.monotonic() + timeout
            while not self._answers(kept):
                if self._kept.get(copy.name) is not kept or time.monotonic() > deadline or self._closing:
                    raise AgentError("private-failed", f"scratch copy {copy.name} does not start: {kept.server.said()}")
                self._changed.wait(_TURN_S)
            return kept.server

    def find(self, name: str) -> Copy | None:
        with self._changed:
            kept = self._kept.get(name)
            return kept.copy if kept is not None else None

    def at(self, source: str, lineage: str, ordinal: int, timeout: float = 60.0) -> str | None:
        """The name of a copy of all of `source` that stands right after that step and will stay for a while. One that is being
        started is waited for."""
        with self._changed:
            deadline = time.monotonic() + timeout
            while True:
                soon = time.monotonic() + 600
                there = [
                    kept
                    for kept in self._kept.values()
                    if (kept.copy.source, kept.copy.lineage, kept.copy.ordinal) == (source, lineage, ordinal)
                    and not kept.copy.tables and not kept.dropping and (kept.due is None or kept.due > soon)
                ]  # fmt: skip
                for kept in there:
                    if self._answers(kept):
                        return kept.copy.name
                if not there or self._closing or time.monotonic() > deadline:
                    return None
                self._changed.wait(_TURN_S)

    @staticmethod
    def _answers(kept: _Kept) -> bool:
        """A process that runs may be one that does not let anybody in yet."""
        return kept.ready and kept.server.alive

    def connect(self, name: str) -> Any:
        """A connection to a copy that runs. Raises `AgentError` (`scratch-unknown`, `scratch-away`)."""
        with self._changed:
            kept = self._kept.get(name)
        if kept is None:
            raise AgentError("scratch-unknown", f"there is no scratch copy {name}", "`holdfast scratch list`")
        if not self._answers(kept):
            raise AgentError("scratch-away", f"scratch copy {name} is being started", "try again in a moment")
        return kept.server.connect(read_timeout=600.0)

    def drop(self, name: str, timeout: float = 120.0) -> bool:
        """Stop and remove it; False when there is none."""
        with self._changed:
            kept = self._kept.get(name)
            if kept is None:
                return False
            kept.dropping = True
            self._changed.notify_all()
            deadline = time.monotonic() + timeout
            while self._kept.get(name) is kept:
                if time.monotonic() > deadline:
                    raise AgentError("scratch-busy", f"scratch copy {name} does not end", "try again")
                self._changed.wait(_TURN_S)
            return True

    def close(self) -> None:
        """End all servers in order; returns when they are gone. Copies stay."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def event(self, copy: Copy, state: str, *, problems: tuple[Problem, ...] = (), size: int = 0) -> ScratchChanged:
        """What is to be said of a copy."""
        folder = folders.parent(self._data_dir) / copy.name
        server = registry.replayer(copy.kind).server(copy.program, folder, copy.variables, copy.port)
        return ScratchChanged(
            lineage=copy.lineage,
            scratch=copy.name,
            source=copy.source,
            state=state,
            ordinal=copy.ordinal,
            position=copy.position,
            tables=copy.tables,
            host="127.0.0.1",
            port=copy.port,
            socket=str(server.socket),
            account=server.account,
            password_file=str(server.password_file),
            expires_us=copy.expires_us,
            size_bytes=size,
            job=copy.job,
            at_us=now_us(),
            by=self._agent,
            problems=problems,
        )

    def _take(self, copy: Copy, folder: Path, least_s: float) -> _Kept:
        due = None
        if copy.expires_us is not None:
            due = time.monotonic() + max(least_s, (copy.expires_us - now_us()) / 1e6)
        server = registry.replayer(copy.kind).server(copy.program, folder, copy.variables, copy.port)
        kept = self._kept[copy.name] = _Kept(copy, folder, server, due)
        return kept

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    if self._closing:
                        break
                    todo = list(self._kept.values())
                for kept in todo:
                    self._turn(kept)
                with self._changed:
                    self._changed.notify_all()
                    if not self._closing:
                        self._changed.wait(_TURN_S)
        except Exception as error:  # noqa: BLE001 - the thread's edge: told to whoever asks for health
            _log.exception("the keeper of scratch copies met a defect")
            self.failure = error
        finally:
            for kept in list(self._kept.values()):
                kept.server.stop()

    def _turn(self, kept: _Kept) -> None:
        now = time.monotonic()
        if kept.dropping:
            self._end(kept, ())
        elif not kept.server.alive:
            self._start(kept)
        elif kept.due is not None and now >= kept.due and now >= kept.next_look:
            kept.next_look = now + _LOOK_S
            if not kept.server.in_use():
                _log.info("scratch copy %s has expired", kept.copy.name)
                self._end(kept, (Problem("scratch-expired", "its time was over"),))

    def _start(self, kept: _Kept) -> None:
        kept.ready = False
        try:
            kept.server.kill()
            moved = not _free(kept.copy.port)
            if moved:
                kept.server.port = free_port()
            kept.server.start()
            kept.failures, kept.ready = 0, True
            kept.next_look = time.monotonic()
            if moved:
                # Somebody else has taken its port while it was down. Only this run knows another.
                kept.copy = replace(kept.copy, port=kept.server.port)
                self._say(self.event(kept.copy, "ready"))
        except AgentError as error:
            kept.failures += 1
            _log.warning("scratch copy %s: %s", kept.copy.name, error)
            if kept.failures >= _STARTS:
                problem = Problem(
                    "scratch-lost", error.message, f"its files are in {kept.folder}; drop it, make another"
                )
                self._forget(kept)
                self._say(self.event(kept.copy, "ended", problems=(problem,)))

    def _end(self, kept: _Kept, problems: tuple[Problem, ...]) -> None:
        """Removed first, then said: a death in between leaves no copy, and the next start says so
        (`agents.scratch.handlers.recover`)."""
        kept.server.stop()
        folders.remove(kept.folder)
        self._forget(kept)
        self._say(self.event(kept.copy, "ended", problems=problems))

    def _forget(self, kept: _Kept) -> None:
        with self._changed:
            self._kept.pop(kept.copy.name, None)
            self._changed.notify_all()


def free_port() -> int:
    """A port of loopback that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
