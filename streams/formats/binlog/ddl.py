"""Which tables a definition statement may change, throw away or make, and which it renames: from its text.

Errs on the side of more: a clause that is not known to leave rows and columns alone counts as one that does not, and of a
statement that is not understood nothing is said (`tables` None). Whether what is left, such as MODIFY or a new
unique key, changed a definition, two recorded versions tell; this tells what they cannot: TRUNCATE, CREATE OR REPLACE with the
same columns, DROP and ADD of a column of one name, a partition dropped, two tables that swapped names.

Knows no schema. https://mariadb.com/kb/en/alter-table/, https://dev.mysql.com/doc/refman/9.1/en/alter-table.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

Name = tuple[str, str]

ANSI_QUOTES: Final = 4
"""Of a session's `sql_mode`: double quotes are names'."""

_TOKEN: Final = re.compile(
    rb"(?P<space>[\s\x00]+|(?:#|--(?=[\s\x00]|$))[^\n]*|/\*(?!M?!).*?\*/|/\*M?!\d*|\*/)"
    rb"|(?P<name>`(?:[^`]|``)*`)"
    rb"|(?P<double>\"(?:[^\"\\]|\\.|\"\")*\")"
    rb"|(?P<text>'(?:[^'\\]|\\.|'')*')"
    rb"|(?P<word>[A-Za-z0-9_$@\x80-\xff]+)"
    rb"|(?P<sign>.)",
    re.DOTALL,
)
_OBJECTS: Final = frozenset({
    "TABLE", "TABLES", "INDEX", "VIEW", "PROCEDURE", "FUNCTION", "EVENT", "TRIGGER", "DATABASE", "SCHEMA", "SEQUENCE",
    "PACKAGE", "USER", "ROLE", "SERVER", "LOGFILE", "TABLESPACE", "SONAME",
})  # fmt: skip
# Of ALTER TABLE: first words of clauses that leave every row as it is, as far as two versions of the definition say.
_KEYS: Final = frozenset({"INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "PRIMARY", "CONSTRAINT", "FOREIGN", "CHECK"})
_HARMLESS: Final = frozenset({
    "MODIFY", "COMMENT", "AUTO_INCREMENT", "ENABLE", "DISABLE", "ALGORITHM", "LOCK", "FORCE", "ROW_FORMAT", "ENGINE",
    "STATS_PERSISTENT", "STATS_AUTO_RECALC", "STATS_SAMPLE_PAGES", "KEY_BLOCK_SIZE", "PAGE_COMPRESSED",
    "PAGE_COMPRESSION_LEVEL", "WAIT", "NOWAIT", "ALTER",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Effect:
    """`tables`: those whose rows or columns it may change, make or throw away; None: cannot be told, so any.
    `renamed`: (before, after), to be taken one after the other. `unless_there`: `tables` only if they were not there."""

    tables: frozenset[Name] | None = frozenset()
    renamed: tuple[tuple[Name, Name], ...] = ()
    unless_there: bool = False


_UNKNOWN: Final = Effect(None)
_NOTHING: Final = Effect()


class _NotUnderstoodError(Exception):
    """This is not the grammar that is known here."""


@dataclass(frozen=True, slots=True)
class _Token:
    """`word` in upper case where it may be a keyword, empty where it is quoted. `name`: as an identifier."""

    word: str
    name: str


def _tokens(sql: bytes, ansi_quotes: bool) -> Iterator[_Token]:
    for found in _TOKEN.finditer(sql):
        kind, raw = found.lastgroup, found.group()
        if kind == "space":
            continue
        text = raw.decode("utf-8", "replace")
        if kind == "name":
            yield _Token("", text[1:-1].replace("``", "`"))
        elif kind == "double" and ansi_quotes:
            yield _Token("", text[1:-1].replace('""', '"'))
        elif kind == "word":
            yield _Token(text.upper(), text)
        else:
            yield _Token(text if kind == "sign" else "'", "")


class _Reader:
    """A cursor over tokens."""

    def __init__(self, tokens: list[_Token], database: str) -> None:
        self._tokens = tokens
        self._database = database
        self._at = 0

    def peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].word if at < len(self._tokens) else ""

    @property
    def ended(self) -> bool:
        return self._at >= len(self._tokens)

    def skip(self, *words: str) -> bool:
        """Pass over these words if they come next."""
        if all(self.peek(i) == word for i, word in enumerate(words)):
            self._at += len(words)
            return True
        return False

    def skip_any(self, *words: str) -> None:
        while self.peek() in words:
            self._at += 1

    def next(self) -> _Token:
        if self.ended:
            raise _NotUnderstoodError
        token = self._tokens[self._at]
        self._at += 1
        return token

    def name(self) -> Name:
        """`table` or `database.table`."""
        first = self._identifier()
        if self.skip("."):
            return (first, self._identifier())
        return (self._database, first)

    def _identifier(self) -> str:
        token = self.next()
        if not token.name:
            raise _NotUnderstoodError
        return token.name

    def clauses(self) -> Iterator[_Reader]:
        """What is left, cut at the commas that stand in no parentheses."""
        depth, start = 0, self._at
        for at in range(self._at, len(self._tokens)):
            word = self._tokens[at].word
            depth += {"(": 1, ")": -1}.get(word, 0)
            if word == "," and depth == 0:
                yield _Reader(self._tokens[start:at], self._database)
                start = at + 1
        yield _Reader(self._tokens[start:], self._database)


def effect(sql: bytes, database: str, *, ansi_quotes: bool = False) -> Effect:
    """What the definition statement `sql` does to tables, in a session whose default database is `database`."""
    read = _Reader(list(_tokens(sql, ansi_quotes)), database)
    try:
        if read.skip("SET", "STATEMENT"):
            while not read.skip("FOR"):
                read.next()
        return _effect(read)
    except _NotUnderstoodError:
        return _UNKNOWN


def _effect(read: _Reader) -> Effect:
    verb = read.next().word
    if verb == "TRUNCATE":
        read.skip("TABLE")
        return Effect(frozenset({read.name()}))
    if verb == "RENAME":
        return _rename(read)
    if verb in ("INSTALL", "UNINSTALL", "COMMENT"):
        return _NOTHING
    if verb not in ("CREATE", "ALTER", "DROP"):
        return _UNKNOWN
    ignore = replaced = False
    while read.peek() not in _OBJECTS:
        token = read.next()
        ignore |= token.word == "IGNORE"
        replaced |= token.word == "REPLACE"
    what = read.next().word
    if what in ("SEQUENCE", "TABLE", "TABLES"):
        if verb == "ALTER" and what == "TABLE":
            return _alter(read, ignore)
        exists = read.skip("IF", "NOT", "EXISTS")
        read.skip("IF", "EXISTS")
        if verb == "DROP":
            return Effect(frozenset(_names(read)))
        return Effect(frozenset({read.name()}), unless_there=exists and not replaced)
    # Of a dropped database the versions before and after say which tables it held; indexes change definitions only.
    return _NOTHING


def _names(read: _Reader) -> Iterator[Name]:
    yield read.name()
    while read.skip(","):
        yield read.name()


def _rename(read: _Reader) -> Effect:
    if not (read.skip("TABLE") or read.skip("TABLES")):
        raise _NotUnderstoodError
    read.skip("IF", "EXISTS")
    renamed = []
    while True:
        before = read.name()
        if read.skip("WAIT"):
            read.next()
        read.skip("NOWAIT")
        if not read.skip("TO"):
            raise _NotUnderstoodError
        renamed.append((before, read.name()))
        if not read.skip(","):
            return Effect(renamed=tuple(renamed))


def _alter(read: _Reader, ignore: bool) -> Effect:
    read.skip("IF", "EXISTS")
    table = read.name()
    if read.skip("WAIT"):
        read.next()
    read.skip("NOWAIT")
    renamed: list[tuple[Name, Name]] = []
    changed = ignore  # ALTER IGNORE throws rows away that a new key has no place for
    for clause in read.clauses():
        new = _renames(clause)
        if new is not None:
            renamed.append((table, new))
        elif not _harmless(clause):
            changed = True
    return Effect(frozenset({table} if changed else ()), tuple(renamed))


def _renames(clause: _Reader) -> Name | None:
    """The new name, if the clause gives the table one."""
    if clause.peek() != "RENAME" or clause.peek(1) in ("COLUMN", "INDEX", "KEY"):
        return None
    clause.next()
    clause.skip("TO")
    clause.skip("AS")
    return clause.name()


def _harmless(clause: _Reader) -> bool:
    first, second = clause.peek(), clause.peek(1)
    if first in ("ADD", "DROP"):
        return second in _KEYS
    if first == "RENAME":
        return second in ("INDEX", "KEY")
    return first in _HARMLESS
