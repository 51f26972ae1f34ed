"""A seeded load over tables of every awkward kind, and digests of what is in them.

For random walks: each call of `Load.transaction` commits one transaction that changes something, so it is one step.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pymysql

DATABASE = "walk"

TABLES: dict[str, str] = {
    "plain": """create table plain (id int unsigned auto_increment primary key, a varchar(50) character set utf8mb4,
        b decimal(12,3), c datetime(3), n int, u bigint unsigned, key (a))""",
    "pair": """create table pair (k1 varchar(20) character set utf8mb4 collate utf8mb4_general_ci, k2 bigint unsigned,
        t text character set utf8mb4, b blob, j json, f float, d double, primary key (k1, k2))""",
    "uniq": """create table uniq (id bigint primary key, email varchar(80) character set latin1 unique, code char(6),
        e enum('red','green','blue'), s set('a','b','c'), bi bit(9), y year, ts timestamp(6) null, ti time(2),
        unique key (code, e))""",
    "nokey": "create table nokey (a int, b varchar(30) character set utf8mb4, f float, d date, key (a))",
    "bare": "create table bare (a int, b varchar(30) character set utf8mb4)",
    "parent": "create table parent (id int primary key, name varchar(40) unique, v int)",
    "child": """create table child (id int auto_increment primary key, pid int, amount decimal(10,2),
        constraint child_parent foreign key (pid) references parent (id))""",
    "loose": "create table loose (pid int, v int, constraint loose_parent foreign key (pid) references parent (id))",
    "tree": """create table tree (id int primary key, up int, v int, constraint tree_up foreign key (up) references tree (id))""",
    "gen": """create table gen (id int primary key, a int, s int as (a * 2) stored, v int as (a * 3) virtual,
        h int invisible default 4, w varchar(20) as (concat('x', a)) virtual, key (v), unique key (s, id))""",
    "bin": "create table bin (k varbinary(8) primary key, v longblob, g geometry, i inet6, u uuid)",
    "notnull": "create table notnull (a int not null, b char(8) not null, c int, unique key ab (b, a), key (c))",
    "part": """create table part (id int, r int, v varchar(20), primary key (r, id), key (v))
        partition by range (r) (partition p0 values less than (5), partition p1 values less than maxvalue)""",
    "comp": """create table comp (id int primary key, t text compressed, v varchar(200) compressed, ft text, fulltext (ft))
        row_format=compressed""",
    "longu": "create table longu (id int primary key, u text character set utf8mb4, unique key (u))",
    "trg": "create table trg (id int primary key, v int)",
    "trglog": "create table trglog (id int auto_increment primary key, what varchar(20), tid int)",
}
TRIGGERS = (
    "create trigger trg_i after insert on trg for each row insert into trglog (what, tid) values ('in', new.id)",
    "create trigger trg_d after delete on trg for each row insert into trglog (what, tid) values ('out', old.id)",
)
# What other servers have instead, by name (tests.stack.servers.DATABASES).
_MYSQL = {
    "bin": "create table bin (k varbinary(8) primary key, v longblob, g geometry, i varchar(40), u char(36))",
    "comp": """create table comp (id int primary key, t text, v varchar(200), ft text, fulltext (ft)) row_format=compressed""",
    "longu": "create table longu (id int primary key, u text character set utf8mb4, unique key (u (100)))",
}
_MYSQL_5_5 = {
    **_MYSQL,
    "plain": """create table plain (id int unsigned auto_increment primary key, a varchar(50) character set utf8mb4,
        b decimal(12,3), c datetime, n int, u bigint unsigned, key (a))""",
    "pair": """create table pair (k1 varchar(20) character set utf8mb4 collate utf8mb4_general_ci, k2 bigint unsigned,
        t text character set utf8mb4, b blob, j text, f float, d double, primary key (k1, k2))""",
    "uniq": """create table uniq (id bigint primary key, email varchar(80) character set latin1 unique, code char(6),
        e enum('red','green','blue'), s set('a','b','c'), bi bit(9), y year, ts timestamp null, ti time,
        unique key (code, e))""",
    "gen": """create table gen (id int primary key, a int, s int, v int, h int default 4, w varchar(20), key (v),
        unique key (s, id))""",
    "comp": "create table comp (id int primary key, t text, v varchar(200), ft text)",
}
INSTEAD: dict[str, dict[str, str]] = {"mysql-9": _MYSQL, "mysql-5.5": _MYSQL_5_5}
NAMES = tuple(TABLES)


def statements(server: str = "mariadb-10.11") -> tuple[str, ...]:
    """What makes the tables anew on a server of this name."""
    tables = {**TABLES, **INSTEAD.get(server, {})}
    new = (f"drop database if exists {DATABASE}", f"create database {DATABASE}", f"use {DATABASE}")
    return (*new, *tables.values(), *TRIGGERS)


STATEMENTS = statements()

_WORDS = ("a", "A", "ab", "é", "日本", "x ", "", "Ω", "null", "'", "\\", "😀", "zebra", "Zebra")


class Load:
    """Draws and commits transactions on a connection of its own; the same ones for the same seed and start."""

    def __init__(self, connection: pymysql.Connection[Any], rng: random.Random) -> None:
        self._rng = rng
        self._connection = connection
        self._serial = 0
        with connection.cursor() as cursor:
            cursor.execute(f"use {DATABASE}")
            cursor.execute("set session sql_mode=''")

    def transaction(self) -> None:
        """Commit one transaction of one to six changes, at least one of which changes a row."""
        changed = 0
        while not changed:
            self._connection.begin()
            for _ in range(self._rng.choice((1, 1, 1, 2, 3, 6))):
                changed += self._change()
            self._connection.commit()

    def _run(self, statement: str, *args: Any) -> int:
        """How many rows changed; 0 when the statement broke a rule of the tables, which is none of ours."""
        with self._connection.cursor() as cursor:
            try:
                return int(cursor.execute(statement, args))
            except (pymysql.err.IntegrityError, pymysql.err.DataError):
                return 0

    def _change(self) -> int:
        kinds: tuple[Callable[[], int], ...] = (
            self._plain, self._plain, self._pair, self._pair, self._uniq, self._uniq, self._nokey, self._bare, self._family,
            self._family, self._tree, self._gen, self._bin, self._notnull, self._part, self._comp, self._longu, self._trg,
        )  # fmt: skip
        return self._rng.choice(kinds)()

    def _word(self) -> str:
        return self._rng.choice(_WORDS)

    def _number(self, most: int = 30) -> int:
        return self._rng.randint(1, most)

    def _text(self) -> str:
        size = self._rng.choice((0, 3, 40, 300, 4000))
        return "".join(self._rng.choice("abcdeé日😀 ") for _ in range(size))

    def _maybe(self, value: Any) -> Any:
        return None if self._rng.random() < 0.2 else value

    def _plain(self) -> int:
        r = self._rng
        draw = r.random()
        if draw < 0.4:
            rows = [
                (self._word(), r.randint(-10**6, 10**6) / 1000, f"2024-0{r.randint(1, 9)}-11 01:02:03.{r.randint(0, 999):03}",
                 self._maybe(r.randint(-9, 9)), self._maybe(r.randint(2**63, 2**64 - 1)))
                for _ in range(r.choice((1, 1, 3, 20)))
            ]  # fmt: skip
            values = ", ".join(["(%s, %s, %s, %s, %s)"] * len(rows))
            return self._run(f"insert into plain (a, b, c, n, u) values {values}", *[v for row in rows for v in row])
        if draw < 0.6:
            return self._run("update plain set b = b + 1, n = null where id %% 7 = %s", r.randint(0, 6))
        if draw < 0.75:
            return self._run(
                "update plain set id = id + 100000 where id < 100000 order by rand(%s) limit 2", r.randint(1, 99)
            )
        if draw < 0.85:
            return self._run("replace into plain (id, a, n) values (%s, %s, 1)", self._number(), self._word())
        return self._run("delete from plain where id %% 5 = %s", r.randint(0, 4))

    def _pair(self) -> int:
        r = self._rng
        draw = r.random()
        if draw < 0.5:
            return self._run(
                "insert into pair values (%s, %s, %s, %s, %s, %s, %s) on duplicate key update k1 = values(k1), t = values(t)",
                self._word(), self._number(6), self._text(), r.randbytes(r.choice((0, 9, 3000))), '{"a": [1, "é"]}',
                r.uniform(-1, 1), self._maybe(r.uniform(-1e9, 1e9)),
            )  # fmt: skip
        if draw < 0.7:
            change = r.choice(("upper(k1)", "lower(k1)", "concat(k1, ' ')", "reverse(k1)"))
            return self._run(f"update ignore pair set k1 = {change} where k2 = %s", self._number(6))
        if draw < 0.85:
            return self._run("update pair set f = f * 1.1, d = -d, t = concat(t, 'x') where k2 > %s", self._number(6))
        return self._run("delete from pair where k2 = %s", self._number(6))

    def _uniq(self) -> int:
        r = self._rng
        draw = r.random()
        if draw < 0.45:
            self._serial += 1
            return self._run(
                "insert ignore into uniq values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                self._number(60), self._maybe(f"{self._word()}{self._serial % 40}@x"), self._maybe(f"c{self._number(9)}"),
                self._maybe(r.choice(("red", "green", "blue"))), "a,c", r.randint(0, 511), 2000 + self._number(),
                self._maybe("2024-10-27 00:30:00.123456"), "-11:22:33.44",
            )  # fmt: skip
        if draw < 0.65:
            # Two rows change their unique values: an order that works for one way does not for the other.
            a, b = self._number(60), self._number(60)
            done = 0
            for statement, args in (
                ("update uniq set email = concat('tmp', id) where id = %s", (a,)),
                ("update ignore uniq set email = %s where id = %s", (f"swap{a}@x", b)),
                ("update ignore uniq set email = %s where id = %s", (f"swap{b}@x", a)),
            ):
                done += self._run(statement, *args)
            return done
        if draw < 0.8:
            return self._run(
                "update ignore uniq set code = %s, s = s ^ 2 where id > %s", f"c{self._number(9)}", self._number(60)
            )
        return self._run("delete from uniq where id %% 4 = %s", r.randint(0, 3))

    def _nokey(self) -> int:
        draw = self._rng.random()
        if draw < 0.5:
            return self._run(
                "insert into nokey values (%s, %s, %s, %s), (1, 'twin', 0.1, null), (1, 'twin', 0.1, null)",
                self._maybe(self._number(5)), self._word(), self._rng.uniform(0, 1), "2020-02-29",
            )  # fmt: skip
        if draw < 0.75:
            return self._run("update nokey set f = f + 0.1 where a = %s limit 3", self._number(5))
        return self._run("delete from nokey where a <=> %s limit 2", self._maybe(self._number(5)))

    def _bare(self) -> int:
        if self._rng.random() < 0.6:
            return self._run(
                "insert into bare values (%s, %s)", self._maybe(self._number(9)), self._maybe(self._word())
            )
        return self._run("delete from bare where a = %s limit 1", self._number(9))

    def _family(self) -> int:
        r = self._rng
        draw = r.random()
        if draw < 0.3:
            done = self._run("insert into parent values (%s, %s, 0)", self._number(), f"p{r.randint(1, 10**6)}")
            return done + self._run("insert into child (pid, amount) select max(id), 1.5 from parent")
        if draw < 0.5:
            table = r.choice(("child (pid, amount)", "loose (pid, v)"))
            return self._run(f"insert into {table} select id, 7 from parent order by rand(%s) limit 2", self._number())
        if draw < 0.65:
            return self._run("update child set pid = (select max(id) from parent) where id %% 3 = %s", r.randint(0, 2))
        if draw < 0.75:
            return self._run("update parent set v = v + 1, name = reverse(name) where id %% 3 = %s", r.randint(0, 2))
        if draw < 0.85:
            return self._run("delete from child where pid = %s", self._number())
        which = self._number()
        done = self._run("delete from child where pid = %s", which) + self._run(
            "delete from loose where pid = %s", which
        )
        if r.random() < 0.3:
            # As imports do it: the switch is off, and the order is the wrong one.
            self._run("set foreign_key_checks = 0")
            done += self._run("insert ignore into child (pid, amount) values (%s, 3)", which)
            done += self._run("replace into parent values (%s, %s, 9)", which, f"p{r.randint(1, 10**6)}")
            self._run("set foreign_key_checks = 1")
            return done
        return done + self._run("delete from parent where id = %s", which)

    def _tree(self) -> int:
        draw = self._rng.random()
        if draw < 0.6:
            return self._run("insert into tree select %s, max(id), 0 from tree", self._number(99))
        if draw < 0.8:
            return self._run("update tree set v = v + 1 where id %% 2 = 0")
        return self._run("delete from tree order by id desc limit 1")

    def _gen(self) -> int:
        draw = self._rng.random()
        if draw < 0.5:
            return self._run("insert into gen (id, a) values (%s, %s)", self._number(99), self._maybe(self._number()))
        if draw < 0.8:
            return self._run("update gen set a = a + 1, h = h + 1 where id %% 3 = %s", self._rng.randint(0, 2))
        return self._run("delete from gen where id %% 5 = %s", self._rng.randint(0, 4))

    def _bin(self) -> int:
        r = self._rng
        draw = r.random()
        if draw < 0.6:
            return self._run(
                "replace into bin values (%s, %s, point(%s, 1), '2001:db8::1', uuid())",
                r.randbytes(2), r.randbytes(r.choice((0, 100, 200_000))), r.randint(0, 9),
            )  # fmt: skip
        if draw < 0.8:
            return self._run("update bin set v = null, k = concat(k, 'z') where length(k) < 7 order by k limit 1")
        return self._run("delete from bin order by k desc limit 1")

    def _notnull(self) -> int:
        draw = self._rng.random()
        if draw < 0.5:
            return self._run("insert into notnull values (%s, %s, 1)", self._number(), self._word())
        if draw < 0.8:
            return self._run("update ignore notnull set c = c + 1, a = a + 1 where a = %s", self._number())
        return self._run("delete from notnull where a < %s", self._number(10))

    def _part(self) -> int:
        draw = self._rng.random()
        if draw < 0.5:
            return self._run("insert into part values (%s, %s, 'v')", self._number(), self._number(9))
        if draw < 0.8:
            return self._run("update ignore part set r = 10 - r where id = %s", self._number())
        return self._run("delete from part where id %% 3 = 0")

    def _comp(self) -> int:
        draw = self._rng.random()
        if draw < 0.6:
            return self._run(
                "replace into comp values (%s, %s, %s, 'some words')", self._number(), self._text(), "v" * 90
            )
        return self._run("delete from comp where id = %s", self._number())

    def _longu(self) -> int:
        draw = self._rng.random()
        if draw < 0.5:
            return self._run("insert ignore into longu values (%s, %s)", self._number(), self._text() + self._word())
        if draw < 0.7:
            return self._run("update ignore longu set u = concat(u, 'y') where id %% 2 = 0")
        return self._run("delete from longu where id %% 3 = 0")

    def _trg(self) -> int:
        if self._rng.random() < 0.6:
            return self._run("insert into trg values (%s, 1)", self._number(90))
        return self._run("delete from trg where id %% 4 = %s", self._rng.randint(0, 3))


def digests(connection: pymysql.Connection[Any]) -> dict[str, int]:
    """What is in each table, as the server sums it up. The order of rows does not count."""
    with connection.cursor() as cursor:
        cursor.execute("checksum table " + ", ".join(f"{DATABASE}.{name}" for name in NAMES))
        return {str(row[0]): int(row[1]) for row in cursor.fetchall()}
