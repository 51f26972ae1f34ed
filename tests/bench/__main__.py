"""`./dev bench NAME [NAME …]`: measure beside the peer in the same run, write `.bench/NAME.json`.

Exit status: 0 when all ran or said why they cannot, 1 when one failed. Ratios are reported, never asserted here: machines are
noisy, and a figure is judged by whoever reads it (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import traceback

from tests.bench.report import Report, Skip, show, write

# name -> module; each has `run(rounds: int, scale: float) -> Report` (a benchmark of several names: `run_<name>`).
BENCHMARKS: dict[str, str] = {
    "capture-1row": "tests.bench.capture_backlog:one_row",
    "capture-100row": "tests.bench.capture_backlog:hundred_rows",
    "capture-latency": "tests.bench.capture_latency:run",
    "source-overhead": "tests.bench.source_overhead:run",
    "capture-memory": "tests.bench.capture_memory:run",
    "undo-100k": "tests.bench.undo:hundred_thousand",
    "undo-last-step": "tests.bench.undo_last_step:run",
    "undo-selective": "tests.bench.keyed:undo_selective",
    "row-history": "tests.bench.keyed:row_history",
    "scratch": "tests.bench.scratch:run",
    "timeline": "tests.bench.timeline:run",
    "decode": "tests.bench.decode:run",
    "backup-full-restic": "tests.bench.repository:backup_full_restic",
    "backup-full-borg": "tests.bench.repository:backup_full_borg",
    "backup-unchanged": "tests.bench.repository:backup_unchanged",
    "restore-restic": "tests.bench.repository:restore_restic",
    "restore-borg": "tests.bench.repository:restore_borg",
    "restore-images": "tests.bench.restoring:images",
    "restore-depth": "tests.bench.repository:restore_depth",
    "collect": "tests.bench.collecting:collect",
    "adopt": "tests.bench.repository:adopt",
    "node-memory": "tests.bench.repository:node_memory",
    "backup-incremental": "tests.bench.machines:incremental",
    "backup-kvm": "tests.bench.machines:kvm",
    "repository-chunks": "tests.bench.chunks:run",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="+", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (one more warms up)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size, for a quick look")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)
    failed = False
    for name in BENCHMARKS if "all" in options.name else options.name:
        module, function = BENCHMARKS[name].split(":")
        try:
            result: Report = getattr(importlib.import_module(module), function)(options.rounds, options.scale)
        except Skip as reason:
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        print(show(result), flush=True)
        print(f"  -> {write(result)}", flush=True)
    return 1 if failed else 0


def _ended(number: int, _: object) -> None:
    """Unwind as on Ctrl-C: servers that a benchmark started end with it, its data goes."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
