"""Network block devices: what hypervisors hand out the bytes of disks by. `wire`: the protocol, pure; `client`: connections."""
