"""Reading the source on while Kafka is away: a thread that fills the spool, and when it runs.

    Kafka takes nothing for `AWAY_S` seconds  →  the thread opens the source after the last step that is known to be in the
    log, and appends what comes; a full spool leaves the rest at the source, as if there were none
    Kafka is back  →  an epoch is claimed as always; the spool is placed after the log's last step and drained, while the
    thread reads on; once it is empty the thread ends, the spool is dropped, and capture goes on with the thread's connection

What stops capture for good is not this thread's to say: it ends, the spool is drained, and capture itself meets the same.

And if we die here? What the spool then holds is `spool`'s business; the next run goes on reading after its end at once.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Literal

from agents.capture.records import Standing, steps_of
from agents.capture.spool import Spool, folder_of
from agents.capture.takeover import prove
from agents.errors import AgentError, SourceUnavailable
from agents.protocol import Source, Stream
from streams.capture_record import Sealer
from streams.ids import now_us

AWAY_S = 5.0
LIMIT = 900_000  # bytes of payload in a frame, as in a record
_FLUSH_BYTES = 4 << 20
_TURN_S = 0.2
_LONGEST_PAUSE_S = 10.0
_LONGEST_PATIENCE_S = 120.0
_log = logging.getLogger("holdfast.capture")

State = Literal["idle", "reading", "full", "source-unreachable", "stopped"]


def open_spool(data_dir: Path, source: Source, sealer: Sealer, limit: int) -> Spool | None:
    """The spool of `source`, where there is to be one and it can be had."""
    if limit <= 0:
        return None
    name = source.settings.source
    try:
        return Spool(folder_of(data_dir, name), name, sealer, limit, source.events_in)
    except OSError as error:
        _log.warning("%s: captured without a spool: %s", name, error)
        return None


class Spooling:
    """The spool and the thread that fills it. `start`, `stop` from one thread; figures from any."""

    def __init__(self, source: Source, spool: Spool) -> None:
        self.spool = spool
        self.state: State = "idle"
        self.patience_s = AWAY_S
        self._away_at = 0.0
        self._source = source
        self.name = source.settings.source
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._reader: Stream | None = None  # while no thread runs: stands at the end of the spool

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def active(self) -> bool:
        """There is something in the spool, or will be."""
        return self.running or self.spool.end is not None

    def away(self) -> None:
        """Kafka took nothing for `patience_s` seconds."""
        self._away_at = time.monotonic()

    def answered(self) -> None:
        """Kafka has answered. One that was there all the time is slow, not away: next time there is more patience."""
        if self._away_at:
            slow = time.monotonic() - self._away_at < AWAY_S
            self.patience_s = min(2 * self.patience_s, _LONGEST_PATIENCE_S) if slow else AWAY_S
            self._away_at = 0.0

    def start(self, lineage: str = "", standing: Standing | None = None) -> None:
        """Read the source after the end of the spool, or where there is none after `standing`. Running already: nothing."""
        if self.running:
            return
        try:
            if self.spool.end is None:
                if standing is None:
                    return
                self.spool.begin(lineage, standing)
        except OSError as error:
            _log.warning("%s: cannot spool: %s", self.name, error)
            return
        at = self.spool.end
        assert at is not None
        _log.warning("%s: spooling after step %d (%d bytes so far)", self.name, at.ordinal, self.spool.size)
        self._end.clear()
        self.state = "reading"
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """End the thread, keep its connection; whole steps that it has read are in the spool, and count."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self.state = "idle"
        if self.spool.end is not None:
            self.spool.sync()
            self.spool.cut()

    def reader(self) -> Stream | None:
        """The connection that stands where the spool ended, if there is one; whoever takes it closes it."""
        reader, self._reader = self._reader, None
        return reader

    def stop(self) -> None:
        """End the thread and its connection."""
        self.pause()
        reader = self.reader()
        if reader is not None:
            reader.close()

    def drop(self, why: str) -> None:
        """End, and forget what is spooled."""
        self.stop()
        if self.spool.end is not None:
            _log.log(
                logging.WARNING if why else logging.INFO, "%s: the spool is dropped; %s", self.name, why or "empty"
            )
            self.spool.drop()

    def close(self) -> None:
        self.stop()
        self.spool.close()

    def _run(self) -> None:
        pause = _TURN_S
        while not self._end.is_set():
            before = self.spool.end
            try:
                self._read()
            except SourceUnavailable as error:
                self.state = "source-unreachable"
                _log.warning("%s: spooling: %s", self.name, error)
                self.spool.cut()
                pause = _TURN_S if self.spool.end != before else min(pause * 2, _LONGEST_PAUSE_S)
                self._end.wait(pause)
            except (AgentError, OSError) as error:
                self.state = "stopped"
                _log.error("%s: spooling ends: %s", self.name, error)
                return

    def _read(self) -> None:
        """One connection to the source, until asked to end; then it is kept if nothing that it gave is missing."""
        at = self.spool.end
        assert at is not None
        reader, kept = self.reader(), True
        if reader is None:
            reader = self._source.open(at.before, LIMIT, proof=at.after)
            kept = at.proof is None
        try:
            if not kept and not prove(reader, at, self._end):
                return
            self.state = "reading"
            whole = True
            while not self._end.is_set():
                whole = self._take(reader, whole)
            if whole:
                self._reader, reader = reader, None
        finally:
            if reader is not None:
                reader.close()

    def _take(self, reader: Stream, whole: bool) -> bool:
        """Append what comes next. Whether the spool now ends with a whole step and with all that `reader` gave."""
        taken = reader.take(_TURN_S)
        if taken is None:
            self.spool.sync()
            return whole
        read_us = now_us()
        if not self.spool.append(taken, read_us):
            _log.warning("%s: the spool is full (%d bytes); the rest waits at the source", self.name, self.spool.size)
            self.spool.sync()
            self.state = "full"
            while not self.spool.append(taken, read_us):
                if self._end.wait(_TURN_S):
                    return False
            self.state = "reading"
        if self.spool.unsynced > _FLUSH_BYTES or not reader.behind:
            self.spool.sync()
        return steps_of(taken) > 0
