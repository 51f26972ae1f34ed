"""What a source's rollback account may do, and what follows for plans: the method, whether there is a fence.

Asked of the target when a source is added and when a plan is made; nothing here is part of what is planned, and when a plan
runs the target looks at everything again (`Target.check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from agents import registry
from agents.errors import AgentError
from agents.protocol import Preflight, SourceSettings
from agents.rollback.approval import REQUIRED
from agents.rollback.plan import METHODS, Plan, Request, no_fence
from agents.rollback.target import FENCE, NATIVE_APPLY
from streams.events import Problem

# Options of a source that are about its rollbacks, and the values they may have (the first is the default).
OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "rollback_method": ("auto", *METHODS),
    "approval": ("off", REQUIRED),
}


@dataclass(frozen=True, slots=True)
class Notes:
    """What a look at the target adds to a plan: in no digest, since it is not of the plan."""

    obstacles: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def on(self, plan: Plan) -> Plan:
        event = plan.event
        return replace(plan, event=replace(
            event, obstacles=(*event.obstacles, *self.obstacles), warnings=(*event.warnings, *self.warnings)
        ))  # fmt: skip


def option(settings: SourceSettings, name: str) -> str:
    """The option of this source, or its default. Raises `AgentError` (`option-invalid`)."""
    values = OPTIONS[name]
    value = settings.options.get(name) or values[0]
    if value not in values:
        raise AgentError(
            "option-invalid", f"{name} of source {settings.source} is {value!r}", f"it is one of {', '.join(values)}"
        )
    return value


def preflight(settings: SourceSettings) -> Preflight:
    """Of the rollback account, when a source is added: nothing stops it, since rollbacks may be set up later."""
    problems = []
    for name in OPTIONS:
        try:
            option(settings, name)
        except AgentError as error:
            problems.append(error.problem())
    if not settings.accounts.get("rollback"):
        return Preflight(tuple(problems), (), ())
    try:
        can = _capability(settings)
    except AgentError:
        return Preflight(tuple(problems), (), ())  # the source's own preflight says what is wrong with the account
    warnings = []
    if NATIVE_APPLY not in can:
        warnings.append(Problem(
            "no-native-apply", "the rollback account may not replay native events: rollbacks will use bound statements,"
            " which set off triggers and so refuse tables that have them",
            "GRANT BINLOG REPLAY, BINLOG ADMIN ON *.* to it, where the server allows it",
        ))  # fmt: skip
    if FENCE not in can:
        warnings.append(no_fence())
    return Preflight(tuple(problems), tuple(warnings), tuple(sorted(can)))


def with_method(settings: SourceSettings, request: Request, asked: str) -> tuple[Request, Notes]:
    """How the plan will make its changes: as asked, else as the source's option says, else as its rollback account can.

    An account that nobody can log in with now (it may be locked until it is needed) is taken to have the rights that
    docs/guides/rollback.md asks for.
    """
    wanted = asked or option(settings, "rollback_method")
    try:
        can = _capability(settings)
    except AgentError as error:
        method = "native" if wanted == "auto" else wanted
        return replace(request, method=method), Notes(warnings=(_unseen(error, f"the plan is for method {method}"),))
    method = wanted if wanted != "auto" else "native" if NATIVE_APPLY in can else "bound"
    request = replace(request, method=method)
    try:
        registry.target(settings, method).close()
    except AgentError as error:
        return request, Notes(obstacles=(error.problem(),))
    if method == "bound" and request.whole_source and FENCE not in can:
        return request, Notes(obstacles=(no_fence(),))
    if method == "native" and NATIVE_APPLY not in can:
        return request, Notes(obstacles=(Problem(
            "no-native-apply", "the rollback account may not replay native events (BINLOG REPLAY, BINLOG ADMIN)",
            "plan with method bound, or grant them as docs/guides/rollback.md says",
        ),))  # fmt: skip
    return request, Notes()


def _capability(settings: SourceSettings) -> frozenset[str]:
    target = registry.target(settings)
    try:
        return target.capability()
    finally:
        target.close()


def _unseen(error: AgentError, then: str) -> Problem:
    return Problem(
        "rollback-account", f"what the rollback account may do was not seen: {error.message}",
        f"{then}; rights are looked at again before it runs",
    )  # fmt: skip
