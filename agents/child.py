"""`python -P -m agents.child PARENT MODULE ARGUMENTS…`: run a module, and die when the process PARENT dies.

With `--exec PROGRAM` in the place of MODULE, a program (the kernel remembers whom to die with across exec).

PR_SET_PDEATHSIG (prctl(2)) makes the kernel kill us when the thread that started us ends, however it ends; a parent that
died before that was set is found by asking who our parent is. On other systems than Linux only the latter is looked at,
once. SIGKILL, for capture and indexer are made to be killed, and one left behind would only be in the next one's way.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
EXIT_ORPHAN = 70


def die_with(parent: int) -> bool:
    """Ask to be killed with our parent; False when process `parent` is not (any more) our parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    if not die_with(parent):
        sys.exit(EXIT_ORPHAN)
    if module == "--exec":
        os.execv(sys.argv[3], sys.argv[3:])
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
