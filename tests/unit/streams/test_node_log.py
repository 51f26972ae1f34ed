"""Who of the agents of one name has it: the first that names who had it before."""

from __future__ import annotations

import random

from streams.events import JobChanged, NodeChanged
from streams.node_log import NodeLog

NODE = "agent-one"


def said(state: str, run: str, replaces: str = "", node: str = NODE) -> NodeChanged:
    return NodeChanged(node=node, state=state, run=run, replaces=replaces, at_us=1, by=node)


def has(log: NodeLog) -> tuple[str, str]:
    standing = log.standing[NODE]
    return standing.run, standing.state


def test_of_two_that_take_a_name_at_once_the_first_has_it() -> None:
    log = NodeLog()
    assert log.apply(said("started", "r1"))
    assert not log.apply(said("started", "r2")), "it did not know of the first"
    assert not log.apply(said("started", "r1", "r1"))
    assert log.apply(said("started", "r2", "r1"))
    assert not log.apply(said("started", "r3", "r1")), "it would have replaced what was replaced already"
    assert has(log) == ("r2", "started")


def test_who_has_a_name_no_more_does_not_let_go_of_it() -> None:
    log = NodeLog()
    for event in (said("started", "r1"), said("started", "r2", "r1")):
        assert log.apply(event)
    assert not log.apply(said("stopped", "r1"))
    assert log.apply(said("stopped", "r2"))
    assert not log.apply(said("stopped", "r2"))
    assert log.apply(said("started", "r3", "r2")), "a name that is free is taken from who had it last"
    assert has(log) == ("r3", "started")


def test_names_are_apart_and_other_events_say_nothing() -> None:
    log = NodeLog()
    assert log.apply(said("started", "r1"))
    assert log.apply(said("started", "r2", node="agent-two"))
    assert not log.apply(JobChanged(job="j", kind="k", asset="a", state="accepted", at_us=1, by="b"))
    assert has(log) == ("r1", "started")


def test_whoever_reads_late_or_twice_one_run_at_most_believes_that_it_has_the_name() -> None:
    """Runs that claim by what they have read of a log, at any distance behind it."""
    for seed in range(200):
        rng = random.Random(seed)
        log: list[NodeChanged] = []
        read = {f"r{n}": 0 for n in range(4)}
        views = {run: NodeLog() for run in read}
        for _ in range(60):
            run = rng.choice(list(read))
            upto = rng.randint(read[run], len(log))
            for event in log[read[run] : upto]:
                views[run].apply(event)
            read[run] = upto
            standing = views[run].standing.get(NODE)
            if rng.random() < 0.3:
                log.append(said("started", f"{run}/{len(log)}", standing.run if standing else ""))
            elif standing is not None and standing.run.startswith(f"{run}/"):
                log.append(said("stopped", standing.run))
        believing = set()
        for run, view in views.items():
            for event in log[read[run] :]:
                view.apply(event)
            believing.add((view.standing[NODE].run, view.standing[NODE].state) if NODE in view.standing else None)
        assert len(believing) == 1
