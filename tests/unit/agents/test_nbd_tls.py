"""Disks over TLS: a certificate that is not right, or a server without TLS, is refused."""

from __future__ import annotations

import secrets
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.errors import AgentError
from agents.nbd import Nbd
from agents.platforms.kvm.reach import start_child, stop_child
from deploy.certificates import make
from deploy.embedded.ports import accepts, free_ports
from deploy.embedded.process import wait_until

SIZE = 1 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    return secrets.token_bytes(SIZE)


@pytest.fixture(scope="module", params=["tls", "plain"])
def server(
    request: pytest.FixtureRequest, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int, Path]]:
    if shutil.which("qemu-nbd") is None:
        pytest.skip("not installed: qemu-nbd")
    folder = tmp_path_factory.mktemp("nbd")
    made = make(folder / "made", ["localhost"])
    for name, path in (("ca-cert", made.ca), ("server-cert", made.certificate), ("server-key", made.key)):
        shutil.copy(path, folder / f"{name}.pem")
    image = folder / "image"
    image.write_bytes(content)
    (port,) = free_ports(1)
    tls = [f"--object=tls-creds-x509,id=t,dir={folder},endpoint=server,verify-peer=no", "--tls-creds=t"]
    child = start_child(
        [
            *("qemu-nbd", "--bind=127.0.0.1", f"--port={port}", "--format=raw", "--persistent", "--shared=4"),
            *("--export-name=disk", *(tls if request.param == "tls" else []), str(image)),
        ]
    )
    try:
        assert wait_until(lambda: accepts("127.0.0.1", port), 60)
        yield request.param, port, folder / "ca-cert.pem"
    finally:
        stop_child(child)


def connect(port: int, ca: Path, name: str = "localhost") -> Nbd:
    context = ssl.create_default_context(cafile=str(ca))
    plain = socket.create_connection(("127.0.0.1", port), 60)
    return Nbd(plain, "disk", secure=lambda raw: context.wrap_socket(raw, server_hostname=name))


def test_a_disk_is_read_over_tls_or_not_at_all(server: tuple[str, int, Path], content: bytes, tmp_path: Path) -> None:
    kind, port, ca = server
    if kind == "plain":
        with pytest.raises(AgentError) as refused:
            connect(port, ca)
        assert refused.value.code == "nbd-protocol"
        return
    disk = connect(port, ca)
    got = bytearray(SIZE)
    disk.read_into(0, memoryview(got))
    disk.write(4096, b"x" * 512)
    disk.flush()
    disk.close()
    assert got == content
    with pytest.raises(AgentError):
        connect(port, ca, "another.example")
    with pytest.raises(AgentError):
        connect(port, make(tmp_path / "other", ["localhost"]).ca)
    with pytest.raises(AgentError):
        Nbd(socket.create_connection(("127.0.0.1", port), 60), "disk")
