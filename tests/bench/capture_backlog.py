"""`capture-1row`, `capture-100row`: a backlog in the source's binlog until all of it is durable in Kafka, flushed.

Ours is the capture process as a site runs it, from its first record's reading to the acknowledgement of the last. The peer is
Debezium's embedded engine publishing the same rows to the same Kafka, from its first event to its last acknowledgement, so
that neither pays for starting up; what it has not got through after five minutes is not waited for (its rate is of what
it has). `share_of_ceiling` compares with the slower of copying the same binlog files by
`mariadb-binlog --raw` and producing the bytes that capture stores through a plain producer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tests.bench import capturing, ground
from tests.bench.debezium import Peer
from tests.bench.ground import Ground
from tests.bench.report import Report, Skip, report

Load = Callable[[Ground, str], None]


def one_row(rounds: int, scale: float) -> Report:
    rows = int(400_000 * scale)
    return _backlog("capture-1row", rounds, rows, rows, lambda g, t: ground.one_row_inserts(g.mariadb, t, rows))


def hundred_rows(rounds: int, scale: float) -> Report:
    statements = int(40_000 * scale)
    return _backlog(
        "capture-100row",
        rounds,
        statements * 100,
        statements,
        lambda g, t: ground.hundred_row_inserts(g.mariadb, t, statements),
    )


def _backlog(name: str, rounds: int, rows: int, steps: int, load: Load) -> Report:
    ours: list[float] = []
    peer: list[float] = []
    noop: list[float] = []
    ceiling: list[float] = []
    cpu_per_gb: list[float] = []
    raw: list[float] = []
    plain: list[float] = []
    skipped = ""
    with ground.ground() as g:
        g.mariadb.execute(ground.WIDE.format(name="wide"), database=ground.DATABASE)
        start = ground.position(g.mariadb)
        files_before = {f for f, _ in ground.binlogs(g.mariadb)[:-1]}
        load(g, "wide")
        files = [f for f, _ in ground.binlogs(g.mariadb) if f not in files_before]
        for number in range(rounds + 1):
            counted = number > 0
            run = capturing.backlog(g, f"r{number}", start, steps + 1)  # the loading procedure is a step, too
            dump = ground.raw_dump_seconds(g, files)
            made = ground.plain_producer_seconds(g.kafka, f"plain-{number}", run.payload_bytes)
            if counted:
                ours.append(rows / run.seconds)
                cpu_per_gb.append(run.cpu_seconds / (run.payload_bytes / 1e9))
                raw.append(rows / dump)
                plain.append(rows / made)
                ceiling.append(max(dump, made) / run.seconds)
            try:
                for sink, into in (("kafka", peer), ("noop", noop)):
                    topic = f"peer-{sink}-{number}"
                    ground.create_topic(g.kafka, topic)
                    # "when_needed" would snapshot; "never" reads from the oldest binlog that is there.
                    more = {"topic": topic, "sink": sink, "debezium.snapshot.mode": "never"}
                    rival = Peer(g, f"{ground.DATABASE}\\.wide", rows, **more)
                    try:
                        rival.start()
                        found = rival.finish(partly=True)
                    finally:
                        rival.kill()
                    if counted:
                        into.append(found.events / found.seconds)
            except Skip as reason:
                skipped = str(reason)
    if skipped:
        raise Skip(skipped)
    return report(
        name,
        ours,
        peer,
        "Debezium 3.5 embedded engine to the same Kafka",
        "rows/s",
        "more",
        {
            "share_of_ceiling": statistics.median(ceiling),
            "mariadb_binlog_raw_rows_s": statistics.median(raw),
            "plain_producer_rows_s": statistics.median(plain),
            "cpu_s_per_gb": statistics.median(cpu_per_gb),
            "debezium_noop_rows_s": statistics.median(noop),
            "ratio_to_debezium_noop": statistics.median(ours) / statistics.median(noop),
            "rows": rows,
            "transactions": steps,
        },
    )
