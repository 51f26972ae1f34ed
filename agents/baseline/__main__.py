"""`python -P -m agents.baseline FOLDER | mariadb --binary-mode`: a baseline as SQL on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agents.baseline.load import statements
from agents.baseline.manifest import verify
from agents.errors import AgentError

_DELIMITER = b"$holdfast$"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m agents.baseline", description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        damaged = verify(arguments.folder)
        if damaged:
            raise AgentError(damaged[0].code, damaged[0].message, damaged[0].hint)
        out = sys.stdout.buffer
        out.write(b"DELIMITER " + _DELIMITER + b"\n")
        for statement in statements(arguments.folder):
            out.write(statement + b"\n" + _DELIMITER + b"\n")
        out.flush()
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
