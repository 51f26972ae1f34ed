"""A node that takes a snapshot of machines of a KVM host and dies over it, or goes on: `python -P -m tests.stand_ins.kvm_taker`
with a request as JSON on standard input: {url, scratch, job, quiesce, wanted: [[native, {disk: mark}]], keep}. Where it dies is
HOLDFAST_FAILPOINT's."""

from __future__ import annotations

import json
import sys

from agents.machines import HostSettings, Wanted
from agents.platforms.kvm import host


def main() -> None:
    asked = json.load(sys.stdin)
    settings = HostSettings("kvm", "kvm", asked["url"], options={"scratch": asked["scratch"]})
    wanted = [Wanted(native, since=since) for native, since in asked["wanted"]]
    snapshot = host(settings).snapshot(wanted, job=asked["job"], quiesce=asked["quiesce"])
    if asked["keep"]:
        snapshot.keep({})
    snapshot.close()


if __name__ == "__main__":
    main()
