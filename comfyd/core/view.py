"""describe(): the only source of status, CLI, events and metrics. Facts in, plain JSON models out; decides nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

from comfyd.model.base import Condition, Now
from comfyd.model.desired import ConfigIssue, ModelSpec, Override
from comfyd.model.observed import Evidence, ExitInfo, ObservedEnvironment, ObservedProcess, ObservedState, Phase
from comfyd.model.plan import Action, InstallEnvironment, Plan, StartProcess
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ResolvedState
from comfyd.model.sources import SourceFile
from comfyd.model.view import (
    ConditionView,
    ConfigIssueView,
    ConfigStateView,
    EnvironmentView,
    ExitView,
    GpuView,
    InstallStepView,
    InstallView,
    InstanceView,
    PlannedAction,
    PlanView,
    StatusView,
)

SHOWN_HOLDS = {"waiting_env", "blocked", "backoff", "failed", "conflict", "stopped"}
BAD_ARGUMENTS_EXIT = 2
ENDED_HINTS = {
    "oom": "give it more memory, or run fewer instances; `--lowvram` and smaller models need less",
    "unresponsive": "the end of its log shows what it did last",
    "device_errors": "`nvidia-smi` and the kernel log tell whether the GPU is lost",
    "not_ready_in_time": "its log shows what it waits for; `probe.startup_deadline_s` gives it longer",
}
SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class ViewInput:
    """Everything describe() may look at. config_*: of live.ConfigView; source: instances.json as last read."""

    resolved: ResolvedState
    observed: ObservedState
    plan: Plan
    now: Now
    version: str
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    issues: Sequence[ConfigIssue] = ()
    config_state: str = "empty"
    config_path: str = ""
    revision: str = ""
    seen_revision: str = ""
    loaded_at: float | None = None
    autolaunch: bool = True
    source: SourceFile | None = None
    sha256: str = ""
    polling: bool = False
    gpus: tuple[GpuView, ...] = ()
    gpu_problem: str | None = None
    gpu_memory: Mapping[str, int] = field(default_factory=dict)


def rfc3339(wall: float | None) -> str | None:
    """Epoch seconds → `2026-01-31T12:00:00.000Z`."""
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def describe(given: ViewInput) -> StatusView:
    """The whole status. Instances: declared ones in id order, then services, then runs nobody declares any more."""
    wishes = sorted(
        given.resolved.processes, key=lambda w: (w.instance is None, w.instance.id if w.instance else 0, w.key)
    )
    runs = given.observed.by_key()
    shown = [instance_view(given, w, runs.get(w.key)) for w in wishes]
    known = {w.key for w in wishes}
    shown += [_undeclared(p) for p in given.observed.processes if p.key not in known and p.alive]
    environments = tuple(
        environment_view(e, given.observed.environment(e.name), given.plan) for e in given.resolved.environments
    )
    config = _config(given)
    return StatusView(
        output=_text(shown, config),
        instances=tuple(shown),
        environments=environments,
        config=config,
        plan=plan_view(given.plan, given.now),
        gpus=given.gpus,
        gpu_problem=given.gpu_problem,
        version=given.version,
        time=rfc3339(given.now.wall) or "",
    )


def condition_view(condition: Condition) -> ConditionView:
    return ConditionView(
        type=condition.type,
        reason=condition.reason,
        message=condition.message,
        hint=condition.hint,
        since=rfc3339(condition.since),
    )


def instance_view(given: ViewInput, wish: DesiredProcess, seen: ObservedProcess | None) -> InstanceView:
    """One declared process: what it should be, what it is, and why they differ."""
    hold = given.plan.holds.get(wish.key)
    alive = seen is not None and seen.alive
    evidence = given.evidence.get(wish.key)
    instance = wish.instance
    return InstanceView(
        id=instance.id if instance else None,
        key=wish.key,
        name=instance.name if instance else wish.key.rpartition("/")[2],
        description=instance.description if instance else "",
        environment=wish.environment,
        port=wish.spec.port,
        state=_state(seen, hold),
        ready=seen is not None and seen.phase is Phase.READY,
        desired="up" if wish.run else "down",
        pid=seen.pid if seen and alive else None,
        since=rfc3339(seen.phase_since_wall) if seen else None,
        restarts=seen.restarts if seen else 0,
        gpus="none" if wish.gpus == () else (list(wish.gpus) if wish.gpus is not None else None),
        conditions=tuple(condition_view(c) for c in _conditions(given, wish, seen, hold)),
        override=_override(given.overrides, wish),
        origin=wish.origin,
        generation=seen.generation if seen and alive else None,
        adopted=bool(seen and seen.adopted),
        identity=seen.identity if seen else "strong",
        in_flight=evidence.in_flight if evidence and seen and evidence.generation == seen.generation else 0,
        gpu_memory=given.gpu_memory.get(wish.key) if alive else None,
        last_exit=_exit(seen.last_exit) if seen and seen.last_exit else None,
        log=wish.spec.log,
    )


def _undeclared(seen: ObservedProcess) -> InstanceView:
    return InstanceView(
        key=seen.key, name=seen.key, port=seen.port, state=seen.phase.value, ready=seen.phase is Phase.READY,
        desired="down", pid=seen.pid, since=rfc3339(seen.phase_since_wall), restarts=seen.restarts, origin="none",
        generation=seen.generation, adopted=seen.adopted, identity=seen.identity,
    )  # fmt: skip


def _state(seen: ObservedProcess | None, hold: Condition | None) -> str:
    if seen is not None and seen.alive:
        return seen.phase.value
    if hold is None:
        return "stopped"
    if hold.type in SHOWN_HOLDS:
        return hold.type
    return "starting" if hold.type == "waiting_turn" else "held"


def _conditions(
    given: ViewInput, wish: DesiredProcess, seen: ObservedProcess | None, hold: Condition | None
) -> Iterable[Condition]:
    if hold is not None:
        yield hold
    if seen is None:
        return
    if seen.last_exit is not None and not seen.last_exit.asked and not seen.alive:
        bad = _bad_arguments(seen.last_exit)
        if bad is not None:
            yield bad
    unhealthy = _unhealthy(seen)
    if unhealthy is not None:
        yield unhealthy
    if seen.phase is Phase.STARTING and seen.probe_message:
        yield Condition("not_ready", "probe", seen.probe_message, since=seen.phase_since_wall)
    if seen.phase is Phase.UNREADY:
        hint = "it gets no tasks until it answers; it is started anew if it stays silent"
        yield Condition("not_ready", "unready", seen.probe_message, hint, since=seen.phase_since_wall)
    environment = given.observed.environment(wish.environment) if wish.environment else None
    if seen.alive and seen.tree and environment and environment.tree and seen.tree != environment.tree:
        message = f"runs generation {seen.tree.rpartition('.')[2]}, generation {environment.generation} is installed"
        yield Condition("restart_required", "new_generation", message, f"comfyd restart {wish.key.rpartition('/')[2]}")


def _unhealthy(seen: ObservedProcess) -> Condition | None:
    """Why we end it, or had to, or the kernel did: until it is ready again."""
    last = seen.last_exit
    if seen.trouble is not None:
        return seen.trouble
    if last is None or not last.reason or last.asked or seen.phase in (Phase.READY, Phase.UNREADY):
        return None
    return Condition("unhealthy", last.reason, last.text(), ENDED_HINTS.get(last.reason, ""), last.wall)


def _bad_arguments(last: ExitInfo) -> Condition | None:
    """argparse exits 2 and prints `<prog>: error: <message>`."""
    quoted = next((line for line in reversed(last.last_lines) if ": error: " in line), None)
    if last.code != BAD_ARGUMENTS_EXIT or quoted is None:
        return None
    return Condition("bad_arguments", "exit_2", quoted.strip(), "correct extra_args; edits apply at once", last.wall)


def _exit(last: ExitInfo) -> ExitView:
    return ExitView(
        code=last.code, signal=last.signal, oom=last.oom, reason=last.reason, asked=last.asked,
        at=rfc3339(last.wall) or "", text=last.text(), last_lines=last.last_lines[-SHOWN_LINES:],
    )  # fmt: skip


def _override(overrides: Sequence[Override], wish: DesiredProcess) -> dict[str, object] | None:
    rows = [o for o in overrides if o.key == wish.key]
    if not rows:
        return None
    return {
        "kinds": sorted(o.kind for o in rows),
        "fields": sorted({name for o in rows for name in o.fields}),
        "want": next((o.want.value for o in rows if o.want), None),
        "by": rows[-1].by,
        "since": rfc3339(min(o.created_at for o in rows)),
        "expires_at": rfc3339(min((o.expires_at for o in rows if o.expires_at is not None), default=None)),
    }


def environment_view(wish: DesiredEnvironment, seen: ObservedEnvironment | None, plan: Plan) -> EnvironmentView:
    """One environment with its latest install; URLs lose credentials and query strings, header values are masked."""
    seen = seen or ObservedEnvironment(name=wish.name)
    hold = plan.holds.get(f"environment/{wish.name}")
    found = [c for c in (wish.spec.issue, seen.condition, hold, *seen.conditions) if c is not None]
    conditions = tuple(condition_view(c) for c in found)
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


def plan_view(plan: Plan, now: Now) -> PlanView:
    return PlanView(
        actions=tuple(PlannedAction(action=_verb(a), key=a.key, reason=a.reason) for a in plan.actions),
        holds={key: condition_view(c) for key, c in sorted(plan.holds.items())},
        wake_in_s=round(max(0.0, plan.wake_at - now.mono), 3) if plan.wake_at is not None else None,
    )


def _verb(action: Action) -> str:
    if isinstance(action, InstallEnvironment):
        return "install"
    return "start" if isinstance(action, StartProcess) else "stop"


def _config(given: ViewInput) -> ConfigStateView:
    issues = tuple(ConfigIssueView(**i.model_dump()) for i in given.issues)
    return ConfigStateView(
        state=given.config_state, path=given.config_path, revision=given.revision, seen_revision=given.seen_revision,
        loaded_at=rfc3339(given.loaded_at), issues=issues, autolaunch=given.autolaunch, polling=given.polling,
        sha256=given.sha256, inode=given.source.inode if given.source else None,
        mounted=given.source is not None and given.source.mounted,
    )  # fmt: skip


def _text(instances: Sequence[InstanceView], config: ConfigStateView) -> str:
    how = ", no notice of edits: files are compared from time to time" if config.polling else ""
    lines = [f"config: {config.state} ({config.path}){how}"]
    lines += [f"  {i.severity}: {i.file}:{i.line}: {i.message}" for i in config.issues]
    for one in instances:
        where = f"port {one.port}" if one.port else "no port"
        who = f"Instance {one.id}" if one.id is not None else one.key
        pid = f", pid {one.pid}" if one.pid else ""
        why = f" - {one.conditions[0].message}" if one.conditions else ""
        lines.append(f"{who} ({one.name}): {one.state}, {where}{pid}{why}")
    return "\n".join(lines if instances else [*lines, "no instances declared"])
