"""Building read models again: in a thread, told as a job's events, one at a time for each view.

A rebuild is the API's own work, not an agent's: it publishes `jobs` events itself. Killed in the middle, the live
view is as it was (`projections.rebuild`), and the next start of this API says that the job failed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING

import psycopg

from api.errors import ApiError
from projections.errors import ProjectionError
from projections.locks import building
from projections.rebuild import Progress, Rebuilt, rebuild
from projections.views import jobs
from streams.errors import StreamError
from streams.events import JobChanged, Problem
from streams.ids import now_us, uuid7

if TYPE_CHECKING:
    from api.site import Site

KIND = "projection.rebuild"
BY = "api"
_SAY_S = 0.3
log = logging.getLogger("holdfast.api")


class Rebuilds:
    """Rebuilds under way in this process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def start(self, view: str, actor: str) -> str:
        """Begin to rebuild `view`; the job's id. Raises `ApiError` 409 (`rebuild-running`)."""
        with self._lock:
            running = self._threads.get(view)
            if running is not None and running.is_alive():
                raise ApiError(
                    409, "rebuild-running", f"view {view} is being rebuilt already", "`holdfast job list --open`"
                )
            job = uuid7()
            self._say(job, view, "accepted", message=f"asked for by {actor}")
            thread = threading.Thread(target=self._run, args=(job, view), name=f"rebuild {view}", daemon=True)
            self._threads[view] = thread
            thread.start()
        return job

    def close(self) -> None:
        """Stop what is under way; the live views stay as they are."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join(30)

    def end_orphans(self) -> None:
        """Jobs that a run of this API began and did not end can only have died with it."""
        interrupted = Problem("interrupted", "the API ended while it rebuilt this view", "start it again")
        with self._site.views() as conn:
            for job in jobs.jobs(conn, kind=KIND, active=True, limit=1000):
                try:
                    # Whoever rebuilds the view holds its lock: a job of another API goes on.
                    with building(conn, job.asset):
                        self._say(job.job, job.asset, "failed", problems=(interrupted,))
                except ProjectionError as error:
                    if error.code != "rebuild-running":
                        raise

    def _run(self, job: str, view: str) -> None:
        last = 0.0

        def progress(p: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _SAY_S or p.phase in ("compared", "swapped"):
                last = now
                self._say(job, view, "progressed", message=p.phase, done=p.done, total=p.total, unit="records")

        try:
            self._say(job, view, "started")
            found = rebuild(self._site.settings, view, progress, self._stop)
            self._finish(job, view, found)
        except (ProjectionError, StreamError) as error:
            self._fail(job, view, Problem(error.code, error.message, error.hint))
        except psycopg.Error as error:
            first = str(error).strip().partition("\n")[0]
            self._fail(job, view, Problem("read-models-unavailable", f"PostgreSQL: {first}", "start it again"))
        except ApiError as error:
            log.warning("the rebuild of %s could not be told of: %s", view, error)

    def _finish(self, job: str, view: str, found: Rebuilt) -> None:
        result = {
            "view": view,
            "generation": found.generation,
            "records": found.records,
            "equal": found.equal,
            "why": found.why,
            "before": found.before.digest if found.before else None,
            "after": found.after.digest,
        }
        if found.equal is False:
            problem = Problem(
                "rebuild-differs",
                f"view {view} had another digest than the log gives: {result['before']} instead of {result['after']}",
                "the rebuilt view is live; keep the logs of the processors and report this",
            )
            self._say(job, view, "finished", result=json.dumps(result), problems=(problem,))
        else:
            self._say(job, view, "finished", result=json.dumps(result), done=found.records, total=found.records)

    def _fail(self, job: str, view: str, problem: Problem) -> None:
        try:
            self._say(job, view, "failed", problems=(problem,))
        except ApiError as error:
            log.warning("the rebuild of %s failed (%s), and that could not be told: %s", view, problem.code, error)

    def _say(
        self,
        job: str,
        view: str,
        state: str,
        *,
        message: str = "",
        done: int = 0,
        total: int = 0,
        unit: str = "",
        problems: tuple[Problem, ...] = (),
        result: str = "",
    ) -> None:
        event = JobChanged(
            job=job,
            kind=KIND,
            asset=view,
            state=state,
            at_us=now_us(),
            by=BY,
            message=message,
            done=done,
            total=total,
            unit=unit or ("records" if total else ""),
            problems=problems,
            result=result,
        )
        self._site.live.note(self._site.log.publish(event, correlation=job), event)
        self._site.log.flush()
