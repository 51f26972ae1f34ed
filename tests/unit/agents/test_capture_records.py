"""What a recorder writes is what readers accept, whatever the source hands over and wherever attempts end."""

from __future__ import annotations

from dataclasses import replace

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from agents.capture.engine import Progress
from agents.capture.records import Recorder, Standing, packed
from agents.protocol import Piece, Steps, Taken
from streams.capture_chain import Chain, Verdict
from streams.capture_record import lineage_digest, step_slices, unseal_payload
from streams.events import CommitsRecorded, EpochStarted, LineageStarted

LINEAGE = "01890a5d-ac96-774b-bcce-b302099a8057"


class Shift:
    """A sealer for tests: every byte one higher."""

    def seal(self, purpose: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes, bytes]:
        return "key", b"nonce", bytes((b + 1) % 256 for b in plaintext)

    def unseal(self, purpose: str, key_id: str, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        return bytes((b - 1) % 256 for b in ciphertext)


def steps(payloads: list[bytes], first: int, accounts: bool = False) -> Steps:
    ends = [sum(map(len, payloads[: i + 1])) for i in range(len(payloads))]
    last = first + len(payloads) - 1
    before, after = f"0-1-{last - 1}", f"0-1-{last}"
    return Steps(
        b"".join(payloads), ends, len(payloads), before, after, b"pre", 1, "binlog.000001", 9, 5_000_000, accounts
    )


def piece(payload: bytes, ordinal: int, first: bool, last: bool, accounts: bool = False) -> Piece:
    after = f"0-1-{ordinal if last else ordinal - 1}"
    return Piece(payload, first, last, 1, f"0-1-{ordinal - 1}", after, b"pre", 1, "binlog.000001", 9, 0, accounts)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Taken], list[tuple[bytes, bool]]]:
    """What a source hands over, and the steps that count, with whether they hold account statements."""
    taken: list[Taken] = []
    counted: list[tuple[bytes, bool]] = []
    some = st.binary(min_size=1, max_size=20)
    for _ in range(draw(st.integers(1, 8))):
        ordinal = len(counted) + 1
        kind = draw(st.sampled_from(["steps", "steps", "account", "large", "large account", "given up"]))
        accounts = "account" in kind
        if kind in ("steps", "account"):
            payloads = draw(st.lists(some, min_size=1, max_size=1 if accounts else 4))
            taken.append(steps(payloads, ordinal, accounts))
            counted += [(p, accounts) for p in payloads]
            continue
        parts = draw(st.lists(some, min_size=2, max_size=5))
        whole = kind != "given up"
        taken += [
            piece(p, ordinal, i == 0, whole and i == len(parts) - 1, accounts)
            for i, p in enumerate(parts if whole else parts[:-1])
        ]
        if whole:
            counted.append((b"".join(parts), accounts))
    return taken, counted


@given(histories())
def test_readers_accept_what_a_recorder_writes(history: tuple[list[Taken], list[tuple[bytes, bool]]]) -> None:
    taken, counted = history
    start = lineage_digest(LINEAGE, "0-1-0")
    recorder = Recorder("shop", LINEAGE, 3, start, Standing(0, "0-1-0", "0-1-0", None), Shift())
    chain = Chain()
    chain.take(EpochStarted(epoch=3, source="shop", agent="a", at_us=1), "w")
    chain.take(
        LineageStarted(
            lineage=LINEAGE, epoch=3, source="shop", position="0-1-0", server_id=1, server_version="", reason="r",
            baseline="b", digest=start, at_us=1,
        )
    )  # fmt: skip
    read: list[tuple[bytes, bool]] = []
    parts: list[bytes] = []
    for captured_us, t in enumerate(taken):
        record = recorder.record(t, captured_us)
        assert chain.take(record, "w") is Verdict.ACCEPTED
        assert chain.ordinal == recorder.standing.ordinal
        assert (record.encryption is not None) == record.accounts
        for view in step_slices(record, unseal_payload(record, Shift())):
            if record.part is None:
                read.append((bytes(view), record.accounts))
                continue
            parts = [*(parts if record.part.number else []), bytes(view)]
            if record.part.last:
                read.append((b"".join(parts), record.accounts))
        check_standing(record, recorder.standing, counted)
    assert read == counted


def check_standing(record: CommitsRecorded, at: Standing, counted: list[tuple[bytes, bool]]) -> None:
    """Every record says where the last complete step is, and how to recognise it."""
    assert (record.before, record.after) == (at.before, at.after)
    if at.ordinal == 0:
        assert (at.proof, record.last_step_digest) == (None, b"")
        return
    payload, accounts = counted[at.ordinal - 1]
    assert at.proof == blake3(payload).digest()
    assert at.after == f"0-1-{at.ordinal}"
    # Nothing that a password could be tried out against.
    assert record.last_step_digest == (b"" if accounts else at.proof)


def test_step_ends_are_little_endian() -> None:
    assert packed([1, 256, 70000]) == b"\1\0\0\0\0\1\0\0\x70\x11\1\0"


def test_lag_is_no_more_than_since_the_source_had_nothing_more() -> None:
    hour = 3_600_000_000
    new = Progress(caught_up_us=10 * hour)
    assert new.lag_ms(10 * hour + 5_000_000) == 5000
    caught_up = replace(new, step_time_us=2 * hour, caught_up_us=12 * hour)
    assert caught_up.lag_ms(12 * hour + 500_000) == 0
    assert caught_up.lag_ms(12 * hour + 3_000_000) == 3000
    behind = replace(new, step_time_us=11 * hour)
    assert behind.lag_ms(12 * hour) == 3_600_000
