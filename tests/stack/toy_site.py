"""A supervisor over small services that do as they are told: `python -P -m tests.stack.toy_site DIR SERVICE…`.

steady      runs until told to end
hurt        is well as long as DIR/well exists
clumsy      ends with status 7 each time until DIR/learnt exists
stubborn    ignores SIGTERM
chatty      writes 256 KiB to its log every 50 ms
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.embedded import supervisor as supervising
from deploy.embedded.packages import Progress
from deploy.embedded.process import Command
from deploy.embedded.stack import Service, Stack, open_stack
from deploy.embedded.supervisor import Supervisor

PROGRAMS = {
    "steady": "import signal; signal.pause()",
    "hurt": "import signal; signal.pause()",
    "clumsy": (
        "import pathlib, signal, sys\n"
        "if not pathlib.Path('learnt').exists(): print('tripped'); sys.exit(7)\n"
        "signal.pause()"
    ),
    "stubborn": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()",
    "chatty": "import time\nwhile True: print('x' * 262144, flush=True); time.sleep(0.05)",
}


def toy(name: str) -> Service:
    def prepare(stack: Stack, _: Progress) -> Command:
        return Command(
            name=name,
            argv=[sys.executable, "-I", "-c", PROGRAMS[name]],
            log_file=stack.logs / f"{name}.log",
            cwd=stack.data_dir,
            stop_timeout=1.0,
            # `stubborn` lives on when its supervisor is killed, as a server that is busy does.
            death_signal=signal.SIGTERM,
        )

    return Service(name, "a toy", "it is as it should be", prepare, _check(name), start_timeout=10)


def _check(name: str) -> Callable[[Stack], str | None]:
    def check(stack: Stack) -> str | None:
        return "it hurts" if name == "hurt" and not (stack.data_dir / "well").exists() else None

    return check


def main() -> int:
    supervising.CHECK_EVERY, supervising.SETTLE, supervising.LOG_LIMIT = 0.2, 0.2, 2 << 20
    stack = open_stack(Path(sys.argv[1]))
    chosen = [toy(name) for name in sys.argv[2:]]
    return Supervisor(stack, chosen, lambda name, what: print(f"{name}: {what}", flush=True), lambda _: None).run()


if __name__ == "__main__":
    sys.exit(main())
