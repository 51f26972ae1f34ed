"""Becomes another program: with another user, and with a signal it gets when its parent dies.

Run by its path with `python -I -S`, standard library only, so that it is the same program for any user and starts in
milliseconds. A `preexec_fn` would do the same between fork and exec, where Python promises nothing to a process that
has threads.

    child.py [--uid N --gid N] [--umask OCTAL] [--death-signal N --parent PID] -- PROGRAM ARGUMENT…
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    at = arguments.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--umask", type=lambda text: int(text, 8), default=0o077)
    parser.add_argument("--death-signal", type=int, default=0)
    parser.add_argument("--parent", type=int, default=0)
    options = parser.parse_args(arguments[:at])
    program = arguments[at + 1 :]

    os.umask(options.umask)
    if options.uid is not None:
        os.setgroups([])
        os.setgid(options.gid)
        os.setuid(options.uid)
    # Servers open many files; a shell's limit is often 1024, what the administrator allows far more.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # After the change of user, which clears it. The parent may have died before this line: then nobody will tell us.
    if options.death_signal and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0)
        if options.parent and os.getppid() != options.parent:
            sys.exit(f"{program[0]}: whoever started this is gone")
    # Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except OSError as e:
        sys.exit(f"{program[0]}: {e.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
