"""Certificates of our own making: the right host is let in, another is not, keys are private."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from deploy import certificates


def handshake(made: certificates.Certificate, ca: Path, host: str) -> str | None:
    """The TLS version agreed on with a server that has the certificate `made`, by a client that trusts `ca`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(ca))
    a, b = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(a, server_side=True).close()
        except OSError:
            a.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(b, server_hostname=host) as tls:
            return tls.version()
    finally:
        b.close()
        thread.join(120)


def test_hosts_it_was_made_for_are_believed_and_others_not(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, ["127.0.0.1", "broker.example"])
    assert handshake(made, made.ca, "broker.example") == "TLSv1.3"
    assert handshake(made, made.ca, "127.0.0.1") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
        handshake(made, made.ca, "other.example")


def test_another_authority_is_not_believed(tmp_path: Path) -> None:
    made = certificates.make(tmp_path / "a", ["h"])
    other = certificates.make(tmp_path / "b", ["h"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, other.ca, "h")


def test_one_authority_vouches_for_all_servers_of_a_directory(tmp_path: Path) -> None:
    first = certificates.make(tmp_path, ["h1"], "first")
    second = certificates.make(tmp_path, ["h2"], "second")
    assert handshake(first, second.ca, "h1") == handshake(second, first.ca, "h2") == "TLSv1.3"


def test_keys_are_readable_to_their_owner_only(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, ["h"])
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
