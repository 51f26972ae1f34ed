"""A small shop's database and its traffic: what the demonstration protects.

Knows MariaDB only through a connection it is given. The traffic is drawn from a seeded generator, so that two runs write the
same rows in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pymysql

DATABASE = "shop"

TABLES: tuple[str, ...] = (
    """create table customer (
        id int unsigned not null auto_increment primary key,
        name varchar(80) character set utf8mb4 not null,
        email varchar(120) not null unique,
        joined date not null,
        notes text character set utf8mb4) engine=innodb""",
    """create table product (
        sku char(8) not null primary key,
        title varchar(120) character set utf8mb4 not null,
        price decimal(10,2) not null,
        stock int not null,
        colour enum('red','green','blue','plain') not null default 'plain') engine=innodb""",
    """create table purchase (
        id bigint unsigned not null auto_increment primary key,
        customer_id int unsigned not null,
        placed datetime(3) not null,
        state enum('open','paid','shipped','cancelled') not null default 'open',
        total decimal(12,2) not null default 0,
        key (customer_id),
        constraint purchase_customer foreign key (customer_id) references customer (id)) engine=innodb""",
    """create table purchase_line (
        purchase_id bigint unsigned not null,
        line tinyint unsigned not null,
        sku char(8) not null,
        quantity smallint unsigned not null,
        price decimal(10,2) not null,
        primary key (purchase_id, line),
        key (sku),
        constraint line_purchase foreign key (purchase_id) references purchase (id),
        constraint line_product foreign key (sku) references product (sku)) engine=innodb""",
)
NAMES = ("customer", "product", "purchase", "purchase_line")

_FIRST = ("Ada", "Grace", "Edsger", "Barbara", "Linus", "Радиа", "Hedy", "Alan", "小明", "Zoë", "José", "Ingrid")
_LAST = ("Lovelace", "Hopper", "Dijkstra", "Liskov", "Perlman", "Lamarr", "Turing", "王", "Müller", "Nguyễn")
_THINGS = ("lamp", "chair", "kettle", "notebook", "umbrella", "clock", "rope", "lantern", "compass", "anchor")


def create(connection: pymysql.Connection[Any], products: int = 60, customers: int = 40) -> None:
    """Create the database and stock it. Whatever was there under its name is dropped."""
    rng = random.Random(1)
    with connection.cursor() as cursor:
        cursor.execute(f"drop database if exists {DATABASE}")
        cursor.execute(f"create database {DATABASE} character set utf8mb4")
        cursor.execute(f"use {DATABASE}")
        for statement in TABLES:
            cursor.execute(statement)
        cursor.executemany(
            "insert into product values (%s, %s, %s, %s, %s)",
            [
                (f"SKU{n:05d}", f"{rng.choice(_THINGS)} no. {n}", _price(rng), rng.randint(20, 500), rng.randint(1, 4))
                for n in range(1, products + 1)
            ],
        )
        cursor.executemany(
            "insert into customer (name, email, joined, notes) values (%s, %s, %s, %s)",
            [(*_person(rng, n), f"2024-{n % 12 + 1:02d}-{n % 28 + 1:02d}", None) for n in range(1, customers + 1)],
        )
    connection.commit()


class Traffic:
    """Customers who browse, buy, pay, cancel: one transaction a call of `one`, the same ones for the same seed."""

    def __init__(self, connection: pymysql.Connection[Any], seed: int = 7) -> None:
        self._connection = connection
        self._rng = random.Random(seed)
        self._clock = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
        self._people = 1000

    def one(self) -> str:
        """Do one thing that happens in a shop, commit it, and say what it was."""
        what: Callable[[Any], str] = self._rng.choices(
            [self._order, self._pay, self._ship, self._restock, self._join, self._cancel], [50, 20, 10, 10, 8, 2]
        )[0]
        with self._connection.cursor() as cursor:
            cursor.execute(f"use {DATABASE}")
            done = what(cursor)
        self._connection.commit()
        return done

    def run(self, transactions: int, each: Callable[[int], None] | None = None) -> None:
        for n in range(transactions):
            self.one()
            if each is not None:
                each(n + 1)

    def _order(self, cursor: Any) -> str:
        self._clock += timedelta(milliseconds=self._rng.randint(200, 90_000))
        cursor.execute("select id from customer order by id")
        customer = self._rng.choice(cursor.fetchall())[0]
        cursor.execute(
            "insert into purchase (customer_id, placed) values (%s, %s)", (customer, self._clock.replace(tzinfo=None))
        )
        purchase, total = cursor.lastrowid, Decimal(0)
        cursor.execute("select sku, price from product where stock > 5 order by sku")
        for line, (sku, price) in enumerate(self._rng.sample(cursor.fetchall(), self._rng.randint(1, 4)), 1):
            quantity = self._rng.randint(1, 3)
            cursor.execute(
                "insert into purchase_line values (%s, %s, %s, %s, %s)", (purchase, line, sku, quantity, price)
            )
            cursor.execute("update product set stock = stock - %s where sku = %s", (quantity, sku))
            total += price * quantity
        cursor.execute("update purchase set total = %s where id = %s", (total, purchase))
        return f"order {purchase}, {total}"

    def _pay(self, cursor: Any) -> str:
        return self._advance(cursor, "open", "paid")

    def _ship(self, cursor: Any) -> str:
        return self._advance(cursor, "paid", "shipped")

    def _cancel(self, cursor: Any) -> str:
        return self._advance(cursor, "open", "cancelled")

    def _advance(self, cursor: Any, old: str, new: str) -> str:
        cursor.execute("update purchase set state = %s where state = %s order by id limit 1", (new, old))
        return f"a purchase is {new}"

    def _restock(self, cursor: Any) -> str:
        cursor.execute("update product set stock = stock + 50 where stock < 60")
        return "restocked"

    def _join(self, cursor: Any) -> str:
        self._people += 1
        name, email = _person(self._rng, self._people)
        cursor.execute(
            "insert into customer (name, email, joined, notes) values (%s, %s, %s, %s)",
            (name, email, self._clock.date(), self._rng.choice((None, "prefers mornings", "früher Großkunde"))),
        )
        return f"{name} joined"


def accident(connection: pymysql.Connection[Any]) -> list[str]:
    """What nobody meant to do: three committed transactions. Says what they were."""
    done = []
    with connection.cursor() as cursor:
        cursor.execute(f"use {DATABASE}")
        cursor.execute("delete from purchase_line where purchase_id <= 40")
        lines = cursor.rowcount
        cursor.execute("delete from purchase where id <= 40")
        done.append(f"deleted {cursor.rowcount} purchases with their {lines} lines")
        connection.commit()
        cursor.execute("update product set price = price * 100, title = upper(title)")
        done.append(f"multiplied the price of {cursor.rowcount} products by 100")
        connection.commit()
        cursor.execute("update customer set email = concat('x', id, '@invalid'), notes = '?'")
        done.append(f"overwrote {cursor.rowcount} customers' addresses")
        connection.commit()
    return done


def checksums(connection: pymysql.Connection[Any]) -> dict[str, int]:
    """The server's own `CHECKSUM TABLE … EXTENDED` of every table of the shop."""
    with connection.cursor() as cursor:
        cursor.execute("checksum table " + ", ".join(f"{DATABASE}.{name}" for name in NAMES) + " extended")
        found = {str(table).split(".", 1)[1]: int(value) for table, value in cursor.fetchall()}
    connection.commit()
    return found


def _price(rng: random.Random) -> Decimal:
    return Decimal(rng.randint(199, 24_999)) / 100


def _person(rng: random.Random, number: int) -> tuple[str, str]:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}", f"customer{number}@example.org"
