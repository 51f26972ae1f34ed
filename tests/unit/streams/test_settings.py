"""Settings: what a file and the environment together mean, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.settings import ApiSettings, KafkaSettings, Settings, SettingsError, load

MINIMAL = '[kafka]\nbootstrap = "127.0.0.1:9092"\n'


def write(directory: Path, text: str) -> Path:
    path = directory / "holdfast.toml"
    path.write_text(text)
    return path


def refused(directory: Path, text: str, environ: dict[str, str] | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(write(directory, text), environ or {})
    return caught.value


def test_a_minimal_file_leaves_the_rest_to_defaults_beside_it(tmp_path: Path) -> None:
    settings = load(write(tmp_path, MINIMAL), {})

    assert (settings.site, settings.data_dir) == ("local", tmp_path)
    assert settings.secret_key_file == tmp_path / "secrets" / "site.key"
    assert settings.kafka == KafkaSettings("127.0.0.1:9092")
    assert (settings.postgres.host, settings.postgres.port, settings.postgres.dbname) == ("127.0.0.1", 5432, "holdfast")
    assert settings.api == ApiSettings("127.0.0.1", 8473)
    assert settings.api.url == "http://127.0.0.1:8473"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = 'data_dir = "data"\nsecret_key_file = "/etc/key"\n' + MINIMAL + '[postgres]\npassword_file = "pg.password"\n'
    settings = load(write(tmp_path, text), {})

    assert settings.data_dir == tmp_path / "data"
    assert settings.secret_key_file == Path("/etc/key")
    assert settings.postgres.password_file == tmp_path / "pg.password"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {
        "HOLDFAST_SITE": "north",
        "HOLDFAST_KAFKA_BOOTSTRAP": "localhost:1",
        "HOLDFAST_KAFKA_REPLICATION_FACTOR": "3",
        "HOLDFAST_POSTGRES_PORT": "6000",
        "HOLDFAST_API_PORT": "7000",
        "HOLDFAST_DATA": "/var/lib/other",
        "HOLDFAST_CACHE": "/not/a/setting",
    }
    settings = load(write(tmp_path, 'site = "south"\n' + MINIMAL + '[postgres]\nuser = "kept"\n'), environ)

    assert settings.site == "north"
    assert (settings.kafka.bootstrap, settings.kafka.replication_factor) == ("localhost:1", 3)
    assert (settings.postgres.port, settings.postgres.user) == (6000, "kept")
    assert settings.api.port == 7000
    assert settings.data_dir == Path("/var/lib/other")


def test_an_address_in_the_environment_replaces_the_whole_address_in_the_file(tmp_path: Path) -> None:
    text = '[kafka]\nurl = "kafkas://file@k1:9093"\nsasl_password_file = "p"\n'
    settings = load(write(tmp_path, text), {"HOLDFAST_KAFKA_BOOTSTRAP": "127.0.0.1:9092"})
    assert (settings.kafka.bootstrap, settings.kafka.security_protocol) == ("127.0.0.1:9092", "PLAINTEXT")


def test_kafka_by_url_with_tls_and_a_password_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("s3cret\n")
    url = (
        "kafkas://holdfast@k1:9093,k2:9093?mechanism=SCRAM-SHA-256&password_file=p&ca_file=ca.pem&replication_factor=3"
    )
    kafka = load(write(tmp_path, f'[kafka]\nurl = "{url}"\n'), {}).kafka

    assert kafka.client_config() == {
        "bootstrap.servers": "k1:9093,k2:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "holdfast",
        "sasl.password": "s3cret",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
    }
    assert kafka.replication_factor == 3
    assert "s3cret" not in repr(kafka)


def test_postgres_by_url(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("it's; a 'secret'\n")
    url = "postgresql://app@db.example:6543/site?sslmode=verify-full&sslrootcert=/ca.pem&password_file=p"
    postgres = load(write(tmp_path, MINIMAL + f'[postgres]\nurl = "{url}"\n'), {}).postgres

    assert (postgres.host, postgres.port, postgres.user, postgres.dbname) == ("db.example", 6543, "app", "site")
    assert postgres.sslmode == "verify-full"
    conninfo = postgres.conninfo()
    assert "sslrootcert=/ca.pem" in conninfo
    assert r"password='it\'s; a \'secret\''" in conninfo
    assert "secret" not in repr(postgres)


def test_postgres_elsewhere_is_verified_unless_told_otherwise(tmp_path: Path) -> None:
    settings = load(write(tmp_path, MINIMAL + '[postgres]\nhost = "db.example"\n'), {})
    assert settings.postgres.sslmode == "verify-full"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[kafka]\nurl = "kafka://u:pw@h:1"\n', "kafka.url"),
        (MINIMAL + '[postgres]\nurl = "postgresql://u:pw@h/db"\n', "postgres.url"),
        (MINIMAL + '[postgres]\nurl = "postgresql://u@h/db?password=pw"\n', "postgres.url"),
        (MINIMAL + '[postgres]\npassword = "pw"\n', "postgres.password"),
        ('[kafka]\nsasl_password = "pw"\n', "kafka.sasl_password"),
    ],
)
def test_a_password_is_refused_wherever_it_is_not_a_file(tmp_path: Path, text: str, says: str) -> None:
    error = refused(tmp_path, text)
    assert error.code == "settings-secret"
    assert says in error.message
    assert "file" in error.hint
    assert "pw" not in str(error).replace("pw@", "")


def test_a_password_in_the_environment_is_refused_too(tmp_path: Path) -> None:
    error = refused(tmp_path, MINIMAL, {"HOLDFAST_KAFKA_SASL_PASSWORD": "pw"})
    assert error.code == "settings-secret"
    assert "pw" not in str(error)


@pytest.mark.parametrize(
    "text",
    ['[kafka]\nbootstrap = "k1.example:9092"\n', '[kafka]\nurl = "kafka://127.0.0.1:9092,10.0.0.1:9092"\n'],
)
def test_plaintext_to_another_machine_is_refused_until_it_is_asked_for(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).code == "settings-plaintext"
    assert load(write(tmp_path, text + "allow_plaintext = true\n"), {}).kafka.security_protocol == "PLAINTEXT"


def test_the_api_listens_elsewhere_only_with_a_certificate(tmp_path: Path) -> None:
    assert refused(tmp_path, MINIMAL + '[api]\nhost = "0.0.0.0"\n').code == "settings-plaintext"
    assert refused(tmp_path, MINIMAL + '[api]\ntls_cert = "c"\n').code == "settings-invalid"
    api = load(write(tmp_path, MINIMAL + '[api]\nhost = "::"\ntls_cert = "c"\ntls_key = "k"\n'), {}).api
    assert (api.url, api.tls_cert) == ("https://[::]:8473", tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("[kafka\n", "settings-unreadable", "holdfast.toml"),
        ("[kafka]\n", "settings-invalid", "kafka.bootstrap"),
        ('[kafka]\nbootstrap = "nohost"\n', "settings-invalid", "nohost"),
        ('[kafka]\nbootstrap = "h:99999"\n', "settings-invalid", "99999"),
        ("[kafka]\nbootstrap = 9092\n", "settings-invalid", "must be a string"),
        ('[kafka]\nbotstrap = "127.0.0.1:1"\n', "settings-unknown", "kafka.botstrap"),
        ("[kafak]\n", "settings-unknown", "[kafak]"),
        ('site = "Not A Slug"\n' + MINIMAL, "settings-invalid", "Not A Slug"),
        (MINIMAL + 'security_protocol = "TLS"\n', "settings-invalid", "TLS"),
        (MINIMAL + 'security_protocol = "SASL_SSL"\nsasl_username = "u"\n', "settings-invalid", "sasl_password_file"),
        (MINIMAL + 'sasl_username = "u"\n', "settings-invalid", "sasl"),
        ('[kafka]\nurl = "http://h:1"\n', "settings-invalid", "http"),
        ('[kafka]\nurl = "kafkas://h:1?shoe=2"\n', "settings-unknown", "shoe"),
        ('[kafka]\nurl = "kafkas://h:1"\nbootstrap = "h:1"\n', "settings-invalid", "both"),
        (MINIMAL + '[postgres]\nport = "5432"\n', "settings-invalid", "whole number"),
        (MINIMAL + '[postgres]\nsslmode = "maybe"\n', "settings-invalid", "maybe"),
        (MINIMAL + '[postgres]\nurl = "postgresql://h/db"\nport = 1\n', "settings-invalid", "both"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, text: str, code: str, says: str) -> None:
    error = refused(tmp_path, text)
    assert error.code == code
    assert says in str(error)


def test_a_mistyped_variable_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, MINIMAL, {"HOLDFAST_POSTGRES_HOTS": "x"})
    assert (error.code, "HOLDFAST_POSTGRES_HOTS" in error.message) == ("settings-unknown", True)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holdfast up"):
        load(tmp_path / "holdfast.toml", {})


@pytest.mark.parametrize(
    ("content", "code"), [(None, "secret-unreadable"), ("", "secret-empty"), ("\n", "secret-empty")]
)
def test_a_secret_that_is_not_there_is_named_by_its_file(tmp_path: Path, content: str | None, code: str) -> None:
    if content is not None:
        (tmp_path / "p").write_text(content)
    settings = load(write(tmp_path, MINIMAL + '[postgres]\npassword_file = "p"\n'), {})
    with pytest.raises(SettingsError) as caught:
        settings.postgres.conninfo()
    assert caught.value.code == code
    assert str(tmp_path / "p") in caught.value.message


def test_settings_are_plain_values(tmp_path: Path) -> None:
    first, second = load(write(tmp_path, MINIMAL), {}), load(write(tmp_path, MINIMAL), {})
    assert isinstance(first, Settings)
    assert first == second
    assert hash(first) == hash(second)
