"""A Debian package of a newer suite than this machine's, with everything it needs, unpacked into a folder of its own.

Nothing is installed: apt works on a state of its own, as if no package were there, so that a package's libraries come
with it, the C library included. Where packages come from, and whose signature counts, is what this machine's apt is set
up for; apt checks signed lists and digests as it always does. Programs are started through the unpacked loader.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.packages import Progress, cache_dir, exclusive
from deploy.errors import PackageError

TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Origin:
    """Where packages of this machine's own release come from. `signed_by`: a keyring, or empty for apt's own trust."""

    uri: str
    signed_by: str


@dataclass(frozen=True, slots=True)
class Root:
    """A folder with packages unpacked, laid out like a system's `/`."""

    path: Path

    @property
    def version(self) -> str:
        """Of the package that was asked for, such as `9.7.4-2`."""
        return self.path.name.rpartition("_")[2]

    def program(self, path: str) -> list[str]:
        """The beginning of a command that runs `path` (such as `usr/sbin/mysqld`) with the libraries it came with."""
        loader = next(self.path.glob("usr/lib/*-linux-gnu/ld-linux*.so.*"))
        return [str(loader), "--library-path", str(loader.parent), str(self.path / path)]


def unpacked(package: str, suite: str, series: str, progress: Progress = lambda _: None) -> Root:
    """`package` of `suite`, of a version that begins with `series` (`9.7.`), fetched where that is still to be done.

    A suite that moves on keeps no older versions: once the series is gone from it, and was not fetched before, it cannot be
    had any more. Raises `PackageError` (`package-unavailable`, `package-gone`).
    """
    if found := present(package, suite, series):
        return found
    with exclusive(f"debian-{package}"):
        if found := present(package, suite, series):
            return found
        progress(f"fetching {package} {series}* of Debian {suite}")
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            return _fetch(package, suite, series, Path(scratch))


def present(package: str, suite: str, series: str) -> Root | None:
    """What `unpacked` made earlier."""
    found = sorted(cache_dir().glob(f"debian-{suite}_{package}_{series}*"), key=lambda p: p.stat().st_mtime)
    return Root(found[-1]) if found else None


def candidate(versions: str, series: str) -> str | None:
    """The newest version that begins with `series` in what `apt-cache madison` says (`package | version | archive`), which
    lists newest first."""
    found = (line.split("|")[1].strip() for line in versions.splitlines() if line.count("|") >= 2)
    return next((v for v in found if v.startswith(series)), None)


def origin(etc: Path = Path("/etc")) -> Origin:
    """Raises `PackageError` when this is no Debian, or its apt does not say where its packages come from."""
    release = _read(etc / "os-release")
    codename = re.search(r'^VERSION_CODENAME="?([\w-]+)', release, re.MULTILINE)
    if codename and re.search(r'^ID="?debian"?$', release, re.MULTILINE):
        for uri, suites, signed_by in _entries(etc / "apt"):
            if codename[1] in suites:
                return Origin(uri, signed_by)
    raise PackageError("package-unavailable", "this system's apt knows no Debian archive")


def _entries(apt: Path) -> Iterator[tuple[str, list[str], str]]:
    """URI, suites and keyring of every entry for binary packages, in both of apt's formats."""
    for file in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", _read(file)):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.+)$", stanza, re.MULTILINE))
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                for uri in fields.get("URIs", "").split():
                    yield uri, fields.get("Suites", "").split(), fields.get("Signed-By", "")
    for file in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]:
        for options, uri, suite in re.findall(
            r"^deb[ \t]+(?:\[([^\]]*)\][ \t]+)?(\S+)[ \t]+(\S+)", _read(file), re.MULTILINE
        ):
            signed_by = re.search(r"signed-by=(\S+)", options)
            yield uri, [suite], signed_by[1] if signed_by else ""


def _fetch(package: str, suite: str, series: str, scratch: Path) -> Root:
    here = origin()
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True)
    (scratch / "status").touch()
    signed_by = f"Signed-By: {here.signed_by}\n" if here.signed_by else ""
    (scratch / "suite.sources").write_text(
        f"Types: deb\nURIs: {here.uri}\nSuites: {suite}\nComponents: main\n{signed_by}", encoding="utf-8"
    )
    settings = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": scratch / "suite.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        # Downloads go where only we may write.
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    apt = ["apt-get", "-qq", *options]
    _run([*apt, "update"])
    offered = _run(["apt-cache", *options, "madison", package])
    version = candidate(offered, series)
    if version is None:
        there = ", ".join(dict.fromkeys(v.split("|")[1].strip() for v in offered.splitlines() if v.count("|") >= 2))
        raise PackageError(
            "package-gone",
            f"Debian {suite} has no {package} {series}* any more (it has {there or 'none'})",
            "what Holdfast is tested with is named in deploy/demo: raise it there, and see that its tests pass",
        )
    _run([*apt, "install", "--yes", "--download-only", f"{package}={version}"])
    root = scratch / "root"
    archives = sorted((scratch / "cache" / "archives").glob("*.deb"))
    for archive in archives:
        _run(["dpkg-deb", "--extract", str(archive), str(root)])
    version = next(a.name.split("_")[1] for a in archives if a.name.startswith(f"{package}_")).replace("%3a", "-")
    root.chmod(0o755)
    os.sync()  # what is renamed into place is there as a whole, also after a power cut
    return Root(root.rename(cache_dir() / f"debian-{suite}_{package}_{version}"))


def _run(command: list[str]) -> str:
    """What it wrote. Raises `PackageError` when it fails."""
    if shutil.which(command[0]) is None:
        raise PackageError("package-unavailable", f"this system has no {command[0]}")
    environ = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=environ,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError("package-unavailable", f"{command[0]} did not end within {TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise PackageError("package-unavailable", f"{command[0]}: {said[0] if said else done.returncode}")
    return done.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
