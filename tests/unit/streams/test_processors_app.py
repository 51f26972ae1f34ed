"""How the app reaches Kafka, and the watchdog's patience."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from deploy.certificates import make
from streams.app import credentials
from streams.processors import FAMILIES
from streams.settings import KafkaSettings
from streams.watchdog import Watchdog


def test_a_plain_connection_needs_no_credentials() -> None:
    assert credentials(KafkaSettings("127.0.0.1:9092")) is None


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("secret\n")
    return file


def test_sasl_is_passed_on_to_aiokafka(password: Path) -> None:
    kafka = KafkaSettings(
        "127.0.0.1:9092",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="hf",
        sasl_password_file=password,
    )
    found = credentials(kafka)
    assert isinstance(found, SASLCredentials)
    assert credentials_to_aiokafka_auth(found) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "hf",
        "sasl_plain_password": "secret",
        "ssl_context": None,
    }
    assert "secret" not in repr(found)


@pytest.mark.parametrize("sasl", [False, True])
def test_tls_trusts_the_site_s_authority_and_checks_names(tmp_path: Path, password: Path, sasl: bool) -> None:
    certificate = make(tmp_path, ["127.0.0.1"])
    found = credentials(
        KafkaSettings(
            "127.0.0.1:9092",
            security_protocol="SASL_SSL" if sasl else "SSL",
            sasl_mechanism="PLAIN" if sasl else None,
            sasl_username="hf" if sasl else None,
            sasl_password_file=password if sasl else None,
            ca_file=certificate.ca,
        )
    )
    settings = credentials_to_aiokafka_auth(found)
    assert settings["security_protocol"] == ("SASL_SSL" if sasl else "SSL")
    context = settings["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    assert isinstance(found, SASLCredentials if sasl else SSLCredentials)


def test_every_view_is_in_one_family() -> None:
    views = [view for family in FAMILIES.values() for view in family]
    assert len(views) == len(set(views))
    assert set(views) == {
        "catalogue",
        "jobs",
        "access",
        "timeline",
        "dashboard",
        "audit",
        "copies",
        "repositories",
        "assets",
        "policies",
        "nodes",
        "notices",
    }


class Process:
    """What a watchdog watches, with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, 0
        self.left: int | None = 0
        self.said: list[str] = []
        self.watchdog = Watchdog(
            lambda: self.done, lambda: self.left, self.said.append, patience_s=60, clock=lambda: self.now
        )

    def after(self, seconds: float) -> list[str]:
        self.now += seconds
        self.watchdog.look()
        return self.said


def test_a_process_with_nothing_to_do_may_do_nothing() -> None:
    process = Process()
    process.after(0)
    assert process.after(1000) == []


def test_a_process_with_work_that_does_none_is_stuck() -> None:
    process = Process()
    process.left = 7
    assert process.after(0) == []
    assert process.after(59) == []
    assert process.after(2) == ["nothing was done for 61 s although 7 records wait"]


def test_any_progress_starts_the_patience_anew() -> None:
    process = Process()
    process.left = 7
    process.after(0)
    for _ in range(10):
        process.done += 1
        assert process.after(59) == []


def test_a_server_that_is_away_is_nobody_s_fault() -> None:
    process = Process()
    process.left = 7
    process.after(0)
    process.after(50)
    process.left = None
    assert process.after(100) == []
    process.left = 7
    assert process.after(59) == []
    assert len(process.after(1)) == 1
