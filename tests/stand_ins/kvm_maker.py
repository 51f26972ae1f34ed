"""A node that makes a machine on a KVM host and dies over it: `python -P -m tests.stand_ins.kvm_maker` with a request as JSON on
standard input: {url, job, name, native: whose description, size}. Where it dies is HOLDFAST_FAILPOINT's."""

from __future__ import annotations

import json
import sys

from agents.machines import DiskWanted, HostSettings, MachineWanted
from agents.platforms.kvm import host


def main() -> None:
    asked = json.load(sys.stdin)
    at = host(HostSettings("kvm", "kvm", asked["url"]))
    description = at.machine(asked["native"]).description
    at.create(MachineWanted(asked["name"], description, (DiskWanted("vda", asked["size"]),)), job=asked["job"])


if __name__ == "__main__":
    main()
