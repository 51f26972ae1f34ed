"""What schedulers say: several of them that read late, die anywhere and are started again, against a log in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.scheduling.book import AGAIN_S, PATIENCE_S, Book
from streams import calendar
from streams.events import (
    AssetChanged,
    CommandRequested,
    Event,
    JobChanged,
    PolicyDefined,
    PolicyRemoved,
    PolicyRun,
)
from streams.policies import canonical, microseconds, parse, run_id, schedule_of
from streams.policy_log import PolicyLog

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class World:
    """A log in memory, a clock, schedulers, and somebody who carries out commands once."""

    def __init__(self, schedulers: int = 1) -> None:
        self.now = START
        self.mono = 0.0
        self.topics: dict[str, list[Event]] = {"inventory": [], "commands": [], "jobs": []}
        self.agents = [Agent(self, f"agent-{i}") for i in range(schedulers)]
        self._done: set[str] = set()
        self.fails: set[str] = set()  # assets whose jobs fail
        self.holds = False  # jobs are claimed and do not end

    @property
    def us(self) -> int:
        return microseconds(self.now)

    def wait(self, length: timedelta) -> None:
        self.now += length
        self.mono += length.total_seconds()

    def write(self, event: Event) -> None:
        self.topics[event.TOPIC].append(event)

    def machine(self, name: str, **more: Any) -> None:
        given: dict[str, Any] = {"state": "seen", "host": "kvm", "native": name, "name": name, "seen_us": 0, "by": "t"}
        self.write(AssetChanged(asset=name, **{**given, **more}))

    def define(self, version: int = 1, policy: str = "nightly", **given: Any) -> None:
        document: dict[str, Any] = {
            "kind": "backup.run",
            "repository": "vault",
            "assets": {"names": ["*"]},
            "schedule": ["daily 02:00"],
            **given,
        }
        text = canonical(parse(document))
        self.write(PolicyDefined(policy=policy, version=version, document=text, defined_us=self.us, by="ada"))

    def ask(self, policy: str = "nightly", version: int = 1) -> str:
        """Somebody wants a run now; its id."""
        run = run_id(policy, 0, self.us)
        self.write(
            PolicyRun(
                policy=policy, version=version, run=run, state="asked", instant_us=self.us, at_us=self.us, by="ada"
            )
        )
        return run

    def work(self) -> None:
        """Carry out what was asked for, each command once."""
        cancelled = {e.job for e in self.topics["jobs"] if isinstance(e, JobChanged) and e.state == "cancel_asked"}
        for event in list(self.topics["commands"]):
            assert isinstance(event, CommandRequested)
            if event.command in self._done or event.command in cancelled:
                continue
            self._done.add(event.command)
            states = ["accepted", "claimed", "started"]
            if not self.holds:
                failed = self.fails.intersection(event.asset.split("/"))
                states.append("failed" if failed else "finished")
            for state in states:
                self.say(event, state)

    def say(self, event: CommandRequested, state: str) -> None:
        claim = "" if state == "accepted" else "c"
        self.write(
            JobChanged(
                job=event.command, kind=event.kind, asset=event.asset, state=state, at_us=self.us, by="n", claim=claim
            )
        )  # fmt: skip

    def turn(self) -> None:
        for agent in self.agents:
            agent.turn()

    def settle(self) -> None:
        """Turns until nobody says anything more."""
        while True:
            before = sum(map(len, self.topics.values()))
            self.turn()
            if not self.holds:
                self.work()
            if sum(map(len, self.topics.values())) == before:
                return

    def runs(self, state: str) -> list[PolicyRun]:
        """Those that count."""
        log, found = PolicyLog(), []
        for event in self.topics["inventory"]:
            known = isinstance(event, PolicyRun) and event.run in log.runs
            decided = log.standings[event.policy].decided_us if isinstance(event, PolicyRun) else 0
            if log.apply(event) and isinstance(event, PolicyRun) and event.state == state:
                if state == "skipped":  # what was decided already is not skipped by it
                    event = replace(event, instant_us=max(event.instant_us, decided + 1))
                found += [] if state == "fired" and known else [event]
        return found

    def fired(self) -> list[str]:
        return [f"{calendar_time(e.instant_us):%m-%d %H:%M}" for e in self.runs("fired")]

    def asked(self) -> list[CommandRequested]:
        return [e for e in self.topics["commands"] if isinstance(e, CommandRequested)]


def calendar_time(us: int) -> datetime:
    return datetime.fromtimestamp(us // 1_000_000, UTC)


class Agent:
    """A scheduler that may read late, and die."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.start()

    def start(self) -> None:
        self.book = Book(self.name)
        self.read: dict[str, int] = dict.fromkeys(self.world.topics, 0)
        for topic in self.world.topics:
            self.take(topic)
            self.book.settle()

    def take(self, topic: str, most: int = 10**9) -> None:
        log = self.world.topics[topic]
        for event in log[self.read[topic] : self.read[topic] + most]:
            self.book.take(event, "w", self.world.mono)
            self.read[topic] += 1

    def turn(self) -> None:
        for topic in self.world.topics:
            self.take(topic)
        self.say()

    def say(self, most: int = 10**9) -> int:
        what = self.book.decide(self.world.us, self.world.mono)
        for _, event in what[:most]:
            self.world.write(event)
        return len(what)


def world(**given: Any) -> World:
    made = World()
    made.machine("web")
    made.define(**given)
    made.settle()
    return made


def test_a_run_is_made_when_it_is_due_and_ends_with_its_jobs() -> None:
    here = world(priority=3)
    assert here.fired() == []
    here.wait(timedelta(hours=14, seconds=1))
    here.settle()
    assert here.fired() == ["03-03 02:00"]
    (command,) = here.asked()
    assert (command.kind, command.asset, command.requester, command.priority) == (
        "backup.run", "asset/web", "policy/nightly", 3,
    )  # fmt: skip
    assert json.loads(command.parameters) == {"asset": "web", "repository": "vault", "quiesce": "try"}
    (ended,) = here.runs("ended")
    assert ended.figures == {"done": 1, "assets": 1, "left_out": 0}
    here.wait(DAY)
    here.settle()
    assert here.fired() == ["03-03 02:00", "03-04 02:00"]


def test_what_is_selected_is_what_is_there_when_it_runs() -> None:
    here = world(assets={"folders": ["/prod"]}, **{"except": {"tags": ["no-backup"]}})
    here.machine("db", folder="/prod/databases")
    here.machine("cache", folder="/prod", tags=("no-backup",))
    here.machine("old", folder="/prod", state="gone")
    here.machine("test", folder="/production-test")
    here.wait(DAY)
    here.settle()
    assert [c.asset for c in here.asked()] == ["asset/db"]
    here.machine("db", folder="/archive")
    here.wait(DAY)
    here.settle()
    (skipped,) = here.runs("skipped")
    assert (skipped.reason, len(here.asked())) == ("nothing-selected", 1)


def test_missed_runs_are_made_up_for_by_one_or_said_to_be_skipped() -> None:
    for missed, fired in (("run", ["03-05 02:00"]), ("skip", [])):
        here = world(missed=missed)
        here.wait(3 * DAY)
        here.agents[0].start()
        here.settle()
        assert here.fired() == fired
        first, last = (datetime(2026, 3, 3, 2, tzinfo=UTC), datetime(2026, 3, 5, 2, tzinfo=UTC))
        (skipped,) = here.runs("skipped")
        assert skipped.instant_us == microseconds(first)
        assert skipped.until_us == microseconds(last) - (1 if missed == "run" else 0)
        here.wait(14 * HOUR)
        here.settle()
        assert here.fired() == [*fired, "03-06 02:00"]


def test_missed_runs_wait_for_windows_and_a_year_of_minutes_is_skipped_at_once() -> None:
    here = world(schedule=["every 1 minutes"], windows=["22:00-23:00"])
    here.wait(timedelta(days=366, hours=1))
    here.settle()
    assert here.fired() == [], "13:00 is outside"
    here.wait(timedelta(hours=9, minutes=5))
    here.settle()
    assert here.fired() == ["03-03 22:05"]
    (skipped,) = here.runs("skipped")
    assert skipped.instant_us == microseconds(datetime(2026, 3, 2, 22, tzinfo=UTC))


def test_when_windows_close_what_waits_is_given_up_and_what_works_may_finish() -> None:
    for overrun, cancelled in (("finish", ["asset/b"]), ("stop", ["asset/a", "asset/b"])):
        here = World()
        for name in ("a", "b"):
            here.machine(name)
        here.define(windows=["02:00-03:00"], overrun=overrun)
        here.holds = True
        here.settle()
        here.wait(14 * HOUR)
        here.settle()
        one, _ = here.asked()
        for state in ("accepted", "claimed", "started"):
            here.say(one, state)
        here.settle()
        here.wait(HOUR)
        here.settle()
        asked = [e.asset for e in here.topics["jobs"] if isinstance(e, JobChanged) and e.state == "cancel_asked"]
        assert sorted(asked) == cancelled
        here.say(one, "finished" if overrun == "finish" else "cancelled")
        here.settle()
        (ended,) = here.runs("ended")
        outcome = {"done": 1, "cancelled": 1} if overrun == "finish" else {"cancelled": 2}
        assert ended.figures == {**outcome, "assets": 2, "left_out": 0}
        assert {c.deadline_us is None for c in here.asked()} == {overrun == "finish"}


def test_what_failed_is_tried_again_after_pauses_and_not_once_windows_are_closed() -> None:
    here = world(retries_s=[60, 3600], windows=["02:00-02:30"])
    here.fails = {"web"}
    here.wait(14 * HOUR)
    here.settle()
    assert len(here.asked()) == 1
    here.wait(timedelta(seconds=59))
    here.settle()
    assert len(here.asked()) == 1
    here.wait(timedelta(seconds=1))
    here.settle()
    assert len({c.command for c in here.asked()}) == len(here.asked()) == 2
    (ended,) = here.runs("ended")  # the next try would be after 02:30
    assert ended.figures == {"failed": 1, "assets": 1, "left_out": 0}
    again = world(retries_s=[60])
    again.fails = {"web"}
    again.wait(14 * HOUR)
    again.settle()
    again.fails = set()
    again.wait(MINUTE)
    again.settle()
    assert again.runs("ended")[0].figures == {"done": 1, "assets": 1, "left_out": 0}


def test_an_asset_whose_run_goes_on_is_left_out_of_the_next_and_that_is_said() -> None:
    here = World()
    for name in ("a", "b"):
        here.machine(name)
    here.define(schedule=["hourly"])
    here.settle()
    here.wait(timedelta(minutes=10))
    here.settle()
    here.wait(timedelta(minutes=50))
    here.holds = True
    here.settle()
    one, other = here.asked()
    for state in ("accepted", "claimed", "started", "finished"):
        here.say(one, state)
    here.wait(HOUR)
    here.settle()
    assert [(s.reason, dict(s.left_out)) for s in here.runs("skipped")] == [
        ("still-running", {"a": "still-running", "b": "still-running"})
    ]
    for state in ("accepted", "claimed", "finished"):
        here.say(other, state)
    here.settle()
    here.wait(HOUR)
    here.settle()
    assert len(here.runs("fired")) == 2


def test_what_was_due_when_a_policy_was_changed_is_made_under_the_new_version() -> None:
    here = world()
    here.wait(timedelta(hours=14, seconds=2))
    here.define(version=2, schedule=["daily 01:00"])
    here.settle()
    assert [(f.version, f"{calendar_time(f.instant_us):%H:%M}") for f in here.runs("fired")] == [(2, "02:00")]
    here.wait(DAY)
    here.settle()
    assert here.fired() == ["03-03 02:00", "03-04 01:00"], "01:00 of the day it was changed is not due"


def test_a_policy_that_is_switched_off_or_removed_makes_no_run_until_it_is_asked_to() -> None:
    here = world(enabled=False)
    here.wait(2 * DAY)
    here.settle()
    run = here.ask()
    here.settle()
    (fired,) = here.runs("fired")
    assert (fired.run, fired.reason, len(here.asked())) == (run, "asked", 1)
    here.define(version=2)
    here.settle()
    assert len(here.runs("fired")) == 1, "what came by while it was off is not owed"
    here.write(PolicyRemoved(policy="nightly", version=2, removed_us=here.us, by="ada"))
    here.wait(2 * DAY)
    here.settle()
    assert len(here.runs("fired")) == 1


def test_what_has_no_schedule_is_never_due_and_runs_when_it_is_asked_to() -> None:
    here = world(schedule=[])
    here.wait(400 * DAY)
    here.settle()
    assert not here.runs("fired")
    assert not here.runs("skipped")
    here.ask()
    here.settle()
    (fired,) = here.runs("fired")
    assert (fired.reason, [c.asset for c in here.asked()]) == ("asked", ["asset/web"])
    here.define(version=2)
    here.settle()
    here.wait(DAY)
    here.settle()
    assert len(here.runs("fired")) == 2, "it was given a schedule"
    here.define(version=3, schedule=[])
    here.wait(3 * DAY)
    here.settle()
    assert len(here.runs("fired")) <= 3, "and lost it: nothing but what was due when it did"


def test_machines_of_one_moment_are_one_command_tried_again_and_left_out_as_one() -> None:
    here = World()
    for name in ("a", "b"):
        here.machine(name)
    here.define(schedule=["hourly"], together=True, retries_s=[60])
    here.settle()
    here.fails = {"group"}
    here.wait(HOUR)
    here.settle()
    (first,) = here.asked()
    assert first.asset == f"group/{here.runs('fired')[0].run}"
    assert json.loads(first.parameters)["assets"] == ["a", "b"]
    here.fails = set()
    here.wait(timedelta(seconds=61))
    here.settle()
    again = here.asked()[1]
    assert (again.asset, again.parameters) == (first.asset, first.parameters)
    assert here.runs("ended")[-1].figures == {"done": 2, "assets": 2, "left_out": 0}
    here.holds = True
    here.machine("c")
    here.wait(HOUR)
    here.settle()
    here.machine("d")
    here.wait(HOUR)
    here.settle()
    assert len(here.asked()) == 3
    (skipped,) = here.runs("skipped")
    assert (skipped.reason, set(skipped.left_out)) == ("still-running", {"a", "b", "c", "d"}), (
        "d alone is not the group"
    )


def test_rolling_runs_are_counted_from_the_end_of_the_one_before() -> None:
    here = world(schedule=["rolling 6h"])
    here.wait(timedelta(seconds=1))
    here.settle()
    assert len(here.runs("fired")) == 1
    here.wait(5 * HOUR)
    here.settle()
    assert len(here.runs("fired")) == 1
    here.wait(HOUR)
    here.settle()
    assert here.fired() == ["03-02 12:00", "03-02 18:00"]


def test_a_clock_that_jumps_ahead_and_back_makes_each_instant_once() -> None:
    here = world()
    here.now += 30 * DAY
    here.settle()
    assert here.fired() == ["04-01 02:00"], "1 April"
    here.now -= 30 * DAY
    here.settle()
    assert [r.reason for r in here.runs("rewound")] == ["clock"]
    for _ in range(40):
        here.wait(DAY)
        here.settle()
    assert len(here.fired()) == len(set(here.fired())) == 40
    assert len({c.command for c in here.asked()}) == len(here.asked()) == 40


def test_who_did_not_say_that_a_run_is_made_asks_for_it_only_when_the_other_is_gone() -> None:
    here = World(schedulers=2)
    here.machine("web")
    here.define()
    one, other = here.agents
    here.wait(14 * HOUR)
    one.turn()
    other.turn()
    other.turn()
    assert [c.command for c in here.asked()] == []
    here.mono += PATIENCE_S
    other.turn()
    assert len(here.asked()) == 1
    here.work()
    one.start()
    here.settle()
    assert len(here.asked()) == 1, "who was gone finds that it was asked for"
    assert [e.figures["done"] for e in here.runs("ended")] == [1]


def test_two_that_define_at_once_agree_on_one_version() -> None:
    here = world()
    here.define(version=2, schedule=["daily 03:00"])
    here.define(version=2, schedule=["daily 04:00"])
    here.settle()
    here.wait(DAY)
    here.settle()
    assert here.fired() == ["03-03 03:00"]


SCHEDULES = ["every 15 minutes", "hourly :05", "every 6 hours", "daily 02:00 14:30", "weekly mon,wed 03:00"]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    schedule=st.sampled_from(SCHEDULES),
    windows=st.sampled_from([[], ["22:00-06:00"], ["mon-fri 01:00-05:00", "sat 12:00-13:00"]]),
    missed=st.sampled_from(["run", "skip"]),
)
def test_nothing_runs_twice_and_nothing_silently_not_at_all(
    seed: int, schedule: str, windows: list[str], missed: str
) -> None:
    rng = random.Random(seed)
    here = World(schedulers=2)
    for name in ("a", "b"):
        here.machine(name)
    given_: dict[str, Any] = {"schedule": [schedule], "windows": windows, "missed": missed, "retries_s": [60]}
    here.define(**given_)
    begun = here.us
    for _ in range(120):
        agent = rng.choice(here.agents)
        match rng.randrange(6):
            case 0:
                here.wait(timedelta(seconds=rng.choice([1, 30, 600, 3600, 20_000, 90_000])))
            case 1 | 2:
                agent.take(rng.choice(list(here.topics)), rng.randrange(1, 5))
            case 3:
                agent.say()
            case 4:
                # Dies when only the first of what it would say is in the log, and is started again.
                if agent.say(most=rng.randrange(3)) and rng.random() < 0.7:
                    agent.start()
            case 5:
                here.fails = set(rng.sample(["a", "b"], rng.randrange(3)))
                here.work()
    here.fails = set()
    for _ in range(4):
        here.settle()
        here.wait(timedelta(seconds=max(PATIENCE_S, AGAIN_S)))
    here.settle()

    fired = here.runs("fired")
    assert len({f.instant_us for f in fired}) == len(fired)
    assert len(here.runs("ended")) == len(fired)
    # Whatever is in the log twice is the same command; and one asset has one first command a run.
    per_run = [(f.run, asset) for f in fired for asset in f.assets]
    asked = {c.command for c in here.asked()}
    closed = sum(e.figures.get("closed", 0) for e in here.runs("ended"))
    assert len(per_run) - closed <= len(asked) <= 2 * len(per_run)
    # Each instant that was due is a run's, or was said to be skipped, or waits for a window.
    schedule_ = schedule_of(parse(here_document(here)))
    made = {f.instant_us for f in fired}
    left = here.runs("skipped")
    for run in due_until(schedule_, begun, here.us):
        at = microseconds(run.instant)
        skipped = any(s.instant_us <= at <= s.until_us for s in left)
        assert (at in made) != skipped or not calendar.is_open(schedule_, here.now)


def here_document(here: World) -> str:
    return next(e.document for e in here.topics["inventory"] if isinstance(e, PolicyDefined))


def due_until(schedule: calendar.Schedule, begun: int, until: int) -> Iterator[calendar.Due]:
    for run in calendar.due(schedule, datetime.fromtimestamp(begun / 1e6, UTC)):
        if microseconds(run.start) > until:
            return
        yield run
