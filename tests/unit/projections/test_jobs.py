"""A job's row follows its events: the command may come late, a final state stays."""

from __future__ import annotations

from typing import Any

from projections.database import Connection
from projections.views import jobs
from streams.events import CommandRequested, JobChanged, Problem
from tests.unit.projections.conftest import Feed

COMMAND = CommandRequested(
    command="j1", kind="rollback.run", asset="shop", parameters='{"plan":"p"}', requester="ada", requested_us=10
)


def change(state: str, at_us: int, **more: Any) -> JobChanged:
    return JobChanged(job="j1", kind="rollback.run", asset="shop", state=state, at_us=at_us, by="agent-1", **more)


def test_a_command_alone_is_a_requested_job(conn: Connection, feed: Feed) -> None:
    feed(COMMAND)
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.requester, job.requested_us, job.parameters) == ("requested", "ada", 10, '{"plan":"p"}')
    assert not job.final


def test_a_job_goes_from_accepted_to_finished(conn: Connection, feed: Feed) -> None:
    feed(COMMAND, change("accepted", 11), change("started", 12), change("progressed", 13, done=5, total=9, unit="rows"))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.done, job.total, job.unit, job.started_us) == ("progressed", 5, 9, "rows", 12)
    feed(change("warned", 14, problems=(Problem("slow", "slow", "wait"),)))
    feed(change("finished", 15, result='{"ordinal":7}'))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.finished_us, job.result, job.done) == ("finished", 15, '{"ordinal":7}', 5)
    assert job.problems == (Problem("slow", "slow", "wait"),)
    assert [e.state for e in jobs.events(conn, "j1")] == ["accepted", "started", "progressed", "warned", "finished"]


def test_a_warning_is_not_a_state(conn: Connection, feed: Feed) -> None:
    feed(COMMAND, change("started", 11), change("warned", 12, problems=(Problem("a", "b"),)))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.problems) == ("started", (Problem("a", "b"),))


def test_what_a_zombie_says_of_a_finished_job_is_history_only(conn: Connection, feed: Feed) -> None:
    feed(COMMAND, change("finished", 11, result="{}"), change("progressed", 12, done=1), change("failed", 13))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.state_us, job.done) == ("finished", 11, 0)
    assert len(jobs.events(conn, "j1")) == 3


def test_the_word_of_a_claim_that_is_over_is_history_only(conn: Connection, feed: Feed) -> None:
    feed(COMMAND, change("claimed", 11, claim="x"), change("started", 12, claim="x"))
    feed(change("claim_expired", 13, claim="x"), change("claimed", 14, claim="y"), change("claimed", 14, claim="z"))
    feed(
        change("finished", 15, claim="x", result='{"of":"x"}'), change("progressed", 16, claim="y", message="going on")
    )
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.claim, job.claims, job.result, job.message) == ("progressed", "y", 2, "", "going on")
    assert [e.claim for e in jobs.events(conn, "j1") if not e.counted] == ["z", "x"]
    feed(change("finished", 17, claim="y", result='{"of":"y"}'))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.result, job.started_us, job.finished_us) == ("finished", '{"of":"y"}', 12, 17)


def test_what_is_asked_of_a_job_stands_beside_its_state(conn: Connection, feed: Feed) -> None:
    feed(COMMAND, change("claimed", 11, claim="x"), change("prioritised", 12, priority=7), change("cancel_asked", 13))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.state_us, job.priority, job.cancel, job.cancel_us) == ("claimed", 11, 7, "agent-1", 13)
    feed(change("cancelled", 14, claim="x", message="agent-1 cancelled it at: reading"))
    job = jobs.job(conn, "j1")
    assert job is not None
    assert (job.state, job.final, job.finished_us) == ("cancelled", True, 14)


def test_events_can_be_followed_from_the_last_one_seen(conn: Connection, feed: Feed) -> None:
    feed(change("accepted", 1), change("started", 2), change("progressed", 3))
    first, second, third = jobs.events(conn, "j1")
    assert jobs.events(conn, "j1", after=(first.hlc, first.event)) == [second, third]
    assert jobs.events(conn, "j1", after=(third.hlc, third.event)) == []
    assert jobs.events(conn, "j1", limit=1) == [first]


def test_jobs_are_listed_newest_first_and_filtered(conn: Connection, feed: Feed) -> None:
    for i, (asset, state) in enumerate(
        [("shop", "finished"), ("crm", "started"), ("shop", "started"), ("shop", "failed")]
    ):
        feed(JobChanged(job=f"j{i}", kind="source.add", asset=asset, state=state, at_us=i, by="a"))
    assert [j.job for j in jobs.jobs(conn)] == ["j3", "j2", "j1", "j0"]
    assert [j.job for j in jobs.jobs(conn, asset="shop", limit=2)] == ["j3", "j2"]
    assert [j.job for j in jobs.jobs(conn, asset="shop", before="j2")] == ["j0"]
    assert [j.job for j in jobs.jobs(conn, active=True)] == ["j2", "j1"]
    assert [j.job for j in jobs.jobs(conn, state="failed")] == ["j3"]
    assert jobs.jobs(conn, kind="rollback.plan") == []
    assert len(jobs.jobs(conn, kind="source")) == len(jobs.jobs(conn, kind="source.add")) == 4
    assert [j.job for j in jobs.jobs(conn, by="a", limit=1)] == ["j3"]
    assert jobs.jobs(conn, by="b") == []
    assert jobs.job(conn, "nobody") is None
