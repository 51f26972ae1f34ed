"""The trap list of the rewind, as cases. What cannot be put here is listed in docs/rewind-matrix.md with its test."""

from __future__ import annotations

from tests.matrix.cases import OTHER, TABLE, WRITES, Case

_FAMILY = (
    "create table parent (id int primary key, v int)",
    "create table child (id int primary key, pid int, v varchar(20), foreign key (pid) references parent (id) {action})",
)


def _family(action: str = "") -> tuple[str, ...]:
    return tuple(text.replace("{action}", action) for text in _FAMILY)


_FAMILY_WRITES = (
    ("begin", "insert into parent values ({n}, {k})", "insert into child values ({n}, {n}, '{w}')", "commit"),
    "update parent set v = v + {n}",
    "update child set v = '{w}', pid = null where id % 2 = {k} % 2",
    "delete from child where pid is null limit 1",
)

# Where no server program of a MySQL's series is named (HOLDFAST_MYSQLD), as here, its definitions are read from the source,
# and what a change left alone is not known.
_ON_MYSQL = {"MySQL": {"refused": ("ddl",)}}
# Its log holds what cascades did, flagged as such.
_CASCADES_LOGGED = {"MySQL 9": {"refused": ()}}

TRAPS: tuple[Case, ...] = (
    Case("plain", "no trap: inserts, updates, deletes", before=5, after=0, turns=4),
    Case(
        "savepoints", "savepoints, rolled back to and released",
        trap=(("begin", "insert into t values (900, 'kept', 1)", "savepoint s", "insert into t values (901, 'lost', 1)",
               "rollback to s", "savepoint s2", "update t set n = 5 where id = 900", "release savepoint s2", "commit"),),
    ),
    Case(
        "rolled_back", "a transaction rolled back",
        trap=(("begin", "insert into t values (900, 'lost', 1)", "rollback"), "insert into t values (901, 'kept', 1)"),
    ),
    Case(
        "rolled_back_flat", "a transaction rolled back, with changes in a table that cannot roll back",
        tables=(TABLE, "create table flat (id int primary key) engine=myisam"),
        trap=(("begin", "insert into t values (900, 'lost', 1)", "insert into flat values (1)", "rollback"),),
        refused=("not-transactional",), differs={"MySQL 9": None}),
    Case(
        "create_select", "CREATE … SELECT: definition and rows in one group",
        trap=("create table copy_of_t as select * from t",), refused=("ddl",),
    ),
    Case(
        "statement", "a MIXED or STATEMENT session: rows logged as a statement",
        trap=("set session binlog_format = 'STATEMENT'", "update t set n = 77 where id > 0", "set session binlog_format = 'ROW'"),
        refused=("statement-event",),
    ),
    Case(
        "minimal", "MINIMAL row images of a session",
        trap=("set session binlog_row_image = 'MINIMAL'", "update t set n = 77 where id > 0",
              "insert into t values (900, 'm', 1)",
              "set session binlog_row_image = 'FULL'"),
        refused=("partial-image",), differs={"MySQL 5.5": None}),
    Case(
        "xa", "XA transactions: prepared, one committed and one rolled back, with steps in between",
        trap=((("b", "xa start 'm1'"), ("b", "insert into t values (900, 'xa', 1)"), ("b", "xa end 'm1'"),
               ("b", "xa prepare 'm1'")),
              "insert into t values (901, 'between', 1)",
              (("c", "xa start 'm2'"), ("c", "insert into t values (902, 'xa', 1)"), ("c", "xa end 'm2'"),
               ("c", "xa prepare 'm2'")),
              ("b", "xa commit 'm1'"), "update t set v = 'after' where id = 900", ("c", "xa rollback 'm2'"),
              "insert into t values (904, 'last', 1)"),
    ),
    Case(
        "triggers", "triggers, before and after, into other tables",
        tables=(TABLE, "create table seen (id int auto_increment primary key, what varchar(20), tid int)",
                "create trigger t_i after insert on t for each row insert into seen (what, tid) values ('in', new.id)",
                "create trigger t_u before update on t for each row set new.n = new.n + 1",
                "create trigger t_d after delete on t for each row insert into seen (what, tid) values ('out', old.id)"),
        trap=("insert into t values (900, 'x', 1)", "update t set v = 'y' where id = 900", "delete from t where id = 900"),
    ),
    Case(
        "foreign_keys", "foreign keys without cascades",
        tables=_family(), writes=_FAMILY_WRITES,
        trap=(("begin", "insert into parent values (900, 1)", "insert into child values (900, 900, 'c')", "commit"),
              ("begin", "delete from child where id = 900", "delete from parent where id = 900", "commit")),
    ),
    Case(
        "foreign_keys_off", "foreign keys switched off by a session: children before their parents",
        tables=_family(), writes=_FAMILY_WRITES,
        trap=(("set foreign_key_checks = 0", "begin", "insert into child values (900, 900, 'c')",
               "insert into parent values (900, 1)", "commit", "set foreign_key_checks = 1"),),
    ),
    Case(
        "cascade_delete", "ON DELETE CASCADE: the log does not show what it did to children",
        tables=_family("on delete cascade"), writes=_FAMILY_WRITES,
        trap=(("begin", "insert into parent values (900, 1)", "insert into child values (900, 900, 'c')", "commit"),
              "delete from parent where id = 900"),
        refused=("cascade",), differs=_CASCADES_LOGGED,
    ),
    Case(
        "cascade_null", "ON DELETE SET NULL",
        tables=_family("on delete set null"), writes=_FAMILY_WRITES,
        trap=(("begin", "insert into parent values (900, 1)", "insert into child values (900, 900, 'c')", "commit"),
              "delete from parent where id = 900"),
        refused=("cascade",), differs=_CASCADES_LOGGED,
    ),
    Case("alter_add", "ALTER … ADD COLUMN", trap=("alter table t add column w int default 3",), refused=("ddl",),
         writes=WRITES[2:5]),
    Case("alter_two_phase", "an ALTER in two phases (binlog_alter_two_phase)", refused=("ddl",), writes=WRITES[2:5],
         trap=(("set session binlog_alter_two_phase = 1", "alter table t add column w int default 3",
                "set session binlog_alter_two_phase = 0"),), differs={"MySQL": None}),
    Case("alter_order", "ALTER … MODIFY … FIRST: columns reordered", trap=("alter table t modify n int first",),
         refused=("ddl",), writes=WRITES[2:5]),
    Case("alter_name", "ALTER … RENAME COLUMN", trap=("alter table t rename column n to m",), refused=("ddl",),
         writes=("update t set v = '{w}{n}' order by id limit 3", "delete from t order by id limit 1"),
         tables=(TABLE, "insert into t values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4), (5, 'e', 5)"),
         differs={"MySQL 5.5": None}),
    Case("alter_type", "ALTER … MODIFY: type changed", trap=("alter table t modify n bigint",), refused=("ddl",)),
    Case("alter_keeps", "ALTERs that leave columns as they are: an index, a default, a comment",
         trap=("alter table t add index (n), comment = 'x'", "alter table t alter n set default 5", "create index i on t (v)"),
         differs=_ON_MYSQL),
    Case("rename", "RENAME TABLE: followed", tables=(TABLE, OTHER, "insert into o values (1, 1), (2, 2)"), renamed={"o": "o2"},
         trap=("update o set v = 10", "rename table o to o2", "insert into o2 values (3, 3)", "update o2 set v = v + 1"),
         differs=_ON_MYSQL),
    Case("other_tables", "definition changes of other tables, with `whole_source` off", compared=("t",),
         tables=(TABLE, OTHER, "insert into o values (1, 1)"), options={"whole_source": False},
         trap=("create table more (id int primary key)", "truncate o", "alter table o add column w int", "drop table more"),
         differs={"MySQL": {"refused": ("ddl", "truncate", "drop"), "sometimes": True}}),
    Case("recreated", "DROP TABLE and CREATE TABLE: recreated", trap=("drop table t", TABLE), refused=("drop", "ddl")),
    Case("truncate", "TRUNCATE", trap=("truncate table t",), refused=("truncate",)),
    Case("drop", "DROP TABLE of a table with rows", tables=(TABLE, OTHER, "insert into o values (1, 1)"),
         trap=("drop table o",), refused=("drop",)),
    Case(
        "temporary", "temporary tables",
        trap=("create temporary table tmp (id int primary key)", "insert into tmp values (1)",
              "insert into t select id + 900, 'x', 1 from tmp", "drop temporary table tmp"),
    ),
    Case(
        "engines", "MyISAM, Aria and MEMORY tables",
        tables=(TABLE, "create table mi (id int primary key) engine=myisam", "create table ar (id int primary key) engine=aria",
                "create table me (id int primary key) engine=memory"),
        trap=("insert into mi values (1)", "insert into ar values (1)", "insert into me values (1)"),
        refused=("not-transactional",), differs={"MySQL": {
            "tables": (TABLE, "create table mi (id int primary key) engine=myisam",
                       "create table me (id int primary key) engine=memory"),
            "trap": ("insert into mi values (1)", "insert into me values (1)"),
        }}),
    Case(
        "compressed", "compressed events (log_bin_compress)",
        settings=(("log_bin_compress", "ON"), ("log_bin_compress_min_len", "10")),
        trap=("insert into t values (900, repeat('long ', 8), 1)", "update t set v = repeat('y', 40)"),
        differs={"MySQL 5.5": None, "MySQL": {
            "settings": (("binlog_transaction_compression", "ON"),),
            "tables": ("create table t (id int primary key, v text, n int)",),
            # Digits of which nothing repeats are coded, and all else in the transaction with them: no name stays in clear.
            "trap": (f"insert into t values (900, concat({', '.join(f'sha2({i}, 512)' for i in range(12))}), 1)",
                     "update t set v = reverse(v)"),
        }},
    ),
    Case("no_checksum", "binlog_checksum=NONE", settings=(("binlog_checksum", "NONE"),),
         trap=("insert into t values (900, 'x', 1)",), differs={"MySQL 5.5": None}),
    Case(
        "large", "a row of 17 MB: events in several packets",
        tables=("create table t (id int primary key, v longblob, n int)", "set global max_allowed_packet = 64 << 20"),
        writes=("insert into t values ({n}, '{w}', 1)", "update t set n = {n}", "delete from t where id < 10 limit 1"),
        trap=(("c", "insert into t values (900, repeat('0123456789abcdef', 17 << 16), 1)"),
              ("c", "update t set v = concat('y', v) where id = 900")),
        settings=(("max_allowed_packet", "64 << 20"),), turns=2, differs={"MySQL 5.5": None}),
    Case(
        "domains", "several GTID domains",
        trap=(("set session gtid_domain_id = 7", "insert into t values (900, 'x', 1)"),
              ("set session gtid_domain_id = 0", "update t set v = 'y' where id = 900"),
              ("set session gtid_domain_id = 7", "delete from t where id = 900", "set session gtid_domain_id = 0")),
        differs={"MySQL": None},
    ),
    Case(
        "load_data", "LOAD DATA",
        trap=("load data local infile '{file}' into table t fields terminated by ','",),
    ),
    Case(
        "sequence", "sequences: their values stay (a warning says so)",
        tables=(TABLE, "create sequence numbers start with 900"), compared=("t",),
        trap=("insert into t values (nextval(numbers), 's', 1)", "select setval(numbers, 2000)"), differs={"MySQL": None}),
    Case(
        "system_versioned", "system-versioned tables",
        tables=(TABLE, "create table sv (id int primary key, v int) with system versioning"),
        trap=("insert into sv values (1, 1)", "update sv set v = 2"), refused=("system-versioned",), differs={"MySQL": None}),
    Case(
        "account", "account statements: accounts stay as they are (a warning says so)",
        trap=("create or replace user m_nobody@localhost identified by 'secret'", "drop user m_nobody@localhost"),
         differs={"MySQL": {"trap": ("create user m_nobody@localhost identified by 'secret'", "drop user m_nobody@localhost")}}),
    Case("gap", "a write that the log does not hold (sql_log_bin=0)",
         tables=(TABLE, "insert into t values (800, 'a', 1)"),
         trap=("update t set v = 'b' where id = 800", "set sql_log_bin = 0", "update t set v = 'c' where id = 800",
               "set sql_log_bin = 1", "update t set v = 'd' where id = 800"),
         refused=("chain-broken",)),
)  # fmt: skip

STOPS: tuple[Case, ...] = (
    Case(
        "reset",
        "RESET MASTER",
        trap=("reset master", "insert into t values (900, 'x', 1)"),
        stops=("capture-position-lost", "capture-purged", "capture-source-log", "capture-history-changed"),
        differs={"MySQL 9": {"trap": ("reset binary logs and gtids", "insert into t values (900, 'x', 1)")}},
    ),
)
