"""What the processors' process does before it begins: see that every view can be read on, and from where."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from projections import offsets, worker
from projections.database import connect
from projections.views import VIEWS
from streams.settings import Settings
from tests.contract.running import apply_all, behind, digests, make_topics, publish
from tests.contract.sample_log import history


def test_a_new_database_on_an_old_log_is_filled_in_bulk(fresh_site: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    make_topics(fresh_site)
    publish(fresh_site, history(random.Random(1), 600))
    monkeypatch.setattr(worker, "_BULK", 25)
    worker.prepare(fresh_site, list(VIEWS), threading.Event())
    with contextlib.closing(connect(fresh_site.postgres)) as conn:
        assert behind(fresh_site, conn, ["timeline", "jobs"]) == 0
        generations = {name: offsets.live_generation(conn, name) for name in VIEWS}
        assert generations["timeline"] == 2
        apply_all(fresh_site, conn)
        before = digests(conn)

        # Once something is read, a restart reads on rather than build anew.
        publish(fresh_site, history(random.Random(2), 600))
        worker.prepare(fresh_site, list(VIEWS), threading.Event())
        assert {name: offsets.live_generation(conn, name) for name in VIEWS} == generations
        assert digests(conn) == before


def test_a_short_log_is_left_to_the_processors(fresh_site: Settings) -> None:
    make_topics(fresh_site)
    publish(fresh_site, history(random.Random(1), 60))
    worker.prepare(fresh_site, ["jobs"], threading.Event())
    with contextlib.closing(connect(fresh_site.postgres)) as conn:
        assert offsets.live_generation(conn, "jobs") == 1
        assert behind(fresh_site, conn, ["jobs"]) > 0
        assert set(offsets.live(conn, "jobs").values()) == {0}
        assert offsets.live(conn, "audit") == {}  # another process's
