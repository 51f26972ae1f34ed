"""Connections to a MariaDB server: accounts, TLS, and which errors mean "later" rather than "never"."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from typing import Any

import pymysql
from pymysql.constants import CR, ER

from agents.errors import DAMAGED, AgentError, SourceUnavailable
from agents.protocol import Account, SourceSettings
from streams.settings import is_loopback

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
UNREACHABLE_HINT = "is it running, and are host and port right as seen from the agent's machine?"

# Server error numbers that a later attempt may not meet again (mariadb.com/kb/en/mariadb-error-codes).
_PASSING = frozenset(
    {
        ER.CON_COUNT_ERROR,
        ER.SERVER_SHUTDOWN,
        ER.TOO_MANY_USER_CONNECTIONS,
        ER.HOST_IS_BLOCKED,
        CR.CR_CONNECTION_ERROR,
        CR.CR_CONN_HOST_ERROR,
        CR.CR_SERVER_GONE_ERROR,
        CR.CR_SERVER_LOST,
        CR.CR_SERVER_LOST_EXTENDED,
        1927,  # ER_CONNECTION_KILLED
        1317,  # ER_QUERY_INTERRUPTED: a server that shuts down says so
    }
)
# What PyMySQL raises of its own accord about an answer that makes no sense to it.
NONSENSE = (IndexError, ValueError, AssertionError, struct.error, TypeError)
_DENIED = frozenset({ER.ACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, 4151, 1862, 1820})


def tls_context(settings: SourceSettings) -> ssl.SSLContext | None:
    """None for `off`; `required` encrypts without asking who answers; `verify` wants a certificate for `host` signed by
    `tls_ca` (or by a CA that the system trusts)."""
    if settings.tls == "off":
        return None
    if settings.tls not in ("required", "verify"):
        raise AgentError("tls-invalid", f"{settings.tls!r} is no TLS mode", "use off, required or verify")
    try:
        # The certificates themselves (the API hands over what the user's file holds), or a file on this machine.
        pem = settings.tls_ca if settings.tls_ca.lstrip().startswith("-----BEGIN") else None
        context = ssl.create_default_context(cafile=None if pem else settings.tls_ca or None, cadata=pem)
    except (OSError, ssl.SSLError) as error:
        raise AgentError("tls-ca-unreadable", f"the given CA cannot be used: {error}", "give a PEM file") from error
    if settings.tls == "required":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def refuse_plaintext(source: SourceSettings) -> None:
    """Rows and passwords do not cross a network in clear. Raises `AgentError` (`source-tls-off`)."""
    if source.tls == "off" and not is_loopback(source.host) and source.options.get("allow_plaintext") != "yes":
        raise AgentError(
            "source-tls-off",
            f"{source.host} is another machine and TLS is off: everything would cross the network in clear",
            "use tls verify (with tls_ca) or required; or, on a network of your own, the option allow_plaintext=yes",
        )


def connect(source: SourceSettings, account: Account, **options: Any) -> pymysql.Connection:
    """A new autocommit connection of the account for that purpose. `options` go to PyMySQL (database, read_timeout …).

    Raises `SourceUnavailable` (`source-unreachable`, `source-damaged`), `AgentError` (`source-denied`, `source-tls`,
    `source-tls-off`, `account-missing`).
    """
    user = source.accounts.get(account)
    if not user:
        raise AgentError(
            "account-missing", f"source {source.source} has no {account} account", "define the source with one"
        )
    refuse_plaintext(source)
    context = tls_context(source)
    options = {"autocommit": True, "charset": "utf8mb4", "read_timeout": READ_TIMEOUT_S, **options}
    try:
        return pymysql.connect(
            host=source.host,
            port=source.port,
            user=user,
            password=source.passwords.get(account, ""),
            connect_timeout=CONNECT_TIMEOUT_S,
            ssl=context,
            ssl_disabled=context is None,
            program_name=f"holdfast-{account}",
            **options,
        )
    except pymysql.err.MySQLError as error:
        raise error_of(error, source) from error
    except (OSError, ssl.SSLError) as error:
        where = f"{source.host}:{source.port}"
        raise SourceUnavailable("source-unreachable", f"{where} does not answer: {error}", UNREACHABLE_HINT) from error
    except NONSENSE as error:
        raise error_of(error, source) from error


def error_of(error: BaseException, source: SourceSettings) -> AgentError:
    """PyMySQL's or the socket's error in this room's terms."""
    where = f"{source.host}:{source.port}"
    if isinstance(error, AgentError):
        return error
    if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
        return AgentError(
            "source-tls",
            f"{where} shows a certificate that cannot be trusted: {error.__cause__ or error.__context__}",
            "give the CA that signed it (tls_ca) and connect by the name that stands in it",
        )
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    if "SSL" in text and "doesn't support" in text:
        return AgentError(
            "source-tls", f"{where} offers no TLS", "set ssl_cert and ssl_key on the server (tls off: on loopback only)"
        )
    if number in _DENIED:
        return AgentError(
            "source-denied", f"{where} refuses the account: {text}", "check user, password, host part and privileges"
        )
    if number == ER.SPECIFIC_ACCESS_DENIED_ERROR:
        asked = re.search(r"the (.+) privilege\(s\)", text)
        needed = asked[1].split(", ")[-1] if asked else "…"
        return AgentError(
            "privilege-missing", f"{where} refuses: {text}", f"GRANT {needed} ON *.* TO the account that was refused"
        )
    if number in _PASSING or isinstance(error, (OSError, socket.timeout, pymysql.err.InterfaceError)):
        return SourceUnavailable("source-unreachable", f"{where} does not answer: {text}", UNREACHABLE_HINT)
    if not number:
        # Not the server's own words: packets out of sequence, or something that is no answer at all.
        return SourceUnavailable(DAMAGED, f"{where} sent what makes no sense: {text}", "use TLS; check the network")
    return AgentError("source-error", f"{where} answers error {number}: {text}")
