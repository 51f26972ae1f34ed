"""A Kafka cluster for Holdfast: what its brokers are told (broker.properties), and the account with its rights (acls.toml).

Both are for people to read and use as they are; `broker_properties` and `grant` do with them what the comments there say
by hand. The Compose form and the tests use these.
"""

from __future__ import annotations

import base64
import os
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from deploy.errors import ServerError
from streams.settings import KafkaSettings

HERE = Path(__file__).parent
ITERATIONS = 8192
_MECHANISMS = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}


def new_cluster_id() -> str:
    """A random one, in Kafka's form: URL-safe base64 of 16 bytes, no padding, no leading hyphen."""
    return "H" + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")[1:]


def broker_properties(values: Mapping[str, str]) -> dict[str, str]:
    """`broker.properties` with its `${…}` filled in from `values`. KeyError names one that has no value."""
    lines = (HERE / "broker.properties").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {key: Template(value).substitute(values) for key, value in given.items()}


def grant(administrator: KafkaSettings, account: KafkaSettings, patience: float = 60.0) -> None:
    """Make the SCRAM account that `account` names, with the rights of acls.toml under its prefix; wait until it works.

    May be done again: password and rights are then those of now. Raises `ServerError` (`kafka-grant`).
    """
    deadline = time.monotonic() + patience
    name, mechanism = account.sasl_username or "", _MECHANISMS[account.sasl_mechanism or ""]
    while True:
        try:
            admin = AdminClient({**administrator.client_config(), "log_level": 0})
            password = (account.password() or "").encode()
            change = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, ITERATIONS), password)
            admin.alter_user_scram_credentials([change])[name].result(30)
            for future in admin.create_acls(list(_bindings(name, account.prefix))).values():
                future.result(30)
            _try(account)
            return
        except (KafkaException, TimeoutError) as e:
            # Brokers may still be starting; rights and accounts reach them a moment after they are in the metadata log.
            if time.monotonic() > deadline:
                raise ServerError("kafka-grant", f"cannot set up Kafka's account {name}: {_text(e)}") from e
            time.sleep(0.5)


def _bindings(account: str, prefix: str) -> Iterable[AclBinding]:
    for acl in tomllib.loads((HERE / "acls.toml").read_text(encoding="utf-8"))["acl"]:
        for operation in acl["operations"]:
            yield AclBinding(
                ResourceType[acl["resource"].upper()],
                acl["name"] if acl["pattern"] == "literal" else prefix,
                ResourcePatternType[acl["pattern"].upper()],
                f"User:{account}",
                "*",
                AclOperation[operation.upper()],
                AclPermissionType.ALLOW,
            )


def _try(account: KafkaSettings) -> None:
    client = AdminClient({**account.client_config(), "log_level": 0})
    client.list_topics(timeout=5)


def _text(e: Exception) -> str:
    cause = e.args[0] if e.args else e
    return str(cause.str()) if isinstance(cause, KafkaError) else str(e) or type(e).__name__
