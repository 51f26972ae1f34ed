"""What a benchmark leaves: one JSON file, and the lines a person reads."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

FOLDER = Path(".bench")


class Skip(Exception):
    """This benchmark cannot run on this machine; the reason is the message."""


@dataclass(frozen=True, slots=True)
class Report:
    """`ours` and `peer` are medians in `unit`; `ratio` says how many times better ours is (for times: peer / ours).

    `figures`: the rest, by name, the unit in the name. `rounds`: how many counted rounds the medians are of.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    figures: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 1


def report(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    unit: str,
    better: Literal["more", "less"],
    figures: Mapping[str, float],
) -> Report:
    """A report of medians. `better`: whether more or less of `unit` is better."""
    a, b = statistics.median(ours), statistics.median(peer)
    ratio = (a / b if better == "more" else b / a) if a and b else 0.0
    rounded = {key: _round(value) for key, value in figures.items()}
    return Report(name, _round(a), _round(b), peer_name, unit, _round(ratio), rounded, len(ours))


def write(result: Report) -> Path:
    """`.bench/NAME.json`, replaced as a whole."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{result.name}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    new.rename(path)
    return path


def show(result: Report) -> str:
    lines = [
        f"{result.name}: ours {result.ours:,} {result.unit}, {result.peer_name} {result.peer:,} {result.unit}, "
        f"{result.ratio} times better ({result.rounds} rounds)"
    ]
    lines += [f"  {key} {value:,}" for key, value in result.figures.items()]
    return "\n".join(lines)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of unsorted values, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _round(value: float) -> float:
    return float(f"{value:.5g}")
