"""`python reaper.py PROGRAM ARGUMENTS…`: runs a daemon and reaps the daemons that it makes.

libvirt waits for QEMU's first process to be gone, which on a machine without a proper first process may take a minute: so we
are the parent that orphans get (PR_SET_CHILD_SUBREAPER, prctl(2)). SIGTERM ends the program and then us; SIGHUP starts it
again after it ended. Knows nothing of what it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = 0
    ending = False

    def start(*_: object) -> None:
        nonlocal program
        program = os.fork()
        if not program:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.execvp(command[0], command)

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(program, signal.SIGTERM)

    start()
    signal.signal(signal.SIGHUP, start)
    signal.signal(signal.SIGTERM, end)
    while True:
        try:
            pid, _ = os.wait()
        except ChildProcessError:
            if ending:
                return
            signal.pause()
            continue
        if pid == program and ending:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
