"""The platforms there are: kind → module. A new one is one entry here and one registration with the contract suite.

Importing this imports no platform: a platform's SDK is an extra and is asked for when the platform is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from agents.errors import AgentError
from agents.machines import Host, HostPlatform, HostSettings
from agents.protocol import Platform, Source, SourceSettings

if TYPE_CHECKING:
    from agents.rollback.target import Target
    from agents.scratch.engine import Replayer, Tables

PLATFORMS: Mapping[str, str] = {
    "mariadb": "agents.platforms.mariadb",
    "mysql": "agents.platforms.mysql",
}
# Of hosts of virtual machines (`agents.machines`).
HOSTS: Mapping[str, str] = {
    "kvm": "agents.platforms.kvm",
}
EXTRAS: Mapping[str, str] = {
    "mariadb": "mariadb",
    "mysql": "mariadb",
}


def source(settings: SourceSettings) -> Source:
    """The source of these settings. Raises `AgentError` (`kind-unknown`, `extra-missing`)."""
    return cast("Platform", _module(settings.kind)).source(settings)


def host(settings: HostSettings) -> Host:
    """The host of these settings. Raises as `source`."""
    return cast("HostPlatform", _module(settings.kind)).host(settings)


def target(settings: SourceSettings, method: str = "native") -> Target:
    """The same database as the target of a rollback by `method` (`agents.rollback.plan.METHODS`). Raises as `source`."""
    return cast("Target", _module(settings.kind).target(settings, method))


def replayer(kind: str) -> Replayer:
    """What makes scratch copies of such sources. Raises as `source`, and `AgentError` (`kind-unsupported`)."""
    make = getattr(_module(kind), "replayer", None)
    if make is None:
        raise AgentError(
            "kind-unsupported", f"scratch copies of {kind} sources are not built", "MariaDB's and MySQL's are"
        )
    return cast("Replayer", make())


def tables(kind: str) -> Tables:
    """What brings single tables of such sources back. Raises as `replayer`."""
    make = getattr(_module(kind), "tables", None)
    if make is None:
        raise AgentError(
            "kind-unsupported", f"single tables of {kind} sources cannot be brought back", "MariaDB's and MySQL's can"
        )
    return cast("Tables", make())


def _module(kind: str) -> Any:
    modules = {**PLATFORMS, **HOSTS}
    module = modules.get(kind)
    if module is None:
        known = ", ".join(sorted(modules))
        raise AgentError("kind-unknown", f"there is no platform {kind!r}", f"known are: {known}")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("agents", "streams", "schemas"):
            raise
        raise AgentError(
            "extra-missing",
            f"platform {kind} needs the Python package {error.name}",
            f"pip install 'holdfast[{EXTRAS[kind]}]'",
        ) from error
