"""Hosts that are other machines: whom we trust, who trusts us, what is said when either does not; against real daemons."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.errors import AgentError, SourceUnavailable
from agents.machines import DiskWanted, Host, MachineWanted
from agents.platforms.kvm.reach import ports_of
from deploy.certificates import make
from deploy.embedded.ports import free_ports
from tests.contract.hosts import kept, patched, snapshot_of, the_disk
from tests.stack.remote import FarLibvirt, why_not
from tests.stack.servers import started

M = 1 << 20


@pytest.fixture(scope="module")
def far() -> Iterator[FarLibvirt]:
    with started(FarLibvirt, "far", why_not()) as running:
        yield running


def refused(host: Host) -> AgentError:
    with pytest.raises(AgentError) as raised:
        list(host.discover())
    assert raised.value.hint, "there is always a next step"
    return raised.value


# ssh


def test_a_host_whose_key_nobody_knows_is_refused(far: FarLibvirt, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").touch()
    for known in (tmp_path / "known_hosts", _another_key(far, tmp_path)):
        error = refused(far.host(far.ssh_url.replace(str(far.known_hosts), str(known))))
        assert error.code == "host-untrusted"
        assert not isinstance(error, SourceUnavailable), "to try again does not help"
        assert "known_hosts" in error.hint


def _another_key(far: FarLibvirt, folder: Path) -> Path:
    path = folder / "changed"
    key = (far.outside / "ssh" / "stranger.pub").read_text()
    path.write_text(f"[127.0.0.1]:{far.ssh_port} {key}")
    return path


def test_a_key_that_the_host_does_not_take(far: FarLibvirt) -> None:
    error = refused(far.host(far.ssh_url.replace("/ssh/agent", "/ssh/stranger")))
    assert error.code == "host-denied"
    assert "authorized_keys" in error.hint


def test_a_file_that_is_not_there_is_named(far: FarLibvirt, tmp_path: Path) -> None:
    error = refused(far.host(far.ssh_url.replace("/ssh/agent", "/ssh/nobody")))
    assert error.code == "host-file-missing"
    assert "/ssh/nobody" in error.message
    error = refused(far.host(far.tls_url.replace(str(far.pki), str(tmp_path))))
    assert error.code == "host-file-missing"
    assert "cacert.pem" in error.message


@pytest.mark.parametrize("way", ["tls", "ssh"])
def test_a_host_that_is_not_there(far: FarLibvirt, way: str) -> None:
    (nobody,) = free_ports(1)
    url = far.tls_url if way == "tls" else far.ssh_url
    error = refused(far.host(url.replace(str(far.tls_port if way == "tls" else far.ssh_port), str(nobody))))
    assert error.code == "host-unreachable"
    assert isinstance(error, SourceUnavailable)
    assert "refused" in error.message


# TLS


def test_an_authority_that_we_do_not_trust(far: FarLibvirt, tmp_path: Path) -> None:
    error = refused(far.host(_with_pki(far, far.client(tmp_path / "pki", authority=tmp_path / "other"))))
    assert error.code == "host-untrusted"


def test_a_certificate_that_the_host_does_not_trust(far: FarLibvirt, tmp_path: Path) -> None:
    pki = far.client(tmp_path / "pki", authority=tmp_path / "other")
    ours = (pki / "cacert.pem").read_text()
    (pki / "cacert.pem").write_text((far.pki / "cacert.pem").read_text())
    error = refused(far.host(_with_pki(far, pki)))  # found out here
    assert error.code == "host-denied"
    (pki / "cacert.pem").write_text((far.pki / "cacert.pem").read_text() + ours)
    error = refused(far.host(_with_pki(far, pki)))  # and there
    assert error.code == "host-denied"


def test_a_certificate_of_ours_that_has_expired(far: FarLibvirt, tmp_path: Path) -> None:
    pki = far.client(tmp_path / "pki", lifetime=-datetime.timedelta(hours=1))
    error = refused(far.host(_with_pki(far, pki)))
    assert error.code == "host-denied"
    assert "expired" in error.message


def test_a_host_by_another_name_than_its_certificate_has(far: FarLibvirt) -> None:
    error = refused(far.host(far.tls_url.replace("//localhost:", "//127.1:")))
    assert error.code == "host-untrusted"
    assert "127.1" in error.message


def test_a_host_whose_certificate_has_expired(far: FarLibvirt) -> None:
    """No libvirtd would begin with it: here it is a listener that shakes hands and no more."""
    old = make(far.outside / "made", ["localhost"], "old", -datetime.timedelta(hours=1))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(old.ca))
    context.load_cert_chain(old.certificate, old.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    plain, _ = listener.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as made:
                        made.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        error = refused(far.host(far.tls_url.replace(str(far.tls_port), str(port))))
        listener.shutdown(socket.SHUT_RDWR)
    assert error.code == "host-untrusted"
    assert "expired" in error.message


def _with_pki(far: FarLibvirt, folder: Path) -> str:
    return far.tls_url.replace(str(far.pki), str(folder))


# Disks


@pytest.mark.parametrize("way", ["tls", "ssh"])
def test_disks_are_read_and_written_over_there(far: FarLibvirt, way: str) -> None:
    host = far.host(far.tls_url if way == "tls" else far.ssh_url)
    native = far.add(f"shop-{way}", {"vda": (8 * M, "qcow2")})
    far.write(native, "vda", M, M, 7)
    mark, content = kept(host, native, "j1")
    assert content == bytes(M) + bytes([7]) * M + bytes(6 * M)
    far.write(native, "vda", 3 * M, 4096, 8)
    with snapshot_of(host, native, "j2", since={"vda": mark}) as snapshot:
        content = patched(content, the_disk(snapshot))
    assert content == bytes(M) + bytes([7]) * M + bytes(M) + bytes([8]) * 4096 + bytes(5 * M - 4096)

    made = host.create(
        MachineWanted(f"copy-{way}", host.machine(native).description, (DiskWanted("vda", 8 * M),)), job="j3"
    )
    target = host.open_disk(made.native, "vda", job="j3")
    try:
        assert target.blank
        assert len([seen for seen in host.discover() if seen.native in (native, made.native)]) == 2
        assert {seen.name for seen in host.discover()}.isdisjoint({"holdfast-disk"})
        with pytest.raises(AgentError) as busy:
            host.start(made.native)
        assert busy.value.code == "machine-unstartable", "nobody else writes to the image meanwhile"
        target.write(M, content[M : 2 * M])
        target.write(3 * M, content[3 * M : 3 * M + 4096])
        target.flush()
    finally:
        target.close()
        target.close()
    assert far.content(made.disks[0].place, "qcow2") == content
    reading = host.read_disk(made.native, "vda")
    try:
        got = bytearray(8 * M)
        reading.read_into(0, memoryview(got))
        assert got == content
        with pytest.raises(AgentError):
            reading.write(0, b"?" * 512)
    finally:
        reading.close()
    assert list(far.path(far.scratch).iterdir()) == []
    host.settle(made.native)
    host.delete(made.native)
    host.stop(native)
    host.delete(native)


def test_ports_that_somebody_has_are_passed_over(far: FarLibvirt) -> None:
    native = far.add("ports", {"vda": (M, "qcow2")})
    with contextlib.ExitStack() as taken:
        for port in range(far.nbd_port, far.nbd_port + 50, 2):  # where a snapshot begins to look is as good as chance
            with contextlib.suppress(OSError):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        host = far.host(far.tls_url)
        for job in ("j1", "j2", "j3"):
            with snapshot_of(host, native, job) as snapshot:
                assert the_disk(snapshot).seen.size == M
        host = far.host(far.tls_url, nbd_ports=str(far.nbd_port))
        with pytest.raises(SourceUnavailable) as none, snapshot_of(host, native, "j4"):
            pass
        assert none.value.code == "ports-busy"
        assert "nbd_ports" in none.value.hint
    assert not [left for left in host.leftovers() if left.kind == "snapshot"]
    host.stop(native)
    host.delete(native)


def test_ports_are_a_range() -> None:
    assert ports_of("10809") == range(10809, 10810)
    assert ports_of("1-3") == range(1, 4)
    for text in ("", "a-b", "3-1", "0-1", "65535-65536", "1-2-3"):
        with pytest.raises(AgentError) as wrong:
            ports_of(text)
        assert wrong.value.code == "host-option-invalid"
