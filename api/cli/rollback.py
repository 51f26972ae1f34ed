"""`holdfast rollback …`: a plan is made and looked at, then exactly that plan runs."""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from api.cli.asking import SOURCE, Ask, asks, confirm, pages
from api.cli.connection import segment
from api.cli.errors import ABSENT, REFUSED, UNCONFIRMED, CliError, say_problems
from api.cli.scratch import AT
from api.cli.times import MOMENT, ago, local

SWITCH = click.option("--switch-branch", is_flag=True, help="Leave newer steps behind that are not part of the target.")
LATER = click.option(
    "--not-whole-source",
    "whole_source",
    flag_value=False,
    default=True,
    help="Let others go on writing: later steps that do not touch the same rows stay.",
)
METHOD = click.option(
    "--method",
    type=click.Choice(["native", "bound"]),
    help="How rows are changed: native events, or bound statements; default: as the rollback account can.",
)
CHUNKS = click.option(
    "--chunk-rows",
    type=click.IntRange(1),
    help="In chunks of whole steps of about so many rows, each committed; needs --not-whole-source.",
)
PAUSE = click.option(
    "--chunk-pause", "pause_ms", type=click.IntRange(0, 3_600_000), metavar="MS", help="Between chunks."
)
APPROVAL = click.option("--approval", is_flag=True, help="A second person must approve it before it runs.")
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
PLAN = click.argument("plan")


def _target(given: dict[str, Any]) -> dict[str, Any]:
    named = {k: v for k, v in given.items() if v is not None}
    if len(named) > 1:
        options = " and ".join("--" + {"to_position": "to-gtid"}.get(k, k).replace("_", "-") for k in named)
        raise click.UsageError(f"{options} are different targets: give one")
    return named


@click.command("plan")
@SOURCE
@click.option("--steps", type=click.IntRange(1), help="So many steps back; rollbacks themselves do not count.")
@click.option(
    "--to-time", type=MOMENT, help="To the last step committed at or before: 12:00, 10m, 2026-01-31 12:00:05."
)
@click.option(
    "--to-gtid",
    "to_position",
    help="To right after this transaction: its GTID, or file:offset where the server has none.",
)
@click.option("--to-step", type=click.IntRange(0), metavar="ORDINAL", help="To right after this step; 0: the baseline.")
@SWITCH
@LATER
@METHOD
@CHUNKS
@PAUSE
@APPROVAL
@asks
def plan(
    ask: Ask, source: str, switch_branch: bool, whole_source: bool, method: str | None, approval: bool, **given: Any
) -> None:
    """Plan a rollback: what would be undone, in which tables, what stands in the way. Nothing is touched."""
    options = _options(given, whole_source, method, approval)
    target = _target(given)
    if not target:
        raise click.UsageError("say how far back: --steps, --to-time, --to-gtid or --to-step")
    _planned(ask, _make(ask, source, {"kind": "rollback", **target}, switch_branch, options))


def _planned(ask: Ask, found: dict[str, Any]) -> None:
    """Say what was planned, and how to go on."""

    def human() -> None:
        _summary(ask, found)
        if found["runnable"]:
            click.echo(f"\nLook closer:  holdfast rollback show {found['plan']}")
            if found["options"].get("approval"):
                click.echo(f"Somebody else:  holdfast rollback approve {found['plan']}")
            click.echo(f"Run it:       holdfast rollback run {found['plan']}")

    ask.out(found, human)
    if not found["runnable"]:
        sys.exit(REFUSED)


def _options(given: dict[str, Any], whole_source: bool, method: str | None, approval: bool) -> dict[str, Any]:
    """A plan's options, as the API takes them."""
    chunks = {name: given.pop(name, None) for name in ("chunk_rows", "pause_ms")}
    return {
        **{name: value for name, value in chunks.items() if value is not None},
        "whole_source": whole_source,
        **({"method": method} if method else {}),
        **({"approval": True} if approval else {}),
    }


def _make(ask: Ask, source: str, body: dict[str, Any], switch_branch: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Have the plan made and wait for it."""
    body = {**body, "switch_branch": switch_branch, "options": options}
    accepted = ask.api.post(f"/v1/sources/{segment(source)}/rollbacks", body)
    ask.wait(accepted["job"], f"planning for {source}")
    return _get(ask, accepted["plan"])


def _get(ask: Ask, plan: str) -> dict[str, Any]:
    found: dict[str, Any] = ask.api.get(f"/v1/rollbacks/{segment(plan)}")
    return found


def _summary(ask: Ask, found: dict[str, Any]) -> None:
    from api.cli.tables import pairs, size, table

    undo = found["kind"] == "undo"
    way = " and ".join(
        f"{verb} {_steps(found[part])}" for part, verb in (("undo", "undo"), ("redo", "redo")) if found[part]
    )
    when = f", committed {local(found['target_time'])} ({ago(found['target_time'])})" if found["target_time"] else ""
    place = f"right after step {found['target_ordinal']:,}" if found["target_ordinal"] else "the baseline"
    pairs(
        [
            ("plan", f"{found['plan']} ({found['kind']}, {found['state']})"),
            ("source", found["source"]),
            ("target", found["target"] if undo else f"{found['target']}: {place}{when}"),
            ("way", way or "nothing to do"),
            ("amount", f"{found['rows']:,} rows of {found['steps']:,} steps, {size(found['bytes'])} of log"),
            ("estimate", _seconds(found["estimate_ms"]) if found["estimate_ms"] else ""),
            ("method", _METHODS[found["options"].get("method", "native")]),
            ("approval", _approval(found)),
            ("digest", found["digest"]),
            ("done as", f"step {found['ordinal']:,}, {found['position']}" if found["ordinal"] else ""),
        ]
    )
    if found["tables"]:
        click.echo()
        table(
            ["TABLE", ("INSERTS", "right"), ("UPDATES", "right"), ("DELETES", "right"), ""],
            [
                (
                    f"{t['schema']}.{t['table']}",
                    f"{t['inserts']:,}",
                    f"{t['updates']:,}",
                    f"{t['deletes']:,}",
                    "" if t["keyed"] else "no key: slow",
                )
                for t in found["tables"]
            ],
        )
    if found["dependant_steps"]:
        _dependants(found)
    _what_is_wrong(found)


def _what_is_wrong(found: dict[str, Any]) -> None:
    """With a plan: what is in its way, what to know before, and why it ended as it did."""
    if found["obstacles"]:
        click.echo("In the way, so it cannot run:", err=True)
        say_problems(found["obstacles"])
    if found["warnings"]:
        click.echo("To know before it runs:", err=True)
        say_problems(found["warnings"], "!")
    if found["problems"]:
        click.echo(f"Why it {found['state']}:", err=True)
        say_problems(found["problems"])


def _dependants(found: dict[str, Any]) -> None:
    """Later steps that depend on what is taken back."""
    from api.cli.tables import clean

    meant = {"cascade": "undone, too", "force": "written over", "leave": "their rows are left"}
    later = found["options"]["select"]["later"]
    click.echo(f"\nLater steps that wrote the same rows or depend on them ({meant.get(later, 'in the way')}):")
    for d in found["dependants"][:10]:
        click.echo(f"  step {d['ordinal']:,}  {clean(', '.join(d['tables']))}")
    if found["dependant_steps"] > 10:
        click.echo(f"  and {found['dependant_steps'] - 10:,} more")


_METHODS = {"native": "native events", "bound": "bound statements (the account may not replay events)"}


def _approval(found: Mapping[str, Any]) -> str:
    """Empty where none is needed or given."""
    if found["state"] == "approved":
        return f"by {found['by']}, {ago(found['since'])}"
    return f"needed, by somebody else than {found['planned_by']}" if found["options"].get("approval") else ""


def _steps(ranges: list[list[int]]) -> str:
    parts = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in ranges]
    count = sum(b - a + 1 for a, b in ranges)
    return f"{'step' if count == 1 else 'steps'} {', '.join(parts)}"


def _seconds(ms: int) -> str:
    return f"about {ms / 1000:.1f} s" if ms < 120_000 else f"about {ms / 60_000:.0f} min"


@click.command("show")
@PLAN
@click.option("--rows", "-n", type=click.IntRange(0, 1000), default=3, show_default=True, help="Sample rows a table.")
@click.option("--table", metavar="SCHEMA.TABLE", help="Rows of this table only.")
@click.option("--sql", is_flag=True, help="Print the plan as SQL to review instead.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="With --sql: into this file.")
@asks
def show(ask: Ask, plan: str, rows: int, table: str | None, sql: bool, output: Path | None) -> None:
    """A plan: what it does to which tables, what stands in the way, rows as they are and as they would be."""
    if sql:
        _write_sql(ask, plan, output)
        return
    found = _get(ask, plan)
    sample = None
    if rows:
        sample = ask.api.get(f"/v1/rollbacks/{segment(plan)}/preview", limit=rows, table=table)

    def human() -> None:
        _summary(ask, found)
        if sample is not None:
            _sample(found, sample)

    ask.out(found | ({"preview": sample} if sample is not None else {}), human)


def _sample(found: dict[str, Any], sample: dict[str, Any]) -> None:
    from api.cli.tables import change, clean

    done = found["state"] == "applied"
    for t in sample["tables"]:
        heading = "before → after" if done else "as they are → as they would be"
        click.echo(f"\n{t['schema']}.{t['table']}: rows {heading}")
        for c in t["changes"]:
            for line in change(c, t["columns"]):
                click.echo("  " + ("    " + clean(line.strip()) if line.startswith(" ") else clean(line)))
        if not t["complete"]:
            click.echo("  … and more")
    if sample["looked_at"] < sample["steps"]:
        click.echo(f"\nThe sample is from {sample['looked_at']:,} of {sample['steps']:,} steps.")


def _write_sql(ask: Ask, plan: str, output: Path | None) -> None:
    pieces = ask.api.text(f"/v1/rollbacks/{segment(plan)}/sql")
    if output is None:
        for piece in pieces:
            click.echo(piece, nl=False)
        return
    with output.open("w", encoding="utf-8") as out:
        for piece in pieces:
            out.write(piece)
    ask.say(f"written to {output}")


@click.command("run")
@PLAN
@click.option("--digest", help="Run it only if this is its digest; default: as it is shown now.")
@click.option("--dry-run", is_flag=True, help="Only check that it could run.")
@click.option(
    "--without-replica",
    "without",
    multiple=True,
    metavar="HOST:PORT",
    help="In chunks: do not wait for this replica; may be given more than once.",
)
@YES
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
@asks
def run(
    ask: Ask, plan: str, digest: str | None, dry_run: bool, without: tuple[str, ...], yes: bool, no_wait: bool
) -> None:
    """Run exactly the plan that was shown."""
    found = _get(ask, plan)
    if not ask.as_json and not yes:
        _summary(ask, found)
    _run(ask, found, digest or found["digest"], dry_run=dry_run, yes=yes, no_wait=no_wait, without=without)


def _run(
    ask: Ask,
    found: dict[str, Any],
    digest: str,
    *,
    dry_run: bool,
    yes: bool,
    no_wait: bool,
    without: tuple[str, ...] = (),
) -> None:
    source, path = found["source"], f"/v1/rollbacks/{segment(found['plan'])}/run"
    if dry_run:
        checked = ask.api.post(path, {"digest": digest, "dry_run": True})
        ask.out(checked, lambda: click.echo("It could run. Nothing was done."))
        return
    if not found["obstacles"]:
        way = found["target"] if found["kind"] == "undo" else f"{found['kind']} {found['target']}"
        rows = f"{found['rows']:,} rows"
        confirm(ask, source, f"{source} will be changed in place: {way}, {rows}", yes)
    asked = {"digest": digest, **({"without_replicas": list(without)} if without else {})}
    job = ask.api.post(path, asked)["job"]
    if no_wait:
        ask.out({"job": job, "plan": found["plan"]}, lambda: click.echo(f"asked for: holdfast job watch {job}"))
        return
    done = ask.wait(job, f"{found['kind']} of {source}")
    result = done["result"]

    def human() -> None:
        step = f" as step {result['ordinal']:,} ({result.get('position', '')})" if result.get("ordinal") else ""
        step = f" in {result['chunks']} chunks" if result.get("chunks") else step
        click.echo(f"Done{step}: {result.get('rows', found['rows']):,} rows changed, {found['target']}.")
        if found["kind"] == "rollback":
            click.echo(f"Forward again:  holdfast rollback forward {source}")
        elif found["kind"] == "undo" and result.get("ordinal"):
            click.echo(f"Take it back:   holdfast rollback undo {source} --step {result['ordinal']}")

    ask.out({"plan": found["plan"], "source": source, "digest": digest, "job": done, "result": result}, human)


@click.command("forward")
@SOURCE
@click.option(
    "--steps", type=click.IntRange(1), help="So many steps forward; default: all that the last rollback undid."
)
@click.option("--plan", help="Take this rollback back.")
@click.option("--to-step", type=click.IntRange(0), metavar="ORDINAL", help="To right after this step.")
@SWITCH
@LATER
@METHOD
@CHUNKS
@PAUSE
@APPROVAL
@click.option("--dry-run", is_flag=True, help="Only make the plan and show it.")
@YES
@asks
def forward(
    ask: Ask,
    source: str,
    switch_branch: bool,
    whole_source: bool,
    method: str | None,
    approval: bool,
    dry_run: bool,
    yes: bool,
    **given: Any,
) -> None:
    """Redo what was rolled back: plan it, show it, run it."""
    options = _options(given, whole_source, method, approval)
    found = _make(ask, source, {"kind": "forward", **_target(given)}, switch_branch, options)
    if not ask.as_json:
        _summary(ask, found)
    if not found["runnable"]:
        if ask.as_json:
            ask.out(found, lambda: None)
        sys.exit(REFUSED)
    if dry_run or found["options"].get("approval"):
        needed = f"Somebody else:  holdfast rollback approve {found['plan']}\n" if not dry_run else ""
        ask.out(found, lambda: click.echo(f"\n{needed}Run it:       holdfast rollback run {found['plan']}"))
        return
    try:
        _run(ask, found, found["digest"], dry_run=False, yes=yes, no_wait=False)
    except CliError as error:
        if error.exit_code == UNCONFIRMED:
            ask.say(f"The plan stays:  holdfast rollback run {found['plan']}")
        raise


@click.command("undo")
@SOURCE
@click.option("--step", type=click.IntRange(1), metavar="ORDINAL", help="This transaction.")
@click.option("--gtid", "position", help="The transaction with this GTID.")
@click.option("--from-step", "first", type=click.IntRange(1), metavar="ORDINAL", help="Steps from this one on.")
@click.option("--to-step", "last", type=click.IntRange(1), metavar="ORDINAL", help="Steps up to this one.")
@click.option("--since", type=MOMENT, help="Steps committed at this moment or later: 12:00, 10m, 2026-01-31 12:00:05.")
@click.option("--until", type=MOMENT, help="Steps committed at this moment or before.")
@click.option("--table", metavar="SCHEMA.TABLE", help="Rows of this table only.")
@click.option(
    "--keys",
    multiple=True,
    metavar="KEY|FIRST..LAST",
    help="Rows with these keys only: 7, 100..200, or the parts of a composite key with commas. May be repeated.",
)
@click.option(
    "--later",
    type=click.Choice(["refuse", "cascade", "force", "leave"]),
    default="refuse",
    show_default=True,
    help="When later steps wrote the same rows: refuse; undo these steps, too; go over their writes; leave these rows.",
)
@asks
def undo(ask: Ask, source: str, later: str, keys: tuple[str, ...], **given: Any) -> None:
    """Plan to take back single changes and leave the steps around them: a transaction, a table, some keys. Nothing is
    touched."""
    select = {k: v for k, v in given.items() if v is not None}
    if keys:
        select["keys"] = [_key_range(text) for text in keys]
    if not select.keys() - {"table"}:
        raise click.UsageError("say what to take back: --step, --gtid, or a range of steps or keys of a --table")
    body = {"kind": "undo", "select": select, "later": later, "options": {"whole_source": False}}
    accepted = ask.api.post(f"/v1/sources/{segment(source)}/rollbacks", body)
    ask.wait(accepted["job"], f"planning for {source}")
    _planned(ask, _get(ask, accepted["plan"]))


def _key_range(text: str) -> dict[str, list[str]]:
    """`7`, `100..200`, `a,b`. A value that holds commas or dots in a row stands in double quotes: `"a,b"`."""
    first, dots, last = text.partition("..") if not text.startswith('"') else (text, "", "")
    ends = [next(csv.reader([end], skipinitialspace=True), [""]) for end in ((first, last) if dots else (first, first))]
    return {"first": ends[0], "last": ends[1]}


@click.command("list")
@SOURCE
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@asks
def list_all(ask: Ask, source: str, limit: int) -> None:
    """Plans of a source, newest first, and what became of them."""
    found, following, _ = pages(ask, f"/v1/sources/{segment(source)}/rollbacks", limit)

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo(f"No rollback of {source} was planned yet:  holdfast rollback plan {source} --steps 1")
            return
        table(
            ["PLAN", "KIND", ("TARGET", "rest"), ("STEPS", "right"), ("ROWS", "right"), "STATE", "SINCE"],
            [
                (p["plan"], p["kind"], p["target"], f"{p['steps']:,}", f"{p['rows']:,}", _state(p), ago(p["since"]))
                for p in found
            ],
        )

    ask.out({"rollbacks": found, "next": following}, human)


def _state(plan: Mapping[str, Any]) -> str:
    if plan["state"] == "planned" and plan["obstacles"]:
        return f"in the way: {len(plan['obstacles'])}"
    return f"applied as {plan['ordinal']}" if plan["state"] == "applied" else str(plan["state"])


@click.command("approve")
@PLAN
@click.option("--digest", help="Approve it only if this is its digest; default: as it is shown now.")
@YES
@asks
def approve(ask: Ask, plan: str, digest: str | None, yes: bool) -> None:
    """Agree that a plan runs which somebody else made. Sources added with approval=required ask for it."""
    path = f"/v1/rollbacks/{segment(plan)}"
    try:
        found = ask.api.get(path)
        show: Callable[[dict[str, Any]], None] = functools.partial(_summary, ask)
        then = f"holdfast rollback run {plan}"
        what = f"{found['kind']} {found['target']}, planned by {found['planned_by']}, may run: {found['rows']:,} rows"
    except CliError as error:
        if error.exit_code != ABSENT:
            raise
        path = f"/v1/table-rollbacks/{segment(plan)}"
        found = ask.api.get(path)
        table = f"{found['schema']}.{found['table']}"
        show, then = _table_summary, f"holdfast rollback table {found['source']} {table} --plan {plan}"
        what = f"{table} {found['target']}, planned by {found['planned_by']}, may run: {found['rows_then']:,} rows"
    if not ask.as_json and not yes:
        show(found)
    confirm(ask, found["source"], what, yes)
    job = ask.api.post(f"{path}/approve", {"digest": digest or found["digest"]})["job"]
    done = ask.wait(job, "approving the plan")

    def human() -> None:
        click.echo(f"Approved. Anybody else but you runs it:  {then}")

    ask.out({"plan": plan, "digest": digest or found["digest"], "job": done}, human)


@click.command("abandon")
@PLAN
@asks
def abandon(ask: Ask, plan: str) -> None:
    """A plan that shall not be run any more."""
    try:
        job = ask.api.post(f"/v1/rollbacks/{segment(plan)}/abandon")["job"]
    except CliError as error:
        if error.exit_code == ABSENT:
            error.hint = "`holdfast rollback list SOURCE` shows them"
        raise
    done = ask.wait(job, "abandoning the plan")
    ask.out({"plan": plan, "job": done}, lambda: click.echo(f"{plan} is abandoned"))


@click.command("table")
@SOURCE
@click.argument("table", metavar="SCHEMA.TABLE")
@click.option("--to", "to", type=AT, help="A step (1234), a time (12:00, 10m), a GTID (0-1-100), or baseline.")
@click.option("--plan", "plan_id", help="Run this plan, made earlier for the table.")
@click.option("--dry-run", is_flag=True, help="Only make the plan and show it.")
@YES
@asks
def table(
    ask: Ask, source: str, table: str, to: dict[str, Any] | None, plan_id: str | None, dry_run: bool, yes: bool
) -> None:
    """Bring one table back to what it was after a step: undoes DROP, TRUNCATE and any change of its definition.

    It is restored on a scratch copy, shown beside the table of now, loaded into the source under another name, compared,
    and swapped in at once. The table that it replaces is kept; its name is told.
    """
    schema, dot, name = table.partition(".")
    if not dot or not schema or not name:
        raise click.UsageError(f"{table!r} is not SCHEMA.TABLE")
    if (to is None) == (plan_id is None):
        raise click.UsageError("say to when (--to), or which plan (--plan)")
    if plan_id is None:
        body = {"schema": schema, "table": name, **(to or {})}
        accepted = ask.api.post(f"/v1/sources/{segment(source)}/table-rollbacks", body)
        ask.wait(accepted["job"], f"restoring {table} on a scratch copy")
        plan_id = accepted["plan"]
    found = ask.api.get(f"/v1/table-rollbacks/{segment(plan_id)}")
    if (found["source"], found["schema"], found["table"]) != (source, schema, name):
        raise click.UsageError(f"plan {plan_id} is for {found['schema']}.{found['table']} of {found['source']}")
    if not ask.as_json:
        _table_summary(found)
    unapproved = found["state"] != "approved" and "approval-required" in {w["code"] for w in found["warnings"]}
    if dry_run or not found["runnable"] or (unapproved and to is not None):
        again = f"\nRun it:       holdfast rollback table {source} {table} --plan {plan_id}"
        if unapproved:
            again = f"\nSomebody else:  holdfast rollback approve {plan_id}\nThen run it:    {again.split(':', 1)[1].strip()}"
        ask.out(found, lambda: click.echo(again) if found["runnable"] else None)
        if not found["runnable"]:
            sys.exit(REFUSED)
        return
    confirm(ask, source, f"{table} of {source} will be replaced by what it was: {found['rows_then']:,} rows", yes)
    path = f"/v1/table-rollbacks/{segment(plan_id)}/run"
    done = ask.wait(ask.api.post(path, {"digest": found["digest"]})["job"], f"bringing {table} back")
    result = done["result"]

    def human() -> None:
        click.echo(f"Done: {table} has the {result['rows']:,} rows that it had {found['target'].removeprefix('to ')}.")
        if result["kept"]:
            click.echo(
                f"What it was before is kept as {schema}.{result['kept']}: drop it when it is not needed any more."
            )

    ask.out({"plan": plan_id, "source": source, "digest": found["digest"], "job": done, "result": result}, human)


def _table_summary(found: dict[str, Any]) -> None:
    from api.cli.tables import clean, pairs

    when = f", committed {local(found['target_time'])} ({ago(found['target_time'])})" if found["target_time"] else ""
    now, then = found["definition_now"].splitlines(), found["definition_then"].splitlines()
    pairs(
        [
            ("plan", f"{found['plan']} ({found['state']})"),
            ("table", f"{found['schema']}.{found['table']} of {found['source']}"),
            ("target", f"{found['target']}{when}"),
            ("rows now", "the table is gone" if found["rows_now"] is None else f"{found['rows_now']:,}"),
            ("rows then", f"{found['rows_then']:,}"),
            ("kept as", found["keeps"]),
            ("triggers", ", ".join(found["triggers"])),
            ("foreign keys", "; ".join(found["foreign_keys"])),
            ("privileges", "; ".join(found["privileges"])),
            ("digest", found["digest"]),
        ]
    )
    if now:
        for line in [
            *(f"- {x.strip()}" for x in now if x not in then),
            *(f"+ {x.strip()}" for x in then if x not in now),
        ]:
            click.echo("  " + clean(line))
    _what_is_wrong(found)


COMMANDS = (plan, undo, show, approve, run, forward, table, list_all, abandon)
