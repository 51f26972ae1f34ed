"""The views: one module each, listed here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from projections.errors import ProjectionError
from projections.views import (
    access,
    assets,
    audit,
    catalogue,
    copies,
    dashboard,
    jobs,
    nodes,
    notices,
    policies,
    repositories,
    timeline,
)
from projections.views.base import View

VIEWS: Mapping[str, View] = {
    module.NAME: cast("View", module)
    for module in (
        catalogue,
        jobs,
        access,
        timeline,
        dashboard,
        audit,
        copies,
        repositories,
        assets,
        policies,
        nodes,
        notices,
    )
}


def view(name: str) -> View:
    """The view called `name`. Raises `ProjectionError` (`view-unknown`)."""
    try:
        return VIEWS[name]
    except KeyError:
        raise ProjectionError("view-unknown", f"there is no view {name!r}", f"known: {', '.join(VIEWS)}") from None
