"""Where a site keeps things and how its processes reach Kafka, PostgreSQL and the API: `holdfast.toml`, read once.

    site = "local"                       # slug of this site
    data_dir = "."                       # default: the directory this file is in
    secret_key_file = "secrets/site.key"

    [kafka]
    bootstrap = "127.0.0.1:9092"         # or url = "kafkas://user@k1:9093,k2:9093?mechanism=SCRAM-SHA-512"
    prefix = "holdfast."
    replication_factor = 1
    security_protocol = "PLAINTEXT"      # SSL, SASL_PLAINTEXT, SASL_SSL
    sasl_mechanism = "SCRAM-SHA-512"     # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
    sasl_username = "holdfast"
    sasl_password_file = "secrets/kafka.password"
    ca_file = "kafka-ca.pem"
    compression = "zstd"                 # none, lz4, zstd; default: zstd where a host is not this one
    allow_plaintext = false              # required to go unencrypted to a host that is not this one

    [postgres]
    host = "127.0.0.1"                   # or url = "postgresql://user@host:5432/holdfast?sslmode=verify-full"
    port = 5432
    user = "holdfast"
    dbname = "holdfast"
    password_file = "secrets/postgres.password"
    sslmode = "prefer"
    allow_plaintext = false              # required for a mode that may go unencrypted to a host that is not this one
    ca_file = "postgres-ca.pem"

    [api]
    host = "127.0.0.1"
    port = 8473
    tls_cert = "api.pem"                 # both required where host is not loopback
    tls_key = "api.key"
    watch_s = 60                         # how often it looks how well assets are protected; 0: never

    [capture]
    spool_bytes = 4294967296             # of disk for each source while Kafka is away; 0: none

    [agent]
    node = "node_1"                      # its name among a site's agents: a-z, 0-9, _; default: the machine's at the first start
    parallel = 4                         # how many commands it carries out at a time
    disks = 8                            # how many disks of machines it reads at a time
    lease_s = 60                         # of silence, after which an agent's claims are others' to take

Paths are relative to the file. Every value can be overridden by environment: `HOLDFAST_SITE`, `HOLDFAST_DATA`
(data_dir), `HOLDFAST_SECRET_KEY_FILE`, and `HOLDFAST_<TABLE>_<NAME>` such as `HOLDFAST_KAFKA_BOOTSTRAP` or
`HOLDFAST_POSTGRES_URL`; paths in the environment are relative to the working directory. A password is never a value
here: it is in a file that is named here.

Knows nothing of who starts those servers (`deploy`) nor of what is stored in them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from streams.errors import StreamError
from streams.ids import slug

KAFKA_URL_SCHEMES = {"kafka": ("PLAINTEXT", "SASL_PLAINTEXT"), "kafkas": ("SSL", "SASL_SSL")}
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
COMPRESSIONS = ("none", "lz4", "zstd")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
DEFAULT_API_PORT = 8473


class SettingsError(StreamError):
    """holdfast.toml or the environment does not make sense; nothing has been started or connected to."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach Kafka. `bootstrap` is `host:port,host:port`; `prefix` is put before every topic's name."""

    bootstrap: str
    prefix: str = "holdfast."
    replication_factor: int = 1
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password_file: Path | None = None
    ca_file: Path | None = None
    compression: str | None = None
    allow_plaintext: bool = False

    @property
    def capture_compression(self) -> str:
        """What captured records are compressed with: said, or zstd where they cross a network."""
        if self.compression is not None:
            return self.compression
        hosts = [s.rpartition(":")[0] for s in self.bootstrap.split(",")]
        return "none" if all(map(is_loopback, hosts)) else "zstd"

    @property
    def tls(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> bool:
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def password(self) -> str | None:
        """The SASL password, read from its file now; None without SASL. Raises as `read_secret`."""
        if not self.sasl or self.sasl_password_file is None:
            return None
        return read_secret(self.sasl_password_file)

    def client_config(self) -> dict[str, str | int | float | bool]:
        """Where and as whom, for a client of confluent-kafka (librdkafka's names). Holds the password: never log it."""
        config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": self.security_protocol,
        }
        if self.sasl:
            config["sasl.mechanism"] = self.sasl_mechanism or "PLAIN"
            config["sasl.username"] = self.sasl_username or ""
            config["sasl.password"] = self.password() or ""
        if self.tls and self.ca_file is not None:
            config["ssl.ca.location"] = str(self.ca_file)
        return config


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """How to reach PostgreSQL. `sslmode` is libpq's; `ca_file` is its `sslrootcert`."""

    host: str
    port: int
    user: str
    dbname: str
    password_file: Path | None = None
    sslmode: str = "prefer"
    ca_file: Path | None = None
    allow_plaintext: bool = False

    def conninfo(self) -> str:
        """libpq's connection string, password included (read from its file now): never log it, never an argument."""
        # Loaded here: who only asks where things are, as every call of the command line does, is spared the driver.
        from psycopg.conninfo import make_conninfo

        parameters: dict[str, str | int] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "dbname": self.dbname,
            "sslmode": self.sslmode,
            "connect_timeout": 10,
        }
        if self.password_file is not None:
            parameters["password"] = read_secret(self.password_file)
        if self.ca_file is not None:
            parameters["sslrootcert"] = str(self.ca_file)
        return make_conninfo("", **parameters)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Where the API listens. Without a certificate only a loopback host is allowed. `watch_s`: how often it looks how well assets
    are protected."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_API_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    watch_s: int = 60

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """`spool_bytes`: how much of a source may be kept on the agent's disk while Kafka is away."""

    spool_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """`node`: the agent's name among those of its site; empty: the machine's when its data directory was new (`agents.nodes`).
    `parallel`: commands at a time; `disks`: disks of machines that are read at a time. `lease_s`: seconds of silence after which
    others may take over what an agent has claimed."""

    node: str = ""
    parallel: int = 4
    lease_s: int = 60
    disks: int = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What every process of a site is given. `secret_key_file` holds 32 random bytes that open its secrets."""

    site: str
    data_dir: Path
    kafka: KafkaSettings
    postgres: PostgresSettings
    api: ApiSettings
    secret_key_file: Path
    capture: CaptureSettings = CaptureSettings()
    agent: AgentSettings = AgentSettings()


def read_secret(path: Path) -> str:
    """The text in `path` less one line end. Raises `SettingsError` (`secret-unreadable`, `secret-empty`)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise SettingsError("secret-unreadable", f"cannot read the secret in {path}: {reason}") from e
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise SettingsError("secret-empty", f"the secret file {path} is empty")
    return secret


def load(path: Path | str, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in the TOML file `path`, overridden by `environ` (the process's own by default).

    Raises `SettingsError`: `settings-missing`, `settings-unreadable`, `settings-unknown`, `settings-invalid`,
    `settings-secret`, `settings-plaintext`.
    """
    path = Path(path).absolute()
    environ = os.environ if environ is None else environ
    tables = _read(path)
    _override(tables, environ)
    base = path.parent

    top = tables[""]
    data_dir = _path(top, "data_dir", base) or base
    secret_key_file = _path(top, "secret_key_file", base) or data_dir / "secrets" / "site.key"
    site = _text(top, "site") or "local"
    try:
        slug(site)
    except StreamError as e:
        raise SettingsError("settings-invalid", f"`site` is {site!r}: {e.message}", e.hint) from e
    return Settings(
        site=site,
        data_dir=data_dir,
        kafka=_kafka(tables["kafka"], base),
        postgres=_postgres(tables["postgres"], base),
        api=_api(tables["api"], base),
        secret_key_file=secret_key_file,
        capture=CaptureSettings(_int(tables["capture"], "spool_bytes", CaptureSettings().spool_bytes)),
        agent=_agent(tables["agent"]),
    )


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, no port) can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# What may be said, by table; "" is the top. Values: "text", "path", "int", "bool".
_KEYS: Mapping[str, Mapping[str, str]] = {
    "": {"site": "text", "data_dir": "path", "secret_key_file": "path"},
    "kafka": {
        "url": "text",
        "bootstrap": "text",
        "prefix": "text",
        "replication_factor": "int",
        "security_protocol": "text",
        "sasl_mechanism": "text",
        "sasl_username": "text",
        "sasl_password_file": "path",
        "ca_file": "path",
        "compression": "text",
        "allow_plaintext": "bool",
    },
    "postgres": {
        "url": "text",
        "host": "text",
        "port": "int",
        "user": "text",
        "dbname": "text",
        "password_file": "path",
        "sslmode": "text",
        "allow_plaintext": "bool",
        "ca_file": "path",
    },
    "api": {"host": "text", "port": "int", "tls_cert": "path", "tls_key": "path", "watch_s": "int"},
    "capture": {"spool_bytes": "int"},
    "agent": {"node": "text", "parallel": "int", "lease_s": "int", "disks": "int"},
}
_ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "HOLDFAST_SITE": ("", "site"),
    "HOLDFAST_DATA": ("", "data_dir"),
    "HOLDFAST_SECRET_KEY_FILE": ("", "secret_key_file"),
} | {f"HOLDFAST_{t.upper()}_{k.upper()}": (t, k) for t, keys in _KEYS.items() if t for k in keys}

# An address given in the environment replaces the whole address in the file, not a part of it.
_ADDRESS = {
    "kafka": ("url", "bootstrap", "security_protocol", "sasl_mechanism", "sasl_username"),
    "postgres": ("url", "host", "port", "user", "dbname"),
}

_Table = dict[str, object]


def _read(path: Path) -> dict[str, _Table]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SettingsError("settings-missing", f"there is no {path}", "`holdfast up` makes one") from e
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise SettingsError("settings-unreadable", f"cannot read {path}: {e}") from e
    tables: dict[str, _Table] = {name: {} for name in _KEYS}
    for name, value in document.items():
        if isinstance(value, dict):
            if name not in _KEYS:
                raise SettingsError("settings-unknown", f"{path}: there is no table [{name}]", f"known: {_known('')}")
            tables[name] = dict(value)
        else:
            tables[""][name] = value
    for table, values in tables.items():
        for key, value in values.items():
            _check_key(f"{path}: ", table, key)
            _check_type(f"{path}: ", table, key, value)
    return tables


def _known(table: str) -> str:
    return ", ".join([*_KEYS[table], *(f"[{t}]" for t in _KEYS if t and not table)])


def _name(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _check_key(where: str, table: str, key: str) -> None:
    if key in _KEYS[table]:
        return
    if "password" in key:
        raise SettingsError(
            "settings-secret",
            f"{where}`{_name(table, key)}` would hold a password; a password is never a setting",
            f"put it in a file and name that in `{_name(table, key)}_file`",
        )
    raise SettingsError(
        "settings-unknown", f"{where}there is no setting `{_name(table, key)}`", f"known: {_known(table)}"
    )


def _check_type(where: str, table: str, key: str, value: object) -> None:
    kind = _KEYS[table][key]
    fits = {
        "text": isinstance(value, str),
        "path": isinstance(value, str),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
    }[kind]
    if not fits:
        wanted = {"text": "a string", "path": "a path as a string", "int": "a whole number", "bool": "true or false"}
        raise SettingsError("settings-invalid", f"{where}`{_name(table, key)}` must be {wanted[kind]}, not {value!r}")


def _override(tables: dict[str, _Table], environ: Mapping[str, str]) -> None:
    given = {name: text for name, text in environ.items() if name.startswith("HOLDFAST_")}
    for name in given:
        m = re.fullmatch(r"HOLDFAST_(KAFKA|POSTGRES)_([A-Z_]+)", name)
        if name not in _ENVIRONMENT and m:
            _check_key(f"{name}: ", m[1].lower(), m[2].lower())
    for table, keys in _ADDRESS.items():
        if any(f"HOLDFAST_{table.upper()}_{k.upper()}" in given for k in (keys[0], keys[1])):
            for key in keys:
                tables[table].pop(key, None)
    for name, text in given.items():
        if name not in _ENVIRONMENT:
            continue
        table, key = _ENVIRONMENT[name]
        tables[table][key] = _from_text(name, _KEYS[table][key], text)


def _from_text(name: str, kind: str, text: str) -> object:
    if kind == "int":
        if not re.fullmatch(r"\d+", text):
            raise SettingsError("settings-invalid", f"{name} must be a whole number, not {text!r}")
        return int(text)
    if kind == "bool":
        if text.lower() not in ("true", "false", "1", "0"):
            raise SettingsError("settings-invalid", f"{name} must be true or false, not {text!r}")
        return text.lower() in ("true", "1")
    return str(Path(text).absolute()) if kind == "path" else text


def _text(table: _Table, key: str) -> str | None:
    value = table.get(key)
    return str(value) if value is not None else None


def _agent(table: _Table) -> AgentSettings:
    node = _text(table, "node") or ""
    if node and not re.fullmatch(r"[a-z0-9_]{1,32}", node):
        raise SettingsError("settings-invalid", f"`agent.node` is {node!r}", "up to 32 of a-z, 0-9 and _")
    default = AgentSettings()
    found = AgentSettings(
        node,
        _int(table, "parallel", default.parallel),
        _int(table, "lease_s", default.lease_s),
        _int(table, "disks", default.disks),
    )
    for name, value, least in (
        ("parallel", found.parallel, 1),
        ("lease_s", found.lease_s, 2),
        ("disks", found.disks, 1),
    ):
        if value < least:
            raise SettingsError("settings-invalid", f"`agent.{name}` is {value}", f"{least} or more")
    return found


def _int(table: _Table, key: str, default: int) -> int:
    value = table.get(key, default)
    assert isinstance(value, int)
    return value


def _path(table: _Table, key: str, base: Path) -> Path | None:
    value = _text(table, key)
    return (base / value).absolute() if value else None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise SettingsError("settings-invalid", f"`{name}` is {value!r}", f"one of {', '.join(allowed)}")
    return value


def _port(name: str, value: int) -> int:
    if not 1 <= value <= 65535:
        raise SettingsError("settings-invalid", f"`{name}` is {value}, which is not a port")
    return value


def _kafka(table: _Table, base: Path) -> KafkaSettings:
    if "url" in table:
        table = {**table, **_from_kafka_url(str(table["url"]), table)}
    bootstrap = _text(table, "bootstrap")
    if not bootstrap:
        raise SettingsError("settings-invalid", "`kafka.bootstrap` is missing", "give it, or `kafka.url`")
    servers = [s.strip() for s in bootstrap.split(",") if s.strip()]
    for server in servers:
        m = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s/@\[\]]+):(\d+)", server)
        if m is None:
            raise SettingsError(
                "settings-invalid", f"`kafka.bootstrap` holds {server!r}", "host:port, separated by commas"
            )
        _port("kafka.bootstrap", int(m[2]))

    protocol = _one_of("kafka.security_protocol", _text(table, "security_protocol") or "PLAINTEXT", SECURITY_PROTOCOLS)
    mechanism, username = _text(table, "sasl_mechanism"), _text(table, "sasl_username")
    password_file = _path(table, "sasl_password_file", base)
    if protocol.startswith("SASL"):
        mechanism = _one_of("kafka.sasl_mechanism", mechanism or "SCRAM-SHA-512", SASL_MECHANISMS)
        if username is None or password_file is None:
            missing = "sasl_username" if username is None else "sasl_password_file"
            raise SettingsError("settings-invalid", f"{protocol} needs `kafka.{missing}`")
    elif username is not None or mechanism is not None:
        raise SettingsError(
            "settings-invalid",
            f"`kafka.sasl_…` is given but `kafka.security_protocol` is {protocol}",
            f"say {'SASL_SSL' if protocol == 'SSL' else 'SASL_PLAINTEXT or SASL_SSL'}",
        )
    if not protocol.endswith("SSL") and not table.get("allow_plaintext"):
        outside = [s for s in servers if not is_loopback(s.rpartition(":")[0])]
        if outside:
            raise SettingsError(
                "settings-plaintext",
                f"captured data would go unencrypted to {outside[0]} ({protocol})",
                "use SSL or SASL_SSL (kafkas://); `kafka.allow_plaintext = true` where the network is yours alone",
            )
    replication = _int(table, "replication_factor", 1)
    if not 1 <= replication <= 9:
        raise SettingsError("settings-invalid", f"`kafka.replication_factor` is {replication}")
    prefix = _text(table, "prefix")
    prefix = "holdfast." if prefix is None else prefix
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}", prefix):
        raise SettingsError(
            "settings-invalid", f"`kafka.prefix` is {prefix!r}", "lower case letters, digits, dots, dashes"
        )
    return KafkaSettings(
        bootstrap=",".join(servers),
        prefix=prefix,
        replication_factor=replication,
        security_protocol=protocol,
        sasl_mechanism=mechanism,
        sasl_username=username,
        sasl_password_file=password_file,
        ca_file=_path(table, "ca_file", base),
        compression=_one_of("kafka.compression", text, COMPRESSIONS) if (text := _text(table, "compression")) else None,
        allow_plaintext=bool(table.get("allow_plaintext")),
    )


def _from_kafka_url(url: str, table: _Table) -> _Table:
    """`kafka[s]://[user@]host:port[,host:port…][?mechanism=…&password_file=…&ca_file=…&replication_factor=…&prefix=…]`."""
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise SettingsError("settings-invalid", f"`kafka.url` is not a URL: {e}") from e
    if parts.scheme not in KAFKA_URL_SCHEMES:
        raise SettingsError(
            "settings-invalid", f"`kafka.url` starts with {parts.scheme!r}", "kafka:// or, with TLS, kafkas://"
        )
    clash = [k for k in ("bootstrap", "security_protocol") if k in table]
    if clash:
        raise SettingsError("settings-invalid", f"`kafka.url` and `kafka.{clash[0]}` are both given", "leave one out")
    user, _, servers = parts.netloc.rpartition("@")
    if ":" in user:
        raise SettingsError(
            "settings-secret",
            "`kafka.url` holds a password",
            "put it in a file and name that in `kafka.sasl_password_file`",
        )
    plain, sasl = KAFKA_URL_SCHEMES[parts.scheme]
    out: _Table = {"bootstrap": servers, "security_protocol": sasl if user or "sasl_username" in table else plain}
    if user:
        out["sasl_username"] = unquote(user)
    names = {"mechanism": "sasl_mechanism", "password_file": "sasl_password_file"}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        name = names.get(key, key)
        if name in ("url", "bootstrap", "security_protocol") or name not in _KEYS["kafka"]:
            raise SettingsError("settings-unknown", f"`kafka.url` has a parameter {key!r}", f"known: {_known('kafka')}")
        kind = _KEYS["kafka"][name]
        out[name] = value if kind == "path" else _from_text(f"`kafka.url` {key}", kind, value)
    return out


def _postgres(table: _Table, base: Path) -> PostgresSettings:
    if "url" in table:
        table = {**table, **_from_postgres_url(str(table["url"]), table)}
    host = _text(table, "host") or "127.0.0.1"
    sslmode = _text(table, "sslmode") or ("prefer" if is_loopback(host) or host.startswith("/") else "verify-full")
    _one_of("postgres.sslmode", sslmode, SSL_MODES)
    local = is_loopback(host) or host.startswith("/")
    if not local and sslmode in ("disable", "allow", "prefer") and not table.get("allow_plaintext"):
        raise SettingsError(
            "settings-plaintext",
            f"what is read of {host} and written to it could cross the network unencrypted (sslmode {sslmode})",
            "use sslmode verify-full (with ca_file), verify-ca or require; "
            "`postgres.allow_plaintext = true` where the network is yours alone",
        )
    return PostgresSettings(
        host=host,
        port=_port("postgres.port", _int(table, "port", 5432)),
        user=_text(table, "user") or "holdfast",
        dbname=_text(table, "dbname") or "holdfast",
        password_file=_path(table, "password_file", base),
        sslmode=sslmode,
        ca_file=_path(table, "ca_file", base),
        allow_plaintext=bool(table.get("allow_plaintext")),
    )


def _from_postgres_url(url: str, table: _Table) -> _Table:
    """`postgresql://[user@]host[:port][/dbname][?sslmode=…&sslrootcert=…&password_file=…&allow_plaintext=…]`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise SettingsError("settings-invalid", f"`postgres.url` is not a URL: {e}") from e
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise SettingsError("settings-invalid", "`postgres.url` is not postgresql://user@host:port/dbname")
    clash = [k for k in ("host", "port", "user", "dbname") if k in table]
    if clash:
        raise SettingsError(
            "settings-invalid", f"`postgres.url` and `postgres.{clash[0]}` are both given", "leave one out"
        )
    if parts.password is not None:
        raise SettingsError(
            "settings-secret",
            "`postgres.url` holds a password",
            "put it in a file and name that in `postgres.password_file`",
        )
    out: _Table = {"host": parts.hostname}
    if port is not None:
        out["port"] = port
    if parts.username:
        out["user"] = unquote(parts.username)
    if parts.path.strip("/"):
        out["dbname"] = unquote(parts.path.strip("/"))
    names = {name: name for name in ("sslmode", "ca_file", "password_file", "allow_plaintext")} | {
        "sslrootcert": "ca_file"
    }
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "password":
            raise SettingsError(
                "settings-secret", "`postgres.url` holds a password", "name a file in `postgres.password_file`"
            )
        if key not in names:
            raise SettingsError(
                "settings-unknown", f"`postgres.url` has a parameter {key!r}", f"known: {', '.join(names)}"
            )
        kind = _KEYS["postgres"][names[key]]
        out[names[key]] = _from_text(f"`postgres.url` {key}", kind, value) if kind == "bool" else value
    return out


def _api(table: _Table, base: Path) -> ApiSettings:
    settings = ApiSettings(
        host=_text(table, "host") or "127.0.0.1",
        port=_port("api.port", _int(table, "port", DEFAULT_API_PORT)),
        tls_cert=_path(table, "tls_cert", base),
        tls_key=_path(table, "tls_key", base),
        watch_s=max(0, _int(table, "watch_s", ApiSettings().watch_s)),
    )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("settings-invalid", "`api.tls_cert` and `api.tls_key` go together")
    if settings.tls_cert is None and not is_loopback(settings.host):
        raise SettingsError(
            "settings-plaintext",
            f"the API would listen on {settings.host} without TLS",
            "name a certificate in `api.tls_cert` and its key in `api.tls_key`",
        )
    return settings
