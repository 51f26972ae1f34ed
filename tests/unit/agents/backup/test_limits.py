"""No more at once than is allowed, and nobody waits for ever; so many bytes a second, whoever reads."""

from __future__ import annotations

import threading

import pytest

from agents.backup.limits import Bucket, Limits
from agents.backup.progress import Pace, Stopped, duration
from agents.repository.ingest import Spent


def test_disks_wait_for_a_place_on_their_storage_host_and_node() -> None:
    limits = Limits(node_disks=3)
    options = {"disks": "2", "storage_disks": "1"}
    lock = threading.Lock()
    now: dict[str, int] = {}
    most: dict[str, int] = {}
    together = threading.Event()

    def read(host: str, storage: str) -> None:
        with limits.disk(host, storage, options, lambda: None):
            with lock:
                for what in ("node", host, f"{host}/{storage}"):
                    now[what] = now.get(what, 0) + 1
                    most[what] = max(most.get(what, 0), now[what])
                if now["node"] == 3:
                    together.set()
            # Three can be at it at once: whoever is first waits for the others.
            assert together.wait(60)
            with lock:
                for what in ("node", host, f"{host}/{storage}"):
                    now[what] -= 1

    disks = [("h1", "a"), ("h1", "a"), ("h1", "b"), ("h1", "b"), ("h2", "a"), ("h2", "b")]
    threads = [threading.Thread(target=read, args=disk) for disk in disks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most == {"node": 3, "h1": 2, "h2": most["h2"], "h1/a": 1, "h1/b": 1, "h2/a": 1, "h2/b": 1}


def test_who_waits_for_a_place_can_be_called_off() -> None:
    class Enough(Exception):
        pass

    def enough() -> None:
        raise Enough

    limits = Limits()
    with limits.machines("h1", ["1", "2"], lambda: None):
        with pytest.raises(Enough), limits.machines("h1", ["2"], enough):
            pass
        with limits.machines("h1", ["3"], enough):
            pass
    with limits.machines("h1", ["2"], enough):
        pass


def test_a_bucket_gives_so_many_bytes_a_second_in_the_long_run() -> None:
    at = [0.0]
    bucket = Bucket(1000, lambda: at[0])
    for _ in range(100):
        at[0] += bucket.take(500)
    assert at[0] == pytest.approx(50.0)
    at[0] += 3600.0  # who was idle may not take it all at once afterwards
    assert bucket.take(1250) == pytest.approx(1.0)


def test_progress_says_rate_time_left_and_what_takes_longest() -> None:
    at = [0.0]
    pace = Pace(monotonic=lambda: at[0])
    pace.expect(300_000_000)
    pace.read(100_000_000)
    at[0] = 10.0
    spent = [Spent(reading=2.0, processing=9.0, storing=1.0), Spent(reading=3.0, processing=1.0, storing=0.5)]
    assert pace.told(spent) == "10.0 MB/s, 20 s left, most of the time goes into processing"
    assert pace.bottleneck([Spent(reading=9.0)]) == "reading"
    assert [duration(s) for s in (5, 200, 7800)] == ["5 s", "3 min", "2 h 10 min"]
    pace.stop()
    with pytest.raises(Stopped):
        pace.take(1)
