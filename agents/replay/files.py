"""The log files that a stream pretends to come from, as packets: a rotation and a description begin each; places are counted
in them. Knows no steps."""

from __future__ import annotations

from agents.replay import events as made
from agents.replay.wire import framed
from streams.formats.binlog import events as ev


class Files:
    """Used by one thread. `position`: where in file `name` the next event goes; `described`: the format description that
    holds there, as the source wrote it."""

    def __init__(self, server_id: int, *, resumed: bool, sequence: int) -> None:
        """`resumed`: the replica has the beginning of this log already. `sequence`: number of the first packet."""
        self.name = ""
        self.position = 4
        self.described = b""
        self.checksum = True
        self._number = 0
        self._server_id = server_id
        self._resumed = resumed
        self._sequence = sequence

    def begin(self, preamble: bytes | None) -> list[bytes]:
        """Another file, described by `preamble` (None: there is none, because there are no steps)."""
        self._number += 1
        self.name = f"holdfast.{self._number:06d}"
        out = self.put(made.rotate(self.name, server_id=self._server_id, checksum=self.checksum))
        self.position = 4
        if preamble is not None:
            event = made.description(preamble, resumed=self._resumed and not self.described)
            self.described = preamble
            self.checksum = ev.parse_format_description(preamble).has_checksum
            out += self.put(event)
        return out

    def put(self, events: bytes) -> list[bytes]:
        """Whole events."""
        out, self._sequence = framed(events, self._sequence)
        self.position += len(events)
        return out
