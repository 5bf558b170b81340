"""One environment as core/view.py shows it: its config without secrets, its latest install, why it is not ready."""

from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

from comfyd.core.shown import SHOWN_LINES, condition_view, rfc3339
from comfyd.model.base import Condition
from comfyd.model.desired import ModelSpec
from comfyd.model.observed import ObservedEnvironment
from comfyd.model.plan import Plan
from comfyd.model.process import DesiredEnvironment
from comfyd.model.view import EnvironmentView, InstallStepView, InstallView


def environment_view(wish: DesiredEnvironment, seen: ObservedEnvironment | None, plan: Plan) -> EnvironmentView:
    """One environment with its latest install; URLs lose credentials and query strings, header values are masked."""
    seen = seen or ObservedEnvironment(name=wish.name)
    hold = plan.holds.get(f"environment/{wish.name}")
    conditions = tuple(condition_view(c) for c in _conditions(wish, seen, hold))
    running = next((s.name for s in seen.steps if s.state == "running"), None)
    steps = tuple(
        InstallStepView(
            name=s.name,
            state=s.state,
            started_at=rfc3339(s.started_at),
            finished_at=rfc3339(s.finished_at),
            message=s.message,
        )
        for s in seen.steps
    )
    install = InstallView(
        environment=wish.name, state=seen.state, generation=seen.generation, step=running, progress=seen.progress,
        steps=steps, failures=seen.failures, conditions=conditions, log=seen.log,
        last_lines=seen.last_lines[-SHOWN_LINES:],
    )  # fmt: skip
    spec = wish.spec
    return EnvironmentView(
        name=wish.name, description=spec.description, port=spec.port, workflows=spec.workflows,
        nodes=tuple({**n.model_dump(mode="json"), "url": _masked(n.url)} for n in spec.nodes),
        models=tuple(_model(m) for m in spec.models),
        installed=seen.installed, state=seen.state, generation=seen.generation, resolved_nodes=seen.nodes,
        conditions=conditions, install=install,
    )  # fmt: skip


def _conditions(wish: DesiredEnvironment, seen: ObservedEnvironment, hold: Condition | None) -> Iterable[Condition]:
    """Each once. What the plan says about a broken or blocked one is dated, so it stands for the fact itself."""
    facts = [c for c in (wish.spec.issue, seen.condition) if c is not None]
    held = hold is not None and any((c.type, c.reason) == (hold.type, hold.reason) for c in facts)
    if hold is not None and held:
        facts = [hold if (c.type, c.reason) == (hold.type, hold.reason) else c for c in facts]
    yield from dict.fromkeys(facts)
    if hold is not None and not held:
        yield hold
    yield from seen.conditions


def _model(model: ModelSpec) -> dict[str, object]:
    shown = model.model_dump(mode="json", exclude_defaults=True)
    if model.headers:
        shown["headers"] = dict.fromkeys(model.headers, "***")
    return {**shown, "url": _masked(model.url), "type": model.type}


def _masked(url: str) -> str:
    """Without user, password and query: any of them may be a token."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "***" if parts.query else "", ""))
