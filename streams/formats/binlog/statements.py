"""What a statement in the log is: a definition change, an account's, a change of rows, transaction control, or nothing.

Looks at leading words only, through comments and executable comments, and never fails: what it does not recognise is
`other`, which callers treat as a barrier. Knows no SQL beyond that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final, Literal

StatementKind = Literal[
    "ddl", "account", "dml", "begin", "commit", "rollback", "rollback_to", "savepoint", "xa", "neutral", "other"
]  # fmt: skip

REDACTED: Final = "(account statement, not shown)"

_SPACE = re.compile(rb"[\s\x00]+")
_LINE_COMMENT = re.compile(rb"(?:#|--(?=[\s\x00]|$))[^\n]*")
_EXECUTABLE = re.compile(rb"/\*M?!\d*")
_WORD = re.compile(rb"[A-Za-z0-9_$@\x80-\xff]+")
_QUOTED = {
    ord("'"): re.compile(rb"'(?:[^'\\]|\\.|'')*'?", re.DOTALL),
    ord('"'): re.compile(rb'"(?:[^"\\]|\\.|"")*"?', re.DOTALL),
    ord("`"): re.compile(rb"`(?:[^`]|``)*`?", re.DOTALL),
}

_DML: Final = frozenset(
    (
        "INSERT",
        "UPDATE",
        "DELETE",
        "REPLACE",
        "LOAD",
        "CALL",
        "DO",
        "SELECT",
        "WITH",
        "VALUES",
        "HANDLER",
        "BINLOG",
        "(",
    )
)
_NEUTRAL: Final = frozenset(
    (
        "ANALYZE",
        "OPTIMIZE",
        "FLUSH",
        "CHECK",
        "CHECKSUM",
        "USE",
        "SHOW",
        "EXPLAIN",
        "DESCRIBE",
        "KILL",
    )
)
_DDL: Final = frozenset(
    (
        "CREATE",
        "ALTER",
        "DROP",
        "RENAME",
        "TRUNCATE",
        "INSTALL",
        "UNINSTALL",
        "REPAIR",
        "COMMENT",
    )
)
_ACCOUNT_OBJECTS: Final = frozenset(("USER", "ROLE", "SERVER"))

# Secrets elsewhere than in account statements: bodies of procedures and events, passwords in connection texts.
_GAP = rb"(?:[\s\x00]|/\*.{0,200}?\*/)*"
_SECRET = re.compile(
    rb"IDENTIFIED" + _GAP + rb"(?:BY|VIA|WITH|AS)\b"
    rb"|PASSWORD" + _GAP + rb"(?:\(|:?=)" + _GAP + rb"['\"]"
    rb"|PASSWORD(?:[\s\x00]|/\*.{0,200}?\*/)+(?:FOR\b|['\"])"
    rb"|SET" + _GAP + rb"PASSWORD\b"
    rb"|://[^/\s'\"]{0,200}:[^/\s'\"]{0,200}@",
    re.IGNORECASE | re.DOTALL,
)


def tokens(sql: bytes) -> Iterator[str]:
    """Words in upper case, other characters one by one, quoted text as its opening quote. Comments are left out, the
    content of executable ones (`/*!50003 … */`) is not."""
    at, end = 0, len(sql)
    while at < end:
        found = _SPACE.match(sql, at) or _LINE_COMMENT.match(sql, at)
        if found is not None:
            at = found.end()
        elif sql.startswith(b"/*", at):
            found = _EXECUTABLE.match(sql, at)
            if found is not None:
                at = found.end()
            else:
                close = sql.find(b"*/", at + 2)
                at = close + 2 if close >= 0 else end
        elif sql.startswith(b"*/", at):
            at += 2
        else:
            found = _WORD.match(sql, at)
            if found is not None:
                yield found.group().decode("latin-1").upper()
                at = found.end()
                continue
            quoted = _QUOTED.get(sql[at])
            yield chr(sql[at])
            found = quoted.match(sql, at) if quoted is not None else None
            at = found.end() if found is not None else at + 1


def classify(sql: bytes) -> StatementKind:
    """What kind of statement `sql` is, by its first words.

    `account` includes servers (`CREATE SERVER` holds a password); `neutral` changes neither rows nor definitions that
    outlive the session: maintenance, temporary tables, empty text. `rollback_to` (a savepoint) takes back rows that the
    step holds before it; the server logs it only when a table that cannot roll back was changed in between.
    """
    stream = tokens(sql)
    words = _take(stream, 4)
    if words[:2] == ["SET", "STATEMENT"]:
        # SET STATEMENT variable = value, … FOR statement
        stream = itertools.chain(words[2:], stream)
        if any(word == "FOR" for word in stream):
            words = _take(stream, 4)
    return _kind_of(words, stream)


def _take(stream: Iterator[str], count: int) -> list[str]:
    return [word for _, word in zip(range(count), stream, strict=False)]


def _kind_of(words: list[str], rest: Iterator[str]) -> StatementKind:
    if not words:
        return "neutral"
    first = words[0]
    second = words[1] if len(words) > 1 else ""
    if first in _DML:
        return "dml"
    if first in ("COMMIT", "SAVEPOINT", "RELEASE", "XA", "START", "BEGIN"):
        kinds: dict[str, StatementKind] = {"COMMIT": "commit", "XA": "xa", "START": "begin", "BEGIN": "begin"}
        return kinds.get(first, "savepoint")
    if first == "ROLLBACK":
        return "rollback_to" if "TO" in (second, words[2] if len(words) > 2 else "") else "rollback"
    if first in ("GRANT", "REVOKE", "CHANGE"):
        return "account"
    if first == "SET":
        return "account" if second in ("PASSWORD", "DEFAULT", "ROLE") else "other"
    if first in _DDL:
        after = words[1:] + _take(rest, 4)
        if after[:2] == ["OR", "REPLACE"]:
            after = after[2:]
        subject = after[0] if after else ""
        if subject in _ACCOUNT_OBJECTS:
            return "account"
        return "neutral" if subject == "TEMPORARY" else "ddl"
    return "neutral" if first in _NEUTRAL else "other"


def is_account_statement(sql: bytes) -> bool:
    """Whether `sql` must not be kept or shown in clear: it manages accounts, or may carry a password.

    Errs on the side of yes. What it says of a statement is independent of `classify`: a procedure whose body creates a
    user is DDL, and an account statement in this sense.
    """
    return classify(sql) == "account" or _SECRET.search(sql) is not None


_DEFINITION = re.compile(
    rb"\s*(CREATE(?:\s+OR\s+REPLACE)?|ALTER|DROP)\s+(DATABASE|SCHEMA|TABLE)\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"
    rb"(`?)([\w$]+)\3\s*(\.?)(.*)",
    re.IGNORECASE | re.DOTALL,
)


def defines_only(sql: bytes, schema: str) -> bool:
    """Whether `sql` is DDL that touches nothing but `schema`: the schema itself, or one table that is named with it.

    Errs on the side of no: other objects and unusual forms are not recognised.
    """
    found = _DEFINITION.match(sql)
    if found is None or found[4] != schema.encode():
        return False
    if found[2].upper() != b"TABLE":
        return found[5] == b""
    verb, rest = found[1].upper(), found[6].upper()
    if verb == b"DROP":
        return found[5] == b"." and b"," not in rest
    return found[5] == b"." and (verb != b"ALTER" or not (b"RENAME" in rest or b"EXCHANGE" in rest))


def statement_text(sql: bytes, most: int = 2000) -> str:
    """The statement for people: shortened to `most` characters, and a marker in place of account statements."""
    if is_account_statement(sql):
        return REDACTED
    text = sql.decode("utf-8", "replace")
    return text if len(text) <= most else text[: most - 1] + "…"
