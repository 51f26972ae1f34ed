"""A site on one machine: which services it is made of, and how its data directory comes to be.

`SERVICES` is the list, in the order of starting. Which of them are started here follows from the settings alone: a site
that was made with an embedded Kafka has a directory `kafka`, and as long as its settings say `127.0.0.1:PORT` without TLS
or password, that is the one meant; likewise PostgreSQL. So a site is moved to servers of one's own by changing these
lines, and there is no second place that could disagree with them.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

import deploy
from deploy.embedded import kafka, postgres, site
from deploy.embedded.packages import Progress, mariadb_11_4_place
from deploy.embedded.ports import free_ports, is_free, listener, require_free
from deploy.embedded.process import Command
from deploy.embedded.user import ServiceUser, service_user
from deploy.errors import SiteError
from streams.admin import ensure_topics
from streams.errors import StreamError
from streams.settings import DEFAULT_API_PORT, Settings, is_loopback, load
from streams.topics import CATALOGUE


@dataclass(frozen=True, slots=True)
class Stack:
    """A site as it is to be run here: its settings, and whom its servers run as."""

    settings: Settings
    user: ServiceUser
    controller_port: int = 0  # Kafka's own; nobody else uses it, so it may be another at each start

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir

    @property
    def config(self) -> Path:
        return self.data_dir / site.SETTINGS

    @property
    def logs(self) -> Path:
        return self.data_dir / "logs"

    @property
    def embeds_kafka(self) -> bool:
        k = self.settings.kafka
        plain = k.security_protocol == "PLAINTEXT" and re.fullmatch(r"127\.0\.0\.1:\d+", k.bootstrap)
        return bool(plain) and (self.data_dir / "kafka").is_dir()

    @property
    def embeds_postgres(self) -> bool:
        return self.settings.postgres.host == "127.0.0.1" and (self.data_dir / "postgres").is_dir()

    @property
    def broker(self) -> kafka.Broker:
        return kafka.Broker(
            directory=self.data_dir / "kafka",
            port=int(self.settings.kafka.bootstrap.rpartition(":")[2]),
            controller_port=self.controller_port,
            user=self.user,
            log_file=self.logs / "kafka.log",
        )

    @property
    def cluster(self) -> postgres.Cluster:
        return postgres.Cluster(
            directory=self.data_dir / "postgres",
            port=self.settings.postgres.port,
            password_file=self.data_dir / "secrets" / "postgres.password",
            user=self.user,
            log_file=self.logs / "postgresql.log",
        )


@dataclass(frozen=True, slots=True)
class Service:
    """One process of a site.

    `prepare` does what must be done before it starts and says how to start it; `check` is its named health check: None
    when it is well, else what is wrong; `after_ready` is run once each time it has become well.
    """

    name: str
    says: str
    check_name: str
    prepare: Callable[[Stack, Progress], Command]
    check: Callable[[Stack], str | None]
    wanted: Callable[[Stack], bool] = lambda _: True
    after_ready: Callable[[Stack], None] = lambda _: None
    start_timeout: float = 90.0


def _module(name: str, module: str, *arguments: str) -> Callable[[Stack, Progress], Command]:
    def prepare(stack: Stack, _: Progress) -> Command:
        return Command(
            name=name,
            argv=[sys.executable, "-P", "-m", module, "--config", str(stack.config), *arguments],
            log_file=stack.logs / f"{name}.log",
            cwd=stack.data_dir,
            environ={"HOLDFAST_DATA": str(stack.data_dir), "PYTHONUNBUFFERED": "1"},
            user=process_user(stack.user),
            stop_timeout=20.0,
        )

    return prepare


def _agent(stack: Stack, progress: Progress) -> Command:
    """The agent replays definitions on a scratch server: besides the system's, it may use the one we bring, once it is there."""
    command = _module("agent", "agents")(stack, progress)
    programs = [os.environ.get("HOLDFAST_MARIADBD", ""), str(mariadb_11_4_place() / "bin" / "mariadbd")]
    return replace(command, environ={**command.environ, "HOLDFAST_MARIADBD": os.pathsep.join(filter(None, programs))})


def process_user(user: ServiceUser) -> ServiceUser | None:
    """`user` where that user can reach our Python and code; None, "as we are", where not (root, in a private home)."""
    reachable = user.can_reach(Path(sys.executable)) and user.can_reach(Path(deploy.__file__).parent)
    return user if reachable else None


def _topics(stack: Stack) -> None:
    ensure_topics(stack.settings.kafka, [(topic.name, None) for topic in CATALOGUE if topic.per is None])


def _database(stack: Stack) -> None:
    postgres.ensure_database(stack.cluster, stack.settings.postgres.dbname)


def _api_answers(stack: Stack) -> str | None:
    """Asks over the loopback, so the certificate is not verified: it need not name this machine's loopback."""
    api = stack.settings.api
    local = api if is_loopback(api.host) else replace(api, host="127.0.0.1" if api.host == "0.0.0.0" else api.host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # with no authorities, which take a while to read
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"{local.url}/v1/health", timeout=5):
            return _somebody_else(stack)
    except urllib.error.HTTPError as e:
        try:
            parts = json.load(e).get("parts", {})
        except ValueError:
            parts = {}
        away = ", ".join(f"{part} is {how}" for part, how in parts.items() if how != "ok")
        return away or f"it answers {e.code}"
    except OSError as e:
        return f"it does not answer on {local.url}: {e}"


def _somebody_else(stack: Stack) -> str | None:
    """Another site's API may have taken the port between our look at it and our API's start; it would answer as well."""
    found = listener(stack.settings.api.port)
    try:
        if found is None or str(stack.config) in found.cmdline():
            return None
    except psutil.Error:
        return None
    return f"port {stack.settings.api.port} is taken by another process ({found.pid}): give one with --port-api"


SERVICES: Sequence[Service] = (
    Service(
        name="kafka",
        says="the log",
        check_name="the cluster answers and has a controller",
        prepare=lambda stack, progress: kafka.prepare(stack.broker, progress),
        check=lambda stack: kafka.ready(stack.settings.kafka),
        wanted=lambda stack: stack.embeds_kafka,
    ),
    Service(
        name="postgresql",
        says="the read models",
        check_name="it takes connections",
        prepare=lambda stack, progress: postgres.prepare(stack.cluster, progress),
        check=lambda stack: postgres.ready(stack.cluster.settings("postgres")),
        wanted=lambda stack: stack.embeds_postgres,
        after_ready=_database,
    ),
    Service(
        name="processors",
        says="keep the read models in step with the log",
        check_name="the process runs",
        prepare=_module("processors", "projections", "worker"),
        check=lambda _: None,
    ),
    Service(
        name="agent",
        says="captures and rolls back",
        check_name="the process runs",
        prepare=_agent,
        check=lambda _: None,
    ),
    Service(
        name="api",
        says="what you and the console talk to",
        check_name="it answers on /v1/health",
        prepare=_module("api", "api"),
        check=_api_answers,
    ),
)
BY_NAME: Mapping[str, Service] = {service.name: service for service in SERVICES}


def services(stack: Stack, names: Sequence[str] = ()) -> list[Service]:
    """What is to run here: all that the settings ask for, or of those the ones in `names`, in the order of starting.

    Raises `SiteError` (`service-unknown`).
    """
    for name in names:
        if name not in BY_NAME:
            raise SiteError("service-unknown", f"there is no service {name!r}", f"known: {', '.join(BY_NAME)}")
    return [s for s in SERVICES if s.wanted(stack) and (not names or s.name in names)]


def before_processes(stack: Stack) -> None:
    """What Holdfast's processes find in place: the topics that every site has. Raises `StreamError`."""
    _topics(stack)


@dataclass(frozen=True, slots=True)
class Choices:
    """What `holdfast up` was told. None: as it was, or for a new site: chosen here."""

    site: str | None = None
    port_kafka: int | None = None
    port_postgres: int | None = None
    port_api: int | None = None
    kafka_url: str | None = None
    postgres_url: str | None = None


def open_stack(data_dir: Path) -> Stack:
    """The site in `data_dir`. Raises `SiteError` (`site-missing`, …) and `SettingsError`."""
    if not site.exists(data_dir):
        raise SiteError("site-missing", f"there is no site in {data_dir}", "`holdfast up` makes one")
    return Stack(load(data_dir / site.SETTINGS), service_user())


def make_stack(data_dir: Path, choices: Choices) -> Stack:
    """The site in `data_dir`, made where there is none and changed as `choices` say. Nothing may run in it.

    Raises `SiteError` (`directory-…`, `disk-full`, `site-…`) and `SettingsError`.
    """
    user = service_user()
    site.exists(data_dir)
    user.require_reach(data_dir)
    site.require_space(data_dir)
    site.create(data_dir, user)
    if (data_dir / site.SETTINGS).exists():
        _change(open_stack(data_dir), choices)
    else:
        _begin(data_dir, choices)
    user.own_tree(data_dir)
    return open_stack(data_dir)


def require_ports(stack: Stack, names: Sequence[str] = ()) -> Stack:
    """`stack` with a controller port. Raises `SiteError` (`port-taken`) when a service could not listen."""
    chosen = {service.name for service in services(stack, names)}
    if "kafka" in chosen:
        require_free(stack.broker.port, "Kafka", "--port-kafka")
    if "postgresql" in chosen:
        require_free(stack.cluster.port, "PostgreSQL", "--port-postgres")
    if "api" in chosen:
        require_free(stack.settings.api.port, "the API", "--port-api", stack.settings.api.host)
    return replace(stack, controller_port=free_ports(1)[0])


def _begin(data_dir: Path, choices: Choices) -> None:
    """First settings: ports that are free now, unless they were given."""
    free = free_ports(3)
    if choices.kafka_url:
        kafka_lines = f"url = {json.dumps(choices.kafka_url)}"
    else:
        kafka_lines = f'bootstrap = "127.0.0.1:{choices.port_kafka or free[0]}"'
    if choices.postgres_url:
        postgres_lines = f"url = {json.dumps(choices.postgres_url)}"
    else:
        postgres_lines = (
            f'host = "127.0.0.1"\nport = {choices.port_postgres or free[1]}\n'
            f'user = "{postgres.USER}"\ndbname = "{postgres.USER}"\n'
            'password_file = "secrets/postgres.password"\nsslmode = "disable"'
        )
    api_port = choices.port_api or (DEFAULT_API_PORT if is_free(DEFAULT_API_PORT) else free[2])
    text = (
        "# Settings of this site; every process reads them when it starts. Paths are relative to this file.\n"
        "# Kafka and PostgreSQL at 127.0.0.1 are the ones `holdfast up` starts; for servers of your own give `url`.\n"
        f"site = {json.dumps(choices.site or 'local')}\n\n"
        f"[kafka]\n{kafka_lines}\n\n[postgres]\n{postgres_lines}\n\n"
        f'[api]\nhost = "127.0.0.1"\nport = {api_port}\n'
    )
    # The directories say that the servers are embedded ones, so they come before the settings, but not for settings that
    # will not do: what is tried next may be a server elsewhere.
    trial = _trial(data_dir, text)
    for name, url in (("kafka", choices.kafka_url), ("postgres", choices.postgres_url)):
        if not url:
            (data_dir / name).mkdir(exist_ok=True, mode=0o700)
    trial.rename(data_dir / site.SETTINGS)


def _change(stack: Stack, choices: Choices) -> None:
    """Ports given for a site that exists. Its name is in its events and does not change."""
    if choices.site not in (None, stack.settings.site):
        raise SiteError(
            "site-named",
            f"the site in {stack.data_dir} is {stack.settings.site!r} and stays so",
            "use another --data-dir",
        )
    for table, url in (("kafka", choices.kafka_url), ("postgres", choices.postgres_url)):
        if url:
            raise SiteError(
                "site-settled",
                f"the site in {stack.data_dir} has its {table} already",
                f"the setting is `{table}.url` in {stack.config}; what was written stays where it is",
            )
    before = text = stack.config.read_text(encoding="utf-8")
    if choices.port_kafka and stack.embeds_kafka:
        text = _set(text, "kafka", "bootstrap", f'"127.0.0.1:{choices.port_kafka}"')
    if choices.port_postgres and stack.embeds_postgres:
        text = _set(text, "postgres", "port", str(choices.port_postgres))
    if choices.port_api:
        text = _set(text, "api", "port", str(choices.port_api))
    if text != before:
        _write_settings(stack.data_dir, text)


def _write_settings(data_dir: Path, text: str) -> None:
    _trial(data_dir, text).rename(data_dir / site.SETTINGS)


def _trial(data_dir: Path, text: str) -> Path:
    """`text` as settings beside those that there are: only what can be read back may take their place."""
    trial = data_dir / (site.SETTINGS + ".trial")
    site.write_file(trial, text, 0o644)
    try:
        load(trial)
    except StreamError:
        trial.unlink()
        raise
    return trial


def _set(text: str, table: str, key: str, value: str) -> str:
    """`text` (TOML) with `key` of `table` set to `value`; comments and everything else stay."""
    head = re.search(rf"^\[{table}\][^\n]*\n", text, re.MULTILINE)
    if head is None:
        return f"{text}\n[{table}]\n{key} = {value}\n"
    following = re.search(r"^\[", text[head.end() :], re.MULTILINE)
    end = head.end() + following.start() if following else len(text)
    body, found = re.subn(rf"^{key}\s*=.*$", f"{key} = {value}", text[head.end() : end], flags=re.MULTILINE)
    return text[: head.end()] + (body if found else f"{key} = {value}\n{body}") + text[end:]
