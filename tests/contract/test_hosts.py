"""What every platform of hosts keeps (`agents.machines`), tried on each of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.errors import AgentError, SourceUnavailable
from agents.machines import DiskWanted, Host, MachineWanted, NicSeen, Wanted
from tests.contract.hosts import (
    HostGround,
    MemoryGround,
    changed_bytes,
    kept,
    patched,
    read_whole,
    snapshot_of,
    the_disk,
)
from tests.stack.kvm import KvmGround, LibvirtServer, why_not
from tests.stack.servers import started

SIZE = 8 << 20
K = 64 << 10


@pytest.fixture(scope="module")
def libvirt_server() -> Iterator[LibvirtServer]:
    with started(LibvirtServer, "kvm", why_not()) as running:
        yield running


@pytest.fixture(params=["memory", "kvm"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostGround]:
    if request.param == "memory":
        yield MemoryGround(tmp_path / "host")
        return
    kvm = KvmGround(request.getfixturevalue("libvirt_server"))
    try:
        yield kvm
    finally:
        kvm.clear()


@pytest.fixture
def host(ground: HostGround) -> Host:
    return ground.host()


def some(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def marks_of(host: Host, native: str) -> set[str]:
    return {found.name for found in host.leftovers() if found.native == native and found.kind == "mark"}


# Discovery


def test_machines_are_found_with_their_disks(ground: HostGround, host: Host) -> None:
    shop = ground.add("shop", {"vda": SIZE, "vdb": 1 << 20}, untracked=["vdb"])
    idle = ground.add("idle", {"vda": 1 << 20}, running=False)
    found = {seen.native: seen for seen in host.discover()}
    assert found[shop].name == "shop"
    assert found[idle].power == "off"
    assert found[shop].power != "off"
    disks = {disk.disk: disk for disk in found[shop].disks}
    assert {name: disk.size for name, disk in disks.items()} == {"vda": SIZE, "vdb": 1 << 20}
    assert disks["vda"].tracked
    assert not disks["vdb"].tracked
    assert found[shop].description
    assert found[shop].cpus > 0
    assert found[shop].memory >= 1 << 20
    assert host.machine(idle).name == "idle"


def test_a_machine_that_is_not_there_is_unknown(ground: HostGround, host: Host) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(AgentError) as refused:
        host.machine(nobody)
    assert refused.value.code == "machine-unknown"
    with pytest.raises(AgentError) as refused:
        host.snapshot([Wanted(nobody)], job="j1")
    assert refused.value.code == "machine-unknown"


def test_a_disk_that_is_not_there_is_unknown_and_nothing_is_left(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 1 << 20})
    with pytest.raises(AgentError) as refused:
        host.snapshot([Wanted(native, ("vdz",))], job="j1")
    assert refused.value.code == "disk-unknown"
    assert not [found for found in host.leftovers() if found.native == native]


# Snapshots


@pytest.mark.parametrize("running", [True, False])
def test_a_snapshot_is_the_disk_as_it_was(ground: HostGround, host: Host, running: bool) -> None:
    native = ground.add("shop", {"vda": SIZE, "vdb": 1 << 20}, untracked=["vdb"], running=running)
    if running:
        ground.write(native, "vda", 3 * K + 17, some(1, 5 * K))
        ground.write(native, "vdb", 0, some(2, 100_000))
    before = {disk: ground.content(native, disk) for disk in ("vda", "vdb")}
    with snapshot_of(host, native, "j1") as snapshot:
        if running:
            ground.write(native, "vda", 0, some(3, 2 * K))
            ground.write(native, "vda", 4 * K, some(4, 20 * K))
            ground.write(native, "vdb", 50_000, some(5, 100_000))
        for name, content in before.items():
            disk = the_disk(snapshot, name)
            assert read_whole(disk) == content
            everything = bytearray(disk.seen.size)
            disk.read_into(0, memoryview(everything))
            assert everything == content, "what is said to be zeros reads as something else"
        assert the_disk(snapshot, "vda").mark
        assert not the_disk(snapshot, "vdb").mark, "nothing keeps track of it"


def test_what_was_never_written_need_not_be_read(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 256 << 20})
    ground.write(native, "vda", 100 << 20, some(1, K))
    with snapshot_of(host, native, "j1") as snapshot:
        data = sum(length for _, length, kind in the_disk(snapshot).extents() if kind == "data")
    assert K <= data <= 4 << 20


def test_several_threads_read_at_once(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, SIZE))
    content = ground.content(native, "vda")
    with snapshot_of(host, native, "j1") as snapshot:
        disk = the_disk(snapshot)
        wrong: list[object] = []

        def read(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(40):
                offset = rng.randrange(SIZE)
                buffer = bytearray(rng.randrange(1, min(300_000, SIZE - offset) + 1))
                try:
                    disk.read_into(offset, memoryview(buffer))
                except AgentError as error:
                    wrong.append(error)
                    return
                if buffer != content[offset : offset + len(buffer)]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_chosen_disks_only(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 1 << 20, "vdb": 1 << 20})
    with snapshot_of(host, native, "j1", disks=["vdb"]) as snapshot:
        assert [disk.seen.disk for disk in snapshot.machines[0].disks] == ["vdb"]


# Changes


def test_since_a_mark_all_that_changed_is_in_the_extents(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 64 << 20})
    ground.write(native, "vda", 0, some(1, 6 << 20))
    mark, content = kept(host, native, "j1")
    rng = random.Random(7)
    for round_ in range(3):
        for _ in range(5):
            ground.write(native, "vda", rng.randrange((64 << 20) - 4096), some(rng.randrange(1 << 30), 4096))
        ground.write(native, "vda", (1 + round_) << 20, bytes(K))
        with snapshot_of(ground.host(), native, f"j{round_ + 2}", since={"vda": mark}) as snapshot:
            disk = the_disk(snapshot)
            assert disk.since == mark
            assert not disk.why_whole
            assert read_whole(disk) == ground.content(native, "vda")
            content = patched(content, disk)
            assert changed_bytes(disk) <= 24 * K
            snapshot.keep({})
            mark = disk.mark
        assert content == ground.content(native, "vda")
    assert marks_of(host, native) == {mark}


def test_nothing_changed_is_nothing_to_read(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, _ = kept(host, native, "j1")
    with snapshot_of(host, native, "j2", since={"vda": mark}) as snapshot:
        assert changed_bytes(the_disk(snapshot)) == 0


def test_a_mark_that_is_needed_yet_is_asked_again(ground: HostGround, host: Host) -> None:
    """As a differential does: twice since the same mark."""
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    full, content = kept(host, native, "j1")
    for round_ in (2, 3):
        ground.write(native, "vda", round_ * 10 * K, some(round_, K))
        with snapshot_of(host, native, f"j{round_}", since={"vda": full}) as snapshot:
            assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")
            snapshot.keep({native: [full]})
    assert full in marks_of(host, native)
    ground.write(native, "vda", 50 * K, some(9, K))
    with snapshot_of(host, native, "j4", since={"vda": full}) as snapshot:
        assert changed_bytes(the_disk(snapshot)) == 3 * K
        snapshot.keep({})
    assert full not in marks_of(host, native)


def test_a_snapshot_that_was_not_kept_never_was(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, content = kept(host, native, "j1")
    ground.write(native, "vda", 10 * K, some(2, K))
    with snapshot_of(host, native, "j2", since={"vda": mark}) as snapshot:
        ground.write(native, "vda", 20 * K, some(3, K))
        snapshot.close()
    assert marks_of(host, native) == {mark}
    ground.write(native, "vda", 30 * K, some(4, K))
    with snapshot_of(host, native, "j3", since={"vda": mark}) as snapshot:
        assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")


def test_a_job_that_died_leaves_what_is_found_and_forgets_nothing(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, content = kept(host, native, "j1")
    ground.write(native, "vda", 10 * K, some(2, K))
    ground.host().snapshot([Wanted(native, since={"vda": mark})], job="j-2", quiesce="off")  # and nothing more
    ground.write(native, "vda", 20 * K, some(3, K))
    later = ground.host()
    left = [found for found in later.leftovers() if found.native == native and found.job == "j-2"]
    assert {found.kind for found in left} >= {"snapshot", "mark"}
    for found in left:
        later.remove(found)
        later.remove(found)
    assert not [found for found in later.leftovers() if found.job == "j-2"]
    ground.write(native, "vda", 30 * K, some(4, K))
    with snapshot_of(later, native, "j3", since={"vda": mark}) as snapshot:
        assert the_disk(snapshot).since == mark
        assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")


def test_a_job_that_runs_again_clears_up_after_itself(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, content = kept(host, native, "j1")
    first = ground.host().snapshot([Wanted(native, since={"vda": mark})], job="j2", quiesce="off")
    earlier = the_disk(first).mark
    ground.write(native, "vda", 20 * K, some(3, K))
    with snapshot_of(ground.host(), native, "j2", since={"vda": mark}) as snapshot:
        assert the_disk(snapshot).mark != earlier, "the two are marks of different moments"
        assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")
        snapshot.keep({})
        assert marks_of(host, native) == {the_disk(snapshot).mark}


def test_another_job_of_ours_finds_the_machine_busy(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    content = ground.content(native, "vda")
    with snapshot_of(host, native, "j1") as snapshot:
        with pytest.raises(AgentError) as refused:
            ground.host().snapshot([Wanted(native)], job="j2")
        assert refused.value.code == "machine-busy"
        assert read_whole(the_disk(snapshot)) == content


def test_an_unknown_mark_means_the_whole_disk_and_why(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE, "vdb": 1 << 20}, untracked=["vdb"])
    ground.write(native, "vda", 0, some(1, K))
    since = {"vda": "holdfast-nobody-00000000", "vdb": "holdfast-nobody-00000000"}
    with snapshot_of(host, native, "j1", since=since) as snapshot:
        for name in ("vda", "vdb"):
            disk = the_disk(snapshot, name)
            assert disk.why_whole
            assert read_whole(disk) == ground.content(native, name)


def test_lost_tracking_is_said_and_kept_again_from_then_on(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, _ = kept(host, native, "j1")
    ground.write(native, "vda", 10 * K, some(2, K))
    ground.lose_tracking(native, "vda")
    with snapshot_of(ground.host(), native, "j2", since={"vda": mark}) as snapshot:
        disk = the_disk(snapshot)
        assert disk.why_whole
        content = read_whole(disk)
        assert content == ground.content(native, "vda")
        assert disk.mark
        snapshot.keep({})
        mark = disk.mark
    ground.write(native, "vda", 20 * K, some(3, K))
    with snapshot_of(ground.host(), native, "j3", since={"vda": mark}) as snapshot:
        assert the_disk(snapshot).since == mark
        assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")


def test_a_disk_that_grew(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, K))
    mark, content = kept(host, native, "j1")
    if not ground.grows:
        pytest.skip("this platform refuses to")
    ground.resize(native, "vda", 2 * SIZE)
    ground.write(native, "vda", SIZE + K, some(2, K))
    with snapshot_of(ground.host(), native, "j2", since={"vda": mark}) as snapshot:
        disk = the_disk(snapshot)
        assert disk.seen.size == 2 * SIZE
        assert (patched(content, disk) if disk.since else read_whole(disk)) == ground.content(native, "vda")


# Others, several, none


def test_somebody_elses_backup_is_left_alone(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    with ground.others_backup(native):
        with pytest.raises(AgentError) as refused:
            host.snapshot([Wanted(native)], job="j1")
        assert refused.value.code == "machine-busy"
        assert not [found for found in host.leftovers() if found.native == native]
    kept(host, native, "j2")


def test_several_machines_at_one_moment(ground: HostGround, host: Host) -> None:
    first, second = ground.add("web", {"vda": SIZE}), ground.add("db", {"vda": SIZE})
    ground.write(first, "vda", 0, some(1, K))
    ground.write(second, "vda", 0, some(2, K))
    snapshot = host.snapshot([Wanted(first), Wanted(second)], job="j1", quiesce="off")
    try:
        assert [machine.seen.name for machine in snapshot.machines] == ["web", "db"]
        for native, machine in zip((first, second), snapshot.machines, strict=True):
            assert read_whole(machine.disks[0]) == ground.content(native, "vda")
        snapshot.keep({})
    finally:
        snapshot.close()
    assert marks_of(host, first)
    assert marks_of(host, second)


def test_of_several_all_or_none(ground: HostGround, host: Host) -> None:
    first, second = ground.add("web", {"vda": SIZE}), ground.add("db", {"vda": SIZE})
    with ground.others_backup(second):
        with pytest.raises(AgentError) as refused:
            host.snapshot([Wanted(first), Wanted(second)], job="j1", quiesce="off")
        assert refused.value.code == "machine-busy"
        assert not [found for found in host.leftovers() if found.native == first]


def test_quiescing_can_be_required(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE}, guest_agent=False)
    with pytest.raises(AgentError) as refused:
        host.snapshot([Wanted(native)], job="j1", quiesce="require")
    assert refused.value.code == "quiesce-failed"
    assert not [found for found in host.leftovers() if found.native == native]
    snapshot = host.snapshot([Wanted(native)], job="j1", quiesce="try")
    try:
        machine = snapshot.machines[0]
        assert machine.consistency == "crash"
        assert [problem.code for problem in machine.problems] == ["quiesce-failed"]
    finally:
        snapshot.close()


def test_a_quiesced_snapshot_says_so(ground: HostGround, host: Host) -> None:
    if not ground.quiesces:
        pytest.skip("the guests of this ground are not there")
    native = ground.add("shop", {"vda": SIZE})
    snapshot = host.snapshot([Wanted(native)], job="j1", quiesce="require")
    try:
        assert snapshot.machines[0].consistency == "files"
    finally:
        snapshot.close()


def test_a_host_that_cannot_be_reached(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    mark, content = kept(host, native, "j1")
    ground.write(native, "vda", K, some(2, K))
    with ground.interrupted():
        for call in (
            lambda: list(ground.host().discover()),
            lambda: ground.host().snapshot([Wanted(native)], job="j2"),
        ):
            with pytest.raises(SourceUnavailable):
                call()
    with snapshot_of(ground.host(), native, "j3", since={"vda": mark}) as snapshot:
        assert patched(content, the_disk(snapshot)) == ground.content(native, "vda")


# The other way


def test_a_machine_is_made_filled_and_started(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE, "vdb": 1 << 20}, untracked=["vdb"])
    seen = host.machine(native)
    wanted = MachineWanted(
        "shop-again",
        seen.description,
        (DiskWanted("vda", SIZE), DiskWanted("vdb", 1 << 20)),
        dict(seen.companions),
        cpus=3,
        memory=512 << 20,
        nics=(NicSeen("", seen.nics[0].network if seen.nics else "", seen.nics[0].model if seen.nics else ""),),
    )
    made = host.create(wanted, job="j1")
    assert made.native != native
    assert (made.name, made.power, made.cpus, made.memory) == ("shop-again", "off", 3, 512 << 20)
    assert {disk.disk: disk.size for disk in made.disks} == {"vda": SIZE, "vdb": 1 << 20}
    assert len(made.nics) == 1
    assert made.nics[0].mac
    assert made.nics[0].mac not in {nic.mac for nic in seen.nics}
    assert made.restoring == "j1"
    assert [found.kind for found in host.leftovers() if found.native == made.native] == ["machine"]
    content = bytearray(SIZE)
    for disk in ("vda", "vdb"):
        target = host.open_disk(made.native, disk, job="j1")
        try:
            assert target.blank
            assert target.size == (SIZE if disk == "vda" else 1 << 20)
            first = bytearray(b"?" * 4096)
            target.read_into(8192, memoryview(first))
            assert not any(first)
            data = some(5, 3 * K)
            target.write(K, data)
            target.write(10 * K, bytearray(some(6, 512)))
            target.zero(2 * K, 512)
            target.flush()
            got = bytearray(3 * K)
            target.read_into(K, memoryview(got))
            content[K : 4 * K], content[10 * K : 10 * K + 512] = data, some(6, 512)
            content[2 * K : 2 * K + 512] = bytes(512)
            assert got == content[K : 4 * K]
        finally:
            target.close()
            target.close()
    assert ground.content(made.native, "vda") == content
    assert ground.content(made.native, "vdb") == content[: 1 << 20]
    assert host.machine(made.native).restoring == "j1"
    host.settle(made.native)
    host.settle(made.native)
    assert not host.machine(made.native).restoring
    assert not [found for found in host.leftovers() if found.native == made.native]
    for _ in range(2):
        host.start(made.native)
        assert host.machine(made.native).power != "off"
    with pytest.raises(AgentError) as refused:
        host.open_disk(made.native, "vda", job="j1")
    assert refused.value.code == "machine-running"
    with pytest.raises(AgentError) as refused:
        host.delete(made.native)
    assert refused.value.code == "machine-running"
    for _ in range(2):
        host.stop(made.native)
        assert host.machine(made.native).power == "off"


def test_a_name_is_given_once(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 1 << 20})
    wanted = MachineWanted("shop", host.machine(native).description, (DiskWanted("vda", 1 << 20),))
    with pytest.raises(AgentError) as refused:
        host.create(wanted, job="j1")
    assert refused.value.code == "machine-exists"
    assert [seen.native for seen in host.discover()] == [native]


def test_a_machine_takes_the_identity_of_one_that_is_gone(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 1 << 20}, running=False)
    seen = host.machine(native)
    with pytest.raises(AgentError) as refused:
        host.create(MachineWanted("other", seen.description, (DiskWanted("vda", 1 << 20),), native=native), job="j1")
    assert refused.value.code == "machine-exists"
    host.delete(native)
    host.delete(native)
    with pytest.raises(AgentError) as refused:
        host.machine(native)
    assert refused.value.code == "machine-unknown"
    made = host.create(MachineWanted("shop", seen.description, (DiskWanted("vda", 1 << 20),), native=native), job="j1")
    assert made.native == native
    assert [nic.mac for nic in made.nics] == [nic.mac for nic in seen.nics]
    host.delete(native)
    assert list(host.discover()) == []


def test_what_a_dead_restore_made_is_found_and_goes(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": 1 << 20})
    made = host.create(
        MachineWanted("half", host.machine(native).description, (DiskWanted("vda", 1 << 20),)), job="j-7"
    )
    left = [found for found in ground.host().leftovers() if found.job == "j-7"]
    assert {(found.native, found.kind) for found in left} == {(made.native, "machine")}
    for found in left:
        ground.host().remove(found)
        ground.host().remove(found)
    assert [seen.native for seen in host.discover()] == [native]


def test_overwriting_a_disk_needs_the_machine_off_and_its_marks_go(ground: HostGround, host: Host) -> None:
    native = ground.add("shop", {"vda": SIZE})
    ground.write(native, "vda", 0, some(1, 2 * K))
    mark, content = kept(host, native, "j1")
    with pytest.raises(AgentError) as refused:
        host.open_disk(native, "vda", job="j2")
    assert refused.value.code == "machine-running"
    ground.turn_off(native)
    with pytest.raises(AgentError) as refused:
        host.open_disk(native, "vdz", job="j2")
    assert refused.value.code == "disk-unknown"
    reading = host.read_disk(native, "vda")
    try:
        got = bytearray(SIZE)
        reading.read_into(0, memoryview(got))
        assert got == content
        with pytest.raises(AgentError):
            reading.write(0, b"?" * 512)
    finally:
        reading.close()
    assert marks_of(host, native) == {mark}
    assert not host.machine(native).restoring
    target = host.open_disk(native, "vda", job="j2")
    try:
        assert not target.blank
        assert host.machine(native).restoring == "j2"
        got = bytearray(SIZE)
        target.read_into(0, memoryview(got))
        assert got == content
        target.write(K, some(3, 512))
        target.zero(0, 4096)
        target.flush()
    finally:
        target.close()
    assert not [found for found in host.leftovers() if found.kind == "machine"], (
        "nobody may delete what was there before"
    )
    host.settle(native)
    assert not host.machine(native).restoring
    content = bytes(4096) + content[4096:K] + some(3, 512) + content[K + 512 :]
    assert ground.content(native, "vda") == content
    with snapshot_of(ground.host(), native, "j3", since={"vda": mark}) as snapshot:
        assert the_disk(snapshot).why_whole
        assert read_whole(the_disk(snapshot)) == content
