"""A job's life is one fold over one order: whoever says what, however late, at most one claim stands, and an end is the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events import FINAL_STATES, JobChanged
from streams.job_states import TABLE, Life, after, counts


def change(state: str, claim: str = "", by: str = "agent-a", priority: int = 0) -> JobChanged:
    return JobChanged(job="j", kind="k", asset="a", state=state, at_us=1, by=by, claim=claim, priority=priority)


def life_of(*changes: JobChanged) -> Life:
    life = Life()
    for each in changes:
        life = after(life, each, f"run of {each.by}")
    return life


def test_a_life_without_trouble() -> None:
    said = [
        change("accepted"),
        change("claimed", "x"),
        change("started", "x"),
        change("progressed", "x"),
        change("warned", "x"),
        change("finished", "x"),
    ]
    lives = [life_of(*said[: n + 1]) for n in range(len(said))]
    assert [life.state for life in lives] == ["accepted", "claimed", "started", "progressed", "progressed", "finished"]
    assert [life.phase for life in lives] == ["waiting", "claimed", "working", "working", "working", "over"]
    assert (lives[3].holder, lives[3].writer, lives[3].claims) == ("agent-a", "run of agent-a", 1)


def test_the_first_claim_counts_and_the_second_is_void() -> None:
    life = life_of(change("accepted"), change("claimed", "x"), change("claimed", "y", "agent-b"))
    assert (life.claim, life.holder, life.claims) == ("x", "agent-a", 1)
    assert after(life, change("started", "y", "agent-b")) is life
    assert after(life, change("finished", "y", "agent-b")) is life


def test_a_claim_that_expired_is_void_whatever_its_holder_says_later() -> None:
    held = life_of(change("claimed", "x"), change("started", "x"))
    free = after(held, change("claim_expired", "x", "agent-b"))
    assert (free.phase, free.claim, free.holder) == ("waiting", None, "")
    for late in ("started", "progressed", "warned", "released", "finished", "failed", "cancelled"):
        assert after(free, change(late, "x")) is free, late
    taken = after(free, change("claimed", "y", "agent-b"))
    assert after(taken, change("claim_expired", "x", "agent-c")) is taken, "said twice, it ends no other claim"
    for late in ("finished", "failed", "released"):
        assert after(taken, change(late, "x")) is taken, late


def test_nothing_counts_after_the_end() -> None:
    for end in FINAL_STATES:
        life = life_of(change("claimed", "x"), change(end, "x"))
        assert life.over
        assert life.state == end
        for states in TABLE.values():
            for state in states:
                for claim in ("", "x", "y"):
                    assert not counts(life, change(state, claim)), state


def test_cancelling_ends_what_waits_and_is_known_to_every_holder_of_the_rest() -> None:
    waiting = life_of(change("accepted"), change("cancel_asked", by="somebody"))
    assert (waiting.state, waiting.over, waiting.cancel) == ("cancelled", True, "somebody")

    held = life_of(change("claimed", "x"), change("started", "x"), change("cancel_asked", by="somebody"))
    assert (held.state, held.phase, held.cancel) == ("started", "working", "somebody")
    taken = after(after(held, change("claim_expired", "x")), change("claimed", "y", "agent-b"))
    assert (taken.cancel, taken.held) == ("somebody", True)
    assert after(taken, change("cancelled", "y")).state == "cancelled"
    assert after(held, change("finished", "x")).state == "finished", "it was done before it could be stopped"

    begun = after(life_of(change("claimed", "x"), change("claim_expired", "x")), change("cancel_asked", by="somebody"))
    assert (begun.phase, begun.cancel) == ("waiting", "somebody"), "somebody has to clean up"
    assert after(begun, change("cancel_asked", by="somebody")).state == "cancelled", "unless it is asked again"


def test_logs_from_before_there_were_claims() -> None:
    """One agent, whose next run claims again; a late word of the run before is the agent's."""
    ended = [change(s) for s in ("accepted", "claimed", "started", "claimed", "started", "progressed", "finished")]
    assert life_of(*ended).state == "finished"
    assert life_of(*ended[:5]).claims == 2

    died = life_of(*ended[:3])
    assert after(died, change("claimed", "x", "agent-b")) is died, "a claim is not taken from a holder that named none"
    taken = after(after(died, change("claim_expired")), change("claimed", "x", "agent-b"))
    assert (taken.claim, taken.claims) == ("x", 2)
    assert after(taken, change("finished")) is taken
    assert after(taken, change("claimed")) is taken


def test_jobs_that_nobody_claims() -> None:
    life = life_of(change("accepted"), change("started"), change("progressed"))
    assert (life.phase, life.holder) == ("working", "agent-a")
    assert after(life, change("failed")).state == "failed"
    assert life_of(change("failed")).over, "a command that says nothing anybody could do"


def test_priority_is_said_beside_the_state() -> None:
    life = life_of(change("accepted"), change("prioritised", by="somebody", priority=7))
    assert (life.state, life.priority) == ("accepted", 7)


@dataclass
class Node:
    """One run of an agent: it has read `read` changes of the log, and works under claims that it read back."""

    name: str
    read: int = 0
    life: Life = field(default_factory=Life)
    claim: str = ""
    working: bool = False
    dead: bool = False

    def read_on(self, log: list[JobChanged], count: int) -> None:
        for each in log[self.read : self.read + count]:
            self.life = after(self.life, each)
            self.read += 1
        if self.claim and self.life.claim == self.claim and self.life.held:
            self.working = True


MOVES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["read", "claim", "say", "end", "expire", "die", "cancel", "again", "late"]),
              st.integers(0, 5)),
    max_size=80,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(MOVES)
def test_however_nodes_claim_die_and_speak_late_one_claim_stands_at_a_time(moves: list[tuple[int, str, int]]) -> None:
    """Three nodes, each of which knows only as much of the log as it has read; sent records may come late, or twice."""
    log: list[JobChanged] = []
    under_way: list[JobChanged] = []
    nodes = [Node(name) for name in "abc"]
    begun: list[str] = []
    claims = 0
    for at, move, number in moves:
        node = nodes[at]
        if node.dead and move not in ("late", "again"):
            nodes[at] = node = Node(node.name)  # the next run
        match move:
            case "read":
                node.read_on(log, number + 1)
            case "claim" if not node.life.held and not node.life.over and not node.claim:
                claims += 1
                node.claim = f"{node.name}{claims}"
                (under_way if number > 3 else log).append(change("claimed", node.claim, node.name))
            case "say" if node.working:
                (under_way if number > 3 else log).append(change("progressed", node.claim, node.name))
            case "end" if node.working:
                state = ("finished", "failed", "cancelled", "released")[number % 4]
                (under_way if number > 3 else log).append(change(state, node.claim, node.name))
            case "expire" if node.life.held:
                log.append(change("claim_expired", node.life.claim or "", node.name))
            case "die":
                node.dead = True
            case "cancel":
                log.append(change("cancel_asked", by="somebody"))
            case "again" if log:
                log.append(log[-1 - number % len(log)])
            case "late" if under_way:
                log.append(under_way.pop(number % len(under_way)))
        if node.working and node.claim not in begun:
            begun.append(node.claim)

    life, ends, counted = Life(), 0, set()
    for each in log:
        before, life = life, after(life, each)
        if life is before:
            continue
        assert not before.over, "nothing counts after the end"
        ends += life.over
        if each.state == "claimed":
            assert not before.held, "a claim was taken from its holder"
            counted.add(each.claim)
        elif before.held and each.state not in ("cancel_asked", "prioritised"):
            assert each.claim == before.claim, "somebody spoke for a claim that is not theirs"
    assert ends <= 1
    assert set(begun) <= counted, "somebody worked under a claim that never counted"
    for node in nodes:
        node.read_on(log, len(log))
        assert node.life == life or node.read < len(log), "all who read the same know the same"
