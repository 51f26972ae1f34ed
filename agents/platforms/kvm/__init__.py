"""Hosts with libvirt and QEMU: kind `kvm`, `url` a libvirt URI (docs/guides/kvm-host.md).

library      libvirt's Python binding, from wherever the machine has it
connection   a connection that comes again; errors
description  domain XML, pure
notes        what is noted on domains; names of what we make
seeing       domains as machines
marks        checkpoints
snapshot     backups of libvirt's, in pull mode
watching     guests go on when there is no room for what they overwrite
shell        how ssh is called
reach        how their bytes come here
disks        disks of machines that are off, by qemu-nbd
carrier      the same on another host, by a machine of ours there
storage      files on the host
making       machines made, started, stopped, deleted
"""

from __future__ import annotations

from agents.machines import Host, HostSettings
from agents.platforms.kvm.host import KvmHost


def host(settings: HostSettings) -> Host:
    """Of the registry. Connects to nothing yet."""
    return KvmHost(settings)
