"""The agent (`python -P -m agents`) that also knows hosts of kind `memory` (`tests.stand_ins.memory_host`): same arguments."""

from __future__ import annotations

import sys

from agents.__main__ import main
from tests.stand_ins.memory_host import registered

if __name__ == "__main__":
    with registered():
        sys.exit(main())
