"""`source-overhead`: transactions a second that a source does alone, while captured, and beside a raw dump reader instead.

A few connections commit one-row inserts as fast as the server lets them, `sync_binlog=1`, from a procedure: the client takes
no part of the machine. The three take turns within a round, each time in another order. Everything is on one machine, so
capture pays for the broker and its flushes too; `mariadb-binlog --raw` writes without flushing.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import threading
from collections.abc import Iterator

from tests.bench import capturing, ground
from tests.bench.ground import DATABASE, Ground
from tests.bench.report import Report, Skip, report

WRITERS = 4
TURN_S = 12.0
_MODES = ("alone", "captured", "dumped")
# Ids of different writers never meet; the count is what was committed within the time.
_LOAD = (
    "create or replace procedure overhead(writer int, seconds double) begin declare i int default 0; "
    "declare t datetime(6) default sysdate(6) + interval seconds second; "
    "declare base int default (select coalesce(max(id), writer * 100000000) from overhead "
    "where id between writer * 100000000 and writer * 100000000 + 99999999); "
    "while sysdate(6) < t do set i = i + 1; "
    "insert into overhead values (base + i, concat('customer name ', i), 1.25, '2024-01-02 03:04:05'); "
    "end while; select i; end"
)


def run(rounds: int, scale: float) -> Report:
    seconds = max(2.0, TURN_S * scale)
    rate: dict[str, list[float]] = {mode: [] for mode in _MODES}
    with ground.ground() as g:
        if ground.binlog_program(g.mariadb) is None:
            raise Skip("there is no mariadb-binlog here")
        g.mariadb.execute(ground.WIDE.format(name="overhead"), _LOAD, database=DATABASE)
        for number in range(rounds + 1):
            turn = number % len(_MODES)
            for mode in (*_MODES[turn:], *_MODES[:turn]):
                with _beside(g, mode, f"r{number}"):
                    done = _transactions(g, seconds) / seconds
                if number > 0:
                    rate[mode].append(done)
    alone = statistics.median(rate["alone"])
    ours, peer = statistics.median(rate["captured"]), statistics.median(rate["dumped"])
    figures = {
        "alone_tx_s": alone,
        "lost_percent": 100 * (1 - ours / alone),
        "peer_lost_percent": 100 * (1 - peer / alone),
        "writers": WRITERS,
        "seconds": seconds,
    }
    return report(
        "source-overhead",
        rate["captured"],
        rate["dumped"],
        "mariadb-binlog --raw --stop-never",
        "tx/s",
        "more",
        figures,
    )


def _transactions(g: Ground, seconds: float) -> int:
    done = [0] * WRITERS
    failed: list[BaseException] = []

    def writer(number: int) -> None:
        try:
            with contextlib.closing(g.mariadb.connect(database=DATABASE)) as connection, connection.cursor() as cursor:
                cursor.execute(f"call overhead({number + 1}, {seconds})")
                row = cursor.fetchone()
                assert row is not None
                done[number] = int(row[0])
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(done)


@contextlib.contextmanager
def _beside(g: Ground, mode: str, name: str) -> Iterator[None]:
    """What reads the source's log meanwhile, from a new file on; it reads when the block begins."""
    g.mariadb.execute("flush binary logs")
    if mode == "alone":
        yield
    elif mode == "captured":
        settings = capturing.prepare(g, name, ground.position(g.mariadb))
        with capturing.watermark(settings) as high:
            before = high()
            with capturing.capture(settings) as process:
                ground.until(lambda: high() > before, 60)
                _commit_one(g)
                ground.until(lambda: high() > before + 1, 60)
                yield
                if process.poll() is not None:
                    raise RuntimeError((settings.data_dir / "capture.log").read_text()[-2000:])
    else:
        with ground.raw_dump(g, ground.binlogs(g.mariadb)[-1][0]) as (process, folder):
            _commit_one(g)
            ground.until(lambda: any(f.stat().st_size > 0 for f in folder.iterdir()), 60)
            yield
            _still(process)


def _still(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"mariadb-binlog ended with {process.returncode}")


def _commit_one(g: Ground) -> None:
    g.mariadb.execute(
        "insert into overhead select coalesce(max(id), 0) + 1, '', 0, now() from overhead where id < 1000000",
        database=DATABASE,
    )
