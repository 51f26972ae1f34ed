"""What only KVM has, on a real libvirt: UEFI's variables, images that keep no bitmaps, disks of the network, block devices;
deaths over a machine that is made. What every platform has is in `tests/contract/test_hosts.py`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agents.machines import DiskWanted, MachineWanted, Wanted
from agents.platforms.kvm.reach import start_child, stop_child, wait_for_socket
from tests.contract.hosts import changed_bytes, patched, read_whole, snapshot_of, the_disk
from tests.stack.devices import loop_device
from tests.stack.kvm import KvmGround, LibvirtServer, domain_xml, run, why_not
from tests.stack.servers import started

SIZE = 4 << 20
OVMF = Path("/usr/share/OVMF")


@pytest.fixture(scope="module")
def server() -> Iterator[LibvirtServer]:
    with started(LibvirtServer, "kvm", why_not()) as running:
        yield running


@pytest.fixture
def ground(server: LibvirtServer) -> Iterator[KvmGround]:
    made = KvmGround(server)
    try:
        yield made
    finally:
        made.clear()


def test_variables_of_uefi_are_in_the_description_and_come_back(server: LibvirtServer, ground: KvmGround) -> None:
    if not (OVMF / "OVMF_CODE_4M.fd").exists():
        pytest.skip("not installed: ovmf")
    variables = bytes(secrets.token_bytes(1024)) + (OVMF / "OVMF_VARS_4M.fd").read_bytes()[1024:]
    nvram = server.images / "shop_VARS.fd"
    nvram.write_bytes(variables)
    server.user.own(nvram)
    native = str(uuid4())
    xml = domain_xml("shop", {"vda": (server.image("shop.qcow2", SIZE, "qcow2"), "qcow2")}, native=native)
    uefi = f"<loader readonly='yes' type='pflash'>{OVMF}/OVMF_CODE_4M.fd</loader><nvram>{nvram}</nvram></os>"
    ground.define(xml.replace("</os>", uefi))
    host = server.host()
    seen = host.machine(native)
    assert seen.firmware == "uefi"
    assert seen.companions == {"nvram": variables}
    made = host.create(
        MachineWanted("again", seen.description, (DiskWanted("vda", SIZE),), dict(seen.companions)), job="j1"
    )
    assert made.companions == {"nvram": variables}
    files = {path.name for path in server.images.iterdir()}
    host.settle(made.native)
    host.start(made.native)
    host.stop(made.native)
    host.delete(made.native)
    assert {path.name for path in server.images.iterdir()} == files - {"again-vda.qcow2", "again-nvram.fd"}
    host.delete(native)
    assert nvram.exists(), "what was not made for a restore is not deleted"


def test_an_image_of_an_old_format_is_read_whole_and_that_is_said(server: LibvirtServer, ground: KvmGround) -> None:
    image = server.images / "old.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", str(image), str(SIZE))
    server.user.own(image)
    native = str(uuid4())
    ground.define(domain_xml("old", {"vda": (image, "qcow2")}, native=native))
    snapshot = server.host().snapshot([Wanted(native)], job="j1")
    try:
        assert [problem.code for problem in snapshot.machines[0].problems] == ["tracking-failed"]
        assert not the_disk(snapshot).mark
        assert read_whole(the_disk(snapshot)) == bytes(SIZE)
        snapshot.keep({})
    finally:
        snapshot.close()
    assert not server.host().leftovers()


def test_a_disk_of_the_network_is_read_whole(server: LibvirtServer, ground: KvmGround) -> None:
    content = secrets.token_bytes(SIZE)
    image, socket = server.images / "far.raw", server.images / "far.sock"
    image.write_bytes(content)
    native = str(uuid4())
    xml = domain_xml("far", {"vda": (image, "raw")}, native=native)
    source = f"<source protocol='nbd' name='far'><host transport='unix' socket='{socket}'/></source>"
    xml = xml.replace("<disk type='file'", "<disk type='network'").replace(f"<source file='{image}'/>", source)
    child = start_child(
        [
            "qemu-nbd",
            f"--socket={socket}",
            "--format=raw",
            "--export-name=far",
            "--persistent",
            "--shared=8",
            str(image),
        ]
    )
    try:
        wait_for_socket(child, socket, "qemu-nbd")
        socket.chmod(0o777)
        domain = ground.define(xml)
        domain.create()
        with snapshot_of(server.host(), native, "j1") as snapshot:
            assert read_whole(the_disk(snapshot)) == content
            assert not the_disk(snapshot).mark
        domain.destroy()
    finally:
        stop_child(child)


def test_block_devices_are_backed_up_by_what_changed_and_overwritten(server: LibvirtServer, ground: KvmGround) -> None:
    """As of a volume manager: one that holds a qcow2, whose changes are kept track of, and one that is the disk itself."""
    formats, sizes = {"vda": "qcow2", "vdb": "raw"}, {"vda": SIZE, "vdb": SIZE}
    host, native = server.host(), str(uuid4())
    with contextlib.ExitStack() as stack:
        places = {}
        for disk, format_ in formats.items():
            file = server.directory / f"{disk}.device"
            file.write_bytes(bytes(SIZE if format_ == "raw" else 2 * SIZE))
            stack.callback(file.unlink)
            device = stack.enter_context(loop_device(file))
            # A name of its own that QEMU's user may open; the one in /dev is root's.
            places[disk] = server.images / disk
            os.mknod(places[disk], stat.S_IFBLK | 0o600, device.stat().st_rdev)
            server.user.own(places[disk])
            if format_ == "qcow2":
                run("qemu-img", "create", "-q", "-f", "qcow2", str(places[disk]), str(SIZE))
        xml = domain_xml("volumes", {disk: (places[disk], formats[disk]) for disk in places}, native=native)
        xml = xml.replace("<disk type='file'", "<disk type='block'").replace("<source file=", "<source dev=")
        ground.define(xml, sizes).create()
        seen = host.machine(native)
        assert {d.disk: (d.size, d.place, d.tracked) for d in seen.disks} == {
            disk: (SIZE, str(places[disk]), disk == "vda") for disk in places
        }
        for disk in places:
            ground.write(native, disk, 1 << 20, secrets.token_bytes(300_000))
        before = {disk: ground.content(native, disk) for disk in places}
        with snapshot_of(host, native, "first") as snapshot:
            for disk, content in before.items():
                ground.write(native, disk, 1 << 20, secrets.token_bytes(4096))
                assert read_whole(the_disk(snapshot, disk)) == content
            mark = the_disk(snapshot, "vda").mark
            assert not the_disk(snapshot, "vdb").mark
            snapshot.keep({})
        with snapshot_of(host, native, "second", since={"vda": mark}) as snapshot:
            assert the_disk(snapshot, "vda").since == mark
            assert changed_bytes(the_disk(snapshot, "vda")) < 300_000
            assert patched(before["vda"], the_disk(snapshot, "vda")) == ground.content(native, "vda")
            assert read_whole(the_disk(snapshot, "vdb")) == ground.content(native, "vdb")
            snapshot.keep({})

        # Back to what they were, and to a machine whose disks are files.
        host.stop(native)
        wanted = tuple(DiskWanted(disk, SIZE, storage=str(server.images)) for disk in places)
        made = host.create(MachineWanted("files", seen.description, wanted), job="restore")
        for machine in (native, made.native):
            for disk, content in before.items():
                target = host.open_disk(machine, disk, job="restore")
                try:
                    target.write(0, content)
                    target.flush()
                finally:
                    target.close()
                assert ground.content(machine, disk) == content
            host.settle(machine)
        assert {d.disk: d.format for d in made.disks} == formats
        for machine in (native, made.native):
            host.delete(machine)
    assert [path.name for path in server.images.iterdir() if path.is_file()] == []


def test_a_mark_of_one_disk_does_not_depend_on_backups_of_another(server: LibvirtServer, ground: KvmGround) -> None:
    native = ground.add("shop", {"vda": SIZE, "vdb": SIZE})
    host = server.host()
    snapshot = host.snapshot([Wanted(native)], job="both", quiesce="off")
    try:
        before = read_whole(the_disk(snapshot, "vdb"))
        mark = the_disk(snapshot, "vdb").mark
        snapshot.keep({})
    finally:
        snapshot.close()
    for number in range(2):
        ground.write(native, "vdb", number << 20, secrets.token_bytes(4096))
        with snapshot_of(host, native, f"vda-{number}", disks=["vda"]) as only:
            only.keep({})
    with snapshot_of(host, native, "vdb", disks=["vdb"], since={"vdb": mark}) as snapshot:
        disk = the_disk(snapshot, "vdb")
        assert disk.since == mark
        assert patched(before, disk) == ground.content(native, "vdb")


@pytest.mark.crash
@pytest.mark.parametrize("failpoint", ["kvm.defined", "kvm.made"])
def test_a_node_that_dies_over_a_machine_leaves_what_goes_with_it(
    server: LibvirtServer, ground: KvmGround, failpoint: str
) -> None:
    native = ground.add("shop", {"vda": SIZE}, running=False)
    files = {path.name for path in server.images.iterdir()}
    request = {"url": server.url, "job": "dead", "name": "half", "native": native, "size": SIZE}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "tests.stand_ins.kvm_maker"],
        input=json.dumps(request),
        text=True,
        env={**os.environ, "HOLDFAST_FAILPOINT": failpoint},
        timeout=300,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    host = server.host()
    (left,) = host.leftovers()
    assert (left.job, left.kind, left.name) == ("dead", "machine", "half")
    assert host.machine(left.native).restoring == "dead"
    assert ({path.name for path in server.images.iterdir()} == files) == (failpoint == "kvm.defined")
    host.remove(left)
    assert {path.name for path in server.images.iterdir()} == files
    assert [seen.native for seen in host.discover()] == [native]
