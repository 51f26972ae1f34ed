"""The stand-in for a host misbehaves as it is told to."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agents import registry
from agents.errors import AgentError, SourceUnavailable
from agents.machines import Wanted
from tests.contract.hosts import changed_bytes, kept, read_whole, snapshot_of, the_disk
from tests.stand_ins.hypervisor import Fault, Hypervisor
from tests.stand_ins.memory_host import MemoryHost, registered


def test_the_kind_is_known_while_registered(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    native = hypervisor.add("shop", {"vda": 1 << 20}, tags=["prod"], folder="/web")
    with registered():
        seen = registry.host(hypervisor.settings("hv1")).machine(native)
        assert (seen.tags, seen.folder) == (("prod",), "/web")
    with pytest.raises(AgentError) as refused:
        registry.host(hypervisor.settings())
    assert refused.value.code == "kind-unknown"


def test_faults_come_at_the_nth_call(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    native = hypervisor.add("shop", {"vda": 1 << 20})
    hypervisor.write(native, "vda", 0, b"data")
    host = MemoryHost(hypervisor.settings(), hypervisor)
    hypervisor.fault(Fault("snapshot", "refuse"), Fault("read", "refuse", nth=2))
    with pytest.raises(AgentError):
        host.snapshot([Wanted(native)], job="j1")
    with snapshot_of(host, native, "j1") as snapshot:
        buffer = bytearray(4)
        the_disk(snapshot).read_into(0, memoryview(buffer))
        assert buffer == b"data"
        with pytest.raises(SourceUnavailable):
            the_disk(snapshot).read_into(0, memoryview(buffer))
        the_disk(snapshot).read_into(0, memoryview(buffer))


def test_a_call_waits_until_it_is_released(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    hypervisor.add("shop", {"vda": 1 << 20})
    host = MemoryHost(hypervisor.settings(), hypervisor)
    hypervisor.fault(Fault("discover", "wait"))
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(host.discover()))
    thread.start()
    assert not found
    hypervisor.release()
    thread.join(60)
    assert len(found) == 1


def test_a_tracking_that_lies(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    native = hypervisor.add("shop", {"vda": 1 << 20})
    host = MemoryHost(hypervisor.settings(), hypervisor)
    mark, _ = kept(host, native, "j1")
    hypervisor.write(native, "vda", 4096, b"unseen", tracked=False)
    with snapshot_of(host, native, "j2", since={"vda": mark}) as snapshot:
        assert changed_bytes(the_disk(snapshot)) == 0
        buffer = bytearray(6)
        the_disk(snapshot).read_into(4096, memoryview(buffer))
        assert buffer == b"unseen"


def test_a_snapshot_that_ends_under_its_reader(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    native = hypervisor.add("shop", {"vda": 1 << 20})
    hypervisor.write(native, "vda", 0, b"data")
    with snapshot_of(MemoryHost(hypervisor.settings(), hypervisor), native, "j1") as snapshot:
        hypervisor.drop_snapshots()
        with pytest.raises(SourceUnavailable):
            read_whole(the_disk(snapshot))


def test_a_host_without_groups(tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path)
    natives = [hypervisor.add(name, {"vda": 1 << 20}) for name in ("web", "db")]
    hypervisor.configure(groups=False)
    with pytest.raises(AgentError) as refused:
        MemoryHost(hypervisor.settings(), hypervisor).snapshot([Wanted(native) for native in natives], job="j1")
    assert refused.value.code == "group-unsupported"
