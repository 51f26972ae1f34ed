"""Machines on another host, by ssh and by TLS, with real daemons: found, backed up, restored there and brought home, by the
command line. The agent sees nothing of the host's file system (`tests.stack.remote`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded.process import wait_until
from tests.stack.guest import NoGuest, check, files_in, guest
from tests.stack.kvm import said
from tests.stack.remote import FarLibvirt, why_not
from tests.stack.running_api import eventually
from tests.stack.running_site import RunningSite, running_site
from tests.stack.servers import KafkaServer, PostgresServer, started

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
M = 1 << 20


@pytest.fixture(scope="module")
def far() -> Iterator[FarLibvirt]:
    with started(FarLibvirt, "far", why_not()) as running:
        yield running


@pytest.fixture(scope="module")
def site(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    with running_site(kafka, postgres, "far-site") as running:
        eventually(lambda: running.run("repository", "list").returncode == 0)
        vault = running.settings.data_dir / "vault"
        vault.mkdir()
        running.cli("repository", "add", "vault", str(vault), "--no-encryption")
        yield running


class Written:
    """What stands on the disks of a machine."""

    def __init__(self, far: FarLibvirt, native: str, sizes: dict[str, int]) -> None:
        self.far, self.native = far, native
        self.disks = {disk: bytearray(size) for disk, size in sizes.items()}

    def write(self, disk: str, offset: int, length: int, byte: int) -> None:
        self.far.write(self.native, disk, offset, length, byte)
        self.disks[disk][offset : offset + length] = bytes([byte]) * length

    def now(self) -> dict[str, bytes]:
        return {disk: bytes(content) for disk, content in self.disks.items()}


@pytest.mark.parametrize("way", ["tls", "ssh"])
def test_machines_of_another_host_are_backed_up_and_restored(
    far: FarLibvirt, site: RunningSite, tmp_path: Path, way: str
) -> None:
    name = f"shop-{way}"
    native = far.add(name, {"vda": (16 * M, "qcow2"), "vdb": (2 * M, "raw")})
    shop = Written(far, native, {"vda": 16 * M, "vdb": 2 * M})
    shop.write("vda", 65_536, 3 * M, 1)
    shop.write("vdb", 0, M, 2)
    url = far.tls_url if way == "tls" else far.ssh_url
    options = [word for option in far.options.items() for word in ("--option", "=".join(option))]
    site.cli("host", "add", way, "--url", url, *options)
    assets = {a["asset"]: a for a in eventually(lambda: _assets(site, way))}
    assert assets[name]["native"] == native
    if far.isolated:
        assert not far.images.exists(), "the agent would see the disks"

    def back_up() -> dict[str, Any]:
        (job,) = site.json("backup", "machine", name, "--to", "vault")["jobs"]
        (point,) = job["result"]["points"]
        return dict(point)

    first, first_content = back_up(), shop.now()
    shop.write("vda", 9 * M, 65_536, 3)
    shop.write("vdb", M, 4096, 4)
    second, second_content = back_up(), shop.now()
    assert set(second["whole"]) == {"vdb"}, "of the tracked disk only what changed is read"
    assert second["changed"] <= 4 * 65_536

    to = tmp_path / "files"
    site.cli("restore", "files", second["point"], "--to", str(to), "--format", "raw")
    assert {path.stem: path.read_bytes() for path in to.glob("*.raw")} == second_content

    # A new machine over there, while the old one runs.
    site.cli("restore", "machine", second["point"], "--host", way, "--name", f"copy-{way}")
    for disk, format_ in (("vda", "qcow2"), ("vdb", "raw")):
        made = far.images / f"copy-{way}-{disk}.{format_}"
        assert far.content(made, format_) == second_content[disk]

    # The old one, overwritten with what it was; by ssh the agent dies over it and is started again.
    shop.write("vda", 12 * M, M, 5)
    asked = ["restore", "original", first["point"], "--stop", "--yes"]
    host = far.host(url)
    if way == "tls":
        site.cli(*asked)
    else:
        job = str(site.json(*asked, "--bandwidth", "256K", "--no-wait")["job"])
        assert wait_until(lambda: bool(_carriers(far)), 120), site.json("job", "show", job)
        site.kill("agent")
        assert wait_until(lambda: not _carriers(far), 120), "libvirt ends what nobody holds on to"
        assert host.machine(native).restoring == job
        site.start("agent")
        eventually(lambda: site.json("job", "show", job)["state"] in ("finished", "failed"), patience_s=240)
        ended = site.json("job", "show", job)
        assert ended["state"] == "finished", ended
    for disk, format_ in (("vda", "qcow2"), ("vdb", "raw")):
        assert far.content(far.images / f"{name}-{disk}.{format_}", format_) == first_content[disk]
    assert not host.machine(native).restoring
    assert not [left for left in host.leftovers() if left.native == native]
    assert list(far.path(far.scratch).iterdir()) == []
    host.delete(native)


def test_a_guest_goes_on_when_there_is_no_room_for_what_it_overwrites(
    far: FarLibvirt, site: RunningSite, tmp_path: Path
) -> None:
    """A real guest that writes all the while, and a scratch folder of a MiB."""
    if not far.isolated:
        pytest.skip("only root makes a file system that is full")
    try:
        native = far.add_guest(guest(), "busy")
    except NoGuest as reason:
        pytest.skip(str(reason))
    options = {**far.options, "scratch": str(far.tiny)}
    words = [word for option in options.items() for word in ("--option", "=".join(option))]
    site.cli("host", "add", "tiny", "--url", far.tls_url, *words)
    (asset,) = [a["asset"] for a in eventually(lambda: _assets(site, "tiny")) if a["native"] == native]
    said(far, native, "GUEST-WROTE 3")
    done = site.run("backup", "machine", asset, "--to", "vault", "--quiesce", "off", "--bandwidth", "64K")
    assert done.returncode != 0
    assert "scratch-full" in done.stdout + done.stderr
    so_far = (far.directory / "console.log").stat().st_size
    said(far, native, "GUEST-WROTE", after=so_far)
    host = far.host(far.tls_url, **options)
    assert not [left for left in host.leftovers() if left.native == native]
    assert list(far.path(far.tiny).iterdir()) == []
    host.stop(native)
    image = tmp_path / "image"
    image.write_bytes(far.content(far.images / "busy.qcow2", "qcow2"))
    assert check(image) == ""
    files = files_in(image)
    assert files
    assert {name: f"{digest}.bin" for name, digest in files.items()} == {name: name for name in files}


def _assets(site: RunningSite, host: str) -> list[dict[str, Any]]:
    return [asset for asset in site.json("asset", "list")["assets"] if asset["host"] == host]


def _carriers(far: FarLibvirt) -> list[str]:
    conn = far.connect()
    try:
        return [domain.name() for domain in conn.listAllDomains(0) if domain.name().startswith("holdfast-disk-")]
    finally:
        conn.close()
