"""Processors: which views there are in each family, and the Faust shell around what applies them.

    catalogue    sources, machines, jobs, points,
                 policies, nodes, notices        `inventory`, `commands`, `jobs`, `repository`
    timelines    granules, plans, scratch copies `commits`, `rollbacks`, `inventory`
    dashboards   figures and the audit trail     `commits`, `health`, `audit`

A fourth family, replica copies, will read `replica.<site>` and `receipts.<site>` once something writes them; it is not built.
A family is what can run in a process of its own. What a view's topics are and how it is applied comes from the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "catalogue": ("catalogue", "jobs", "access", "repositories", "assets", "policies", "nodes", "notices"),
    "timelines": ("timeline", "copies"),
    "dashboards": ("dashboard", "audit"),
}
