"""A process that carries out one rollback, or settles what is left of one: what the agent does, for tests to kill.

    python -P -m tests.stand_ins.rollback_driver JOB run|recover

JOB is a JSON file (`write_job`). Events are appended to the job's event file and flushed to disk, in place of Kafka.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pymysql

from agents import registry
from agents.mysql.definitions import read_definitions, schema_version
from agents.protocol import SourceSettings
from agents.rollback.apply import Application
from agents.rollback.history import History
from agents.rollback.plan import Plan, make_plan, request_of
from agents.rollback.recover import settle_all
from agents.rollback.schema import Schema
from agents.rollback.target import Target
from streams.codec import decode, encode
from streams.events import Event, RollbackChanged, RollbackPlanned, Stamp
from tests.stand_ins.binlog_log import BinlogLog
from tests.stand_ins.rollback_bench import BOUND_USER, PASSWORD, SOURCE, USER, RollbackBench


def write_job(directory: Path, bench: RollbackBench, plan: Plan) -> Path:
    """The job file for `plan`; its event file starts with the plan."""
    events = directory / f"{plan.event.plan}.events"
    job = directory / f"{plan.event.plan}.json"
    append(events, plan.event)
    job.write_text(
        json.dumps(
            {
                "kind": bench.server.kind,
                "port": bench.server.port,
                "root": bench.server.root_password,
                "data": str(bench.server.datadir),
                "began": bench.log.began,
                "events": str(events),
                "plan": plan.event.plan,
            }
        )
    )
    return job


def append(path: Path, event: Event) -> None:
    with path.open("a") as file:
        file.write(encode(event, Stamp("driver", 0, bytes(32))).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())


def history(path: Path) -> History:
    """What the event file says. A last line cut off by a death was never said."""
    found = History()
    for line in path.read_text().split("\n")[:-1]:
        event, _ = decode(bytes.fromhex(line))
        if isinstance(event, RollbackPlanned):
            found.plans[event.plan] = event
        elif isinstance(event, RollbackChanged):
            found.changes.setdefault(event.plan, []).append(event)
    return found


def main(job_file: str, what: str) -> None:
    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    events = Path(job["events"])
    root = pymysql.connect(host="127.0.0.1", port=job["port"], user="root", password=job["root"], autocommit=True)
    log = BinlogLog(root, Path(job["data"]), start=tuple(job["began"]))
    log.refresh()

    def target(method: str) -> Target:
        user = USER if method == "native" else BOUND_USER
        settings = SourceSettings(
            SOURCE, job["kind"], "127.0.0.1", job["port"], accounts={"rollback": user}, passwords={"rollback": PASSWORD}
        )
        return registry.target(settings, method)

    if what == "recover":
        settle_all(history(events), SOURCE, "agent-2", log, target, lambda event: append(events, event))
        return
    definitions = read_definitions(root)
    planned = history(events).plans[job["plan"]]
    made = make_plan(
        request_of(planned),
        Schema({(d.schema, d.table): d for d in definitions}, schema_version(definitions)),
        lambda first, last: log.steps(log.lineage, first, last),
        source=SOURCE,
        by="test",
        planned_us=0,
    )
    assert made.event.digest == planned.digest, "another process makes another plan"
    there = target(request_of(planned).method)
    Application(made, there, log, "agent-1", say=lambda event: append(events, event)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
