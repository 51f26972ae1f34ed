"""Loading a baseline into a server: as statements, to be executed here or piped into a client.

Values go as binary strings (`SET NAMES binary`), so every column gets the very bytes that it had. Views may name views
that come later, so what fails for a missing name is tried again as long as that helps.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import ER
from pymysql.cursors import Cursor

from agents.baseline.manifest import MEMBERS_AS_NUMBER, CreateObject, Manifest, TableFile, objects, read_manifest
from agents.baseline.rows import read_rows, values
from agents.errors import AgentError
from agents.mysql.definitions import quoted
from agents.mysql.dialects import dialect, dialect_of

_STATEMENT_BYTES = 1 << 20
_AHEAD = 4  # statements made before the server takes them
_SPECIAL = re.compile(rb"[\x00\n\r\x1a\\']")
_SPECIAL_BYTES = b"\0\n\r\x1a\\"
_ESCAPED = {b"\0": b"\\0", b"\n": b"\\n", b"\r": b"\\r", b"\x1a": b"\\Z", b"\\": b"\\\\", b"'": b"\\'"}
_BEFORE_ROWS = ("database", "sequence", "table")
_MISSING_NAME = frozenset({ER.NO_SUCH_TABLE, ER.VIEW_INVALID, ER.BAD_FIELD_ERROR, ER.SP_DOES_NOT_EXIST})
_SESSION = "SET SESSION sql_log_bin = 0, foreign_key_checks = 0, unique_checks = 0, time_zone = '+00:00'"
# What cannot be stored as it was must not pass. Only the error value of an ENUM needs a mode that lets it in again.
_STRICT = "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES"
_LAX = "NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES"
_TRUNCATED = 1265
# Types that take a binary string for their internal form; what was kept is their text.
_TEXT_ONLY = {"uuid": b"_latin1", "inet6": b"_latin1", "inet4": b"_latin1", "json": b"_utf8mb4"}


def load(
    conn: pymysql.Connection[Any],
    folder: Path,
    *,
    tables: Collection[tuple[str, str]] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Create and fill everything on a server that has none of it yet. The account needs all privileges.

    `tables`: those that are filled (None: all); the others are there without rows. `progress` is told how many rows are
    there; `check` may raise to give up.
    """
    manifest = read_manifest(folder)
    made = list(objects(folder))
    _run(conn, [_SESSION + dialect(conn).load_session])
    for one in made:
        if one.kind in _BEFORE_ROWS:
            _run(conn, create_statements(one))
    rows = 0
    for table in manifest.tables:
        if tables is not None and (table.schema, table.table) not in tables and table.kind != "SEQUENCE":
            continue
        _fill(conn, folder, table, check)
        rows += table.rows
        progress(rows)
    _create_late(conn, [o for o in made if o.kind not in _BEFORE_ROWS])
    return manifest


def statements(folder: Path) -> Iterator[bytes]:
    """The same as SQL, without terminators."""
    manifest = read_manifest(folder)
    made = list(objects(folder))
    yield (_SESSION + dialect_of(manifest.server_version).load_session).encode()
    for one in made:
        if one.kind in _BEFORE_ROWS:
            yield from create_statements(one)
    for table in manifest.tables:
        yield from row_statements(folder, table)
    for one in made:
        if one.kind not in _BEFORE_ROWS:
            yield from create_statements(one)


def create_statements(one: CreateObject) -> Iterator[bytes]:
    """What creates one object, under the session settings that its text was written under."""
    yield b"SET NAMES utf8mb4"
    yield f"SET SESSION sql_mode = '{one.sql_mode}'".encode()
    if one.charset_client:
        # The text is in UTF-8 here, whatever client it came from; the collation is what is stored with the object.
        yield f"SET SESSION collation_connection = {one.collation_connection}".encode()
    if one.time_zone:
        yield f"SET SESSION time_zone = '{one.time_zone}'".encode()
    if one.kind != "database":
        yield b"USE " + quoted(one.schema).encode()
    yield one.sql.encode("utf-8", "surrogateescape")
    if one.time_zone:
        yield b"SET SESSION time_zone = '+00:00'"


def row_statements(folder: Path, table: TableFile) -> Iterator[bytes]:
    """What fills one table."""
    if not table.file:
        return
    yield b"SET NAMES binary"
    enums = any(t.startswith("enum") for t in table.types)
    yield f"SET SESSION sql_mode = '{_LAX if enums else _STRICT}'".encode()
    name = quoted(table.schema, table.table).encode()
    if table.kind == "SEQUENCE":
        for row in read_rows(folder / table.file):
            # next_not_cached_value: the first that no session has been given yet.
            yield b"SELECT SETVAL(" + name + b", " + (values(row)[0] or b"1") + b", 0)"
        return
    columns = ", ".join(quoted(c) for c in table.columns).encode()
    insert = b"INSERT INTO " + name + b" (" + columns + b") VALUES "
    texts = [(i, _TEXT_ONLY[declared]) for i, declared in enumerate(table.types) if declared in _TEXT_ONLY]
    numbers = [i for i, (c, e) in enumerate(zip(table.columns, table.expressions, strict=True))
               if e == MEMBERS_AS_NUMBER.format(quoted(c))]  # fmt: skip
    plain = not texts and not numbers
    held: list[bytes] = []
    size = 0
    for row in read_rows(folder / table.file):
        found = values(row)
        text = _plainly(found) if plain else None
        if text is None:
            literals = list(map(literal, found))
            for i in numbers:
                literals[i] = literals[i].strip(b"'")
            for i, introducer in texts:
                if literals[i] != b"NULL":
                    literals[i] = introducer + literals[i]
            text = b"(" + b",".join(literals) + b")"
        held.append(text)
        size += len(text)
        if size >= _STATEMENT_BYTES:
            yield insert + b",".join(held)
            held, size = [], 0
    if held:
        yield insert + b",".join(held)
    if table.auto_increment is not None:
        yield b"ALTER TABLE " + name + b" AUTO_INCREMENT = " + str(table.auto_increment).encode()


def _plainly(row: list[bytes | None]) -> bytes | None:
    """A row of values of which none is NULL or has anything to escape, as most are: all at once. None for another."""
    try:
        text = b"','".join(row)  # type: ignore[arg-type]  # a NULL is what the error says
    except TypeError:
        return None
    if text.count(b"'") != 2 * len(row) - 2 or len(text.translate(None, _SPECIAL_BYTES)) != len(text):
        return None
    return b"('" + text + b"')"


def literal(value: bytes | None) -> bytes:
    """A value as SQL, for a session with `SET NAMES binary`."""
    if value is None:
        return b"NULL"
    if _SPECIAL.search(value):
        value = _SPECIAL.sub(lambda m: _ESCAPED[m[0]], value)
    return b"'" + value + b"'"


def _run(conn: pymysql.Connection[Any], texts: Iterable[bytes | str]) -> None:
    with conn.cursor(Cursor) as cursor:
        for text in texts:
            cursor.execute(text)  # type: ignore[arg-type]  # bytes go as they are


def _fill(conn: pymysql.Connection[Any], folder: Path, table: TableFile, check: Callable[[], None]) -> None:
    enums = [c for c, declared in zip(table.columns, table.types, strict=True) if declared.startswith("enum")]
    harmless = tuple(f"Data truncated for column '{c}'" for c in enums)
    with conn.cursor(Cursor) as cursor, contextlib.closing(_ahead(row_statements(folder, table))) as statements:
        for text in statements:
            check()
            cursor.execute(text)  # type: ignore[call-overload]
            if cursor.warning_count and text.startswith(b"INSERT"):  # MySQL warns of settings as well
                cursor.execute("SHOW WARNINGS")
                for level, code, message in cursor.fetchall():
                    message = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
                    if level != "Note" and not (code == _TRUNCATED and message.startswith(harmless)):
                        name = quoted(table.schema, table.table)
                        raise AgentError("baseline-value", f"{name} does not take a value that it had: {message}")
    conn.commit()


def _ahead(statements: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The same, made in a thread of their own while the server is busy with those before."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    given_up = threading.Event()

    def put(item: bytes | BaseException | None) -> bool:
        while not given_up.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return True
        return False

    def make() -> None:
        last: BaseException | None = None
        try:
            for statement in statements:
                if not put(statement):
                    return
        except BaseException as error:  # noqa: BLE001 - raised by whoever takes the statements
            last = error
        put(last)

    maker = threading.Thread(target=make, name="baseline-rows", daemon=True)
    maker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        given_up.set()
        maker.join()


def _create_late(conn: pymysql.Connection[Any], waiting: list[CreateObject]) -> None:
    while waiting:
        failed: list[tuple[CreateObject, pymysql.err.MySQLError]] = []
        for one in waiting:
            try:
                _run(conn, create_statements(one))
            except pymysql.err.MySQLError as error:
                if not error.args or error.args[0] not in _MISSING_NAME:
                    raise
                failed.append((one, error))
        if len(failed) == len(waiting):
            one, cause = failed[0]
            raise AgentError(
                "baseline-object", f"{one.kind} {quoted(one.schema, one.name)} cannot be created: {cause.args[-1]}"
            ) from cause
        waiting = [one for one, _ in failed]
