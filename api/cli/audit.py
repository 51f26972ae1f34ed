"""`holdfast audit …`"""

from __future__ import annotations

import json
from typing import Any

import click

from api.cli.asking import Ask, asks, pages
from api.cli.times import MOMENT, ago, local


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--actor", help="Only calls by this one.")
@click.option("--action", help="Only this operation, such as rollback.run.")
@click.option("--object", "about", help="Only what was done to this source, plan or token.")
@click.option("--since", type=MOMENT, help="Not before.")
@click.option("--until", type=MOMENT, help="Not after.")
@click.option("--as-of", type=MOMENT, help="The list as it was at that moment.")
@asks
def list_all(ask: Ask, limit: int, about: str | None, **query: Any) -> None:
    """Calls that changed something or were refused, and who looked at this list; newest first."""
    found, following, _ = pages(ask, "/v1/audit", limit, object=about, **query)

    def human() -> None:
        from api.cli.tables import table

        table(
            ["WHEN", ("", "dim"), "WHO", "ROLE", "DID", "TO", ("OUTCOME", "right"), "FROM", ("DETAIL", "rest")],
            [
                (
                    local(c["at"]),
                    ago(c["at"]),
                    c["actor"] or "(unknown)",
                    c["role"],
                    c["action"],
                    c["object"],
                    str(c["outcome"]),
                    c["remote"],
                    _detail(c["detail"]),
                )
                for c in found
            ],
        )

    ask.out({"calls": found, "next": following}, human)


def _detail(detail: dict[str, Any]) -> str:
    return json.dumps(detail, ensure_ascii=False)[1:-1] if detail else ""


COMMANDS = (list_all,)
