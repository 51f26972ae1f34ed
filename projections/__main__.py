"""`python -P -m projections --config F COMMAND`: the processors' process, and what an operator does to views.

Standard output is for people, or with `--json` one JSON object; what happens on the way goes to standard error.
Exit status: 0 done; 1 refused or failed, with the reason; 3 rebuilt, but not to the same digest; 70 stuck (worker).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from typing import Any

import psycopg

from projections import generations
from projections.database import connect
from projections.digest import Digest, digest
from projections.errors import ProjectionError, ViewAbsent
from projections.migrate import migrate
from projections.rebuild import Progress, drop, rebuild
from projections.views import VIEWS
from projections.worker import run
from streams.errors import StreamError
from streams.processors import FAMILIES
from streams.settings import Settings, load

EXIT_DIFFERENT = 3


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    logging.getLogger("faust").setLevel(logging.WARNING)
    logging.getLogger("mode").setLevel(logging.WARNING)
    try:
        settings = load(args.config)
        if args.command == "worker":
            return run(settings, args.family or ())
        return _COMMANDS[args.command](settings, args)
    except (ProjectionError, StreamError) as error:
        _say(f"error: {error}")
    except psycopg.OperationalError as error:
        _say(f"error: PostgreSQL: {str(error).strip()} (postgres-unreachable); is it up? `holdfast status`")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m projections", description="PostgreSQL read models of the log")
    parser.add_argument("--config", required=True, metavar="FILE", help="holdfast.toml")
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("worker", help="run the processors")
    worker.add_argument("--family", action="append", choices=list(FAMILIES), help="only these (default: all)")
    for name, text in (
        ("migrate", "bring the database up to date"),
        ("digest", "what a view says, as one number"),
        ("rebuild", "build a view again from the log and compare"),
        ("drop", "take a view away, to be rebuilt"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
        if name != "migrate":
            names = [*VIEWS, "all"]
            if name == "digest":
                command.add_argument("view", choices=names, nargs="?", default="all")
            else:
                command.add_argument("view", choices=names)
    return parser


def _named(args: argparse.Namespace) -> list[str]:
    return list(VIEWS) if args.view == "all" else [args.view]


def _migrate(settings: Settings, args: argparse.Namespace) -> int:
    with contextlib.closing(connect(settings.postgres)) as conn:
        applied = migrate(conn)
        generations.clean_all(conn)
        outdated = generations.ensure(conn)
    if args.json:
        _out({"applied": [m.number for m in applied], "outdated": outdated})
    else:
        for m in applied:
            _say(f"applied {m.number:04d} {m.name}")
        for view in outdated:
            _say(f"view {view} is of an older version; the processors rebuild it when they start")
        _out("the database is up to date")
    return 0


def _digest(settings: Settings, args: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    with contextlib.closing(connect(settings.postgres)) as conn:
        for name in _named(args):
            try:
                found[name] = _plain(digest(conn, VIEWS[name]))
            except ViewAbsent as error:
                if args.view != "all":
                    raise
                found[name] = {"absent": error.message}
    if args.json:
        _out(found)
    else:
        for name, d in found.items():
            _out(
                f"{name:<10} {d['digest']}  {sum(d['rows'].values())} rows"
                if "digest" in d
                else f"{name:<10} {d['absent']}"
            )
    return 0


def _rebuild(settings: Settings, args: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    for name in _named(args):
        result = rebuild(settings, name, _Narrator())
        found[name] = {
            "before": _plain(result.before),
            "after": _plain(result.after),
            "equal": result.equal,
            "why": result.why,
            "records": result.records,
        }
        if not args.json:
            verdict = {True: "equal to what it was", False: "NOT what it was", None: f"not compared: {result.why}"}
            _out(f"{name:<10} {result.after.digest}  {result.records} records, {verdict[result.equal]}")
    if args.json:
        _out(found)
    return EXIT_DIFFERENT if any(f["equal"] is False for f in found.values()) else 0


def _drop(settings: Settings, args: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    for name in _named(args):
        last = drop(settings, name)
        found[name] = _plain(last)
        if not args.json:
            _out(f"{name:<10} {last.digest if last else '-'}  dropped")
    if args.json:
        _out(found)
    return 0


_COMMANDS = {"migrate": _migrate, "digest": _digest, "rebuild": _rebuild, "drop": _drop}


class _Narrator:
    """Says each phase of a rebuild once."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        if progress.phase != self._last:
            _say(f"{progress.view}: {progress.phase} ({progress.done} of {progress.total} records)")
            self._last = progress.phase


def _plain(value: Digest | None) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value) | json.loads(value.to_json())


def _out(value: Any) -> None:
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
