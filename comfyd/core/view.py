"""describe(): the only source of status, CLI, events and metrics. Facts in, plain JSON models out; decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comfyd.core.shown import SHOWN_LINES, condition_view, rfc3339
from comfyd.core.view_conditions import instance_conditions, phase_conditions, state_of
from comfyd.core.view_environments import environment_view
from comfyd.model.base import Now
from comfyd.model.desired import ConfigIssue, Override
from comfyd.model.observed import Evidence, ExitInfo, ObservedProcess, ObservedState, Phase
from comfyd.model.plan import Action, InstallEnvironment, Plan, StartProcess
from comfyd.model.process import DesiredProcess, ResolvedState
from comfyd.model.sources import SourceFile
from comfyd.model.view import (
    ConfigIssueView,
    ConfigStateView,
    ExitView,
    GpuView,
    InstanceView,
    PauseView,
    PlannedAction,
    PlanView,
    StatusView,
)


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
    paused: tuple[PauseView, ...] = ()
    durability: str | None = None


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
        output=_text(shown, config, given.paused),
        instances=tuple(shown),
        environments=environments,
        config=config,
        plan=plan_view(given.plan, given.now),
        gpus=given.gpus,
        gpu_problem=given.gpu_problem,
        unrecorded=given.observed.unrecorded,
        paused=given.paused,
        durability=given.durability,
        version=given.version,
        time=rfc3339(given.now.wall) or "",
    )


def instance_view(given: ViewInput, wish: DesiredProcess, seen: ObservedProcess | None) -> InstanceView:
    """One declared process: what it should be, what it is, and why they differ."""
    hold = given.plan.holds.get(wish.key)
    alive = seen is not None and seen.alive
    evidence = given.evidence.get(wish.key)
    current = evidence is not None and seen is not None and evidence.generation == seen.generation
    in_flight = evidence.in_flight if evidence and current else 0
    why = instance_conditions(wish, seen, given.plan, in_flight, given.loaded_at)
    instance = wish.instance
    return InstanceView(
        id=instance.id if instance else None,
        key=wish.key,
        name=instance.name if instance else wish.key.rpartition("/")[2],
        description=instance.description if instance else "",
        environment=wish.environment,
        port=wish.spec.port,
        state=state_of(seen, hold, run=wish.run),
        ready=seen is not None and seen.phase is Phase.READY,
        desired="up" if wish.run else "down",
        pid=seen.pid if seen and alive else None,
        since=rfc3339(seen.phase_since_wall) if seen else None,
        restarts=seen.restarts if seen else 0,
        gpus="none" if wish.gpus == () else (list(wish.gpus) if wish.gpus is not None else None),
        conditions=tuple(condition_view(c) for c in why),
        override=_override(given.overrides, wish),
        origin=wish.origin,
        generation=seen.generation if seen and alive else None,
        adopted=bool(seen and seen.adopted),
        identity=seen.identity if seen else "strong",
        in_flight=in_flight,
        gpu_memory=given.gpu_memory.get(wish.key) if alive else None,
        last_exit=_exit(seen.last_exit) if seen and seen.last_exit else None,
        log=wish.spec.log,
    )


def _undeclared(seen: ObservedProcess) -> InstanceView:
    why = phase_conditions(seen, 0, "no longer declared")
    return InstanceView(
        conditions=tuple(condition_view(c) for c in why), key=seen.key, name=seen.key, port=seen.port,
        state=seen.phase.value, ready=seen.phase is Phase.READY,
        desired="down", pid=seen.pid, since=rfc3339(seen.phase_since_wall), restarts=seen.restarts, origin="none",
        generation=seen.generation, adopted=seen.adopted, identity=seen.identity,
    )  # fmt: skip


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


def plan_view(plan: Plan, now: Now) -> PlanView:
    return PlanView(
        actions=tuple(PlannedAction(action=_verb(a), key=a.key, reason=a.reason) for a in plan.actions),
        holds={key: condition_view(c) for key, c in sorted(plan.holds.items())},
        warnings={key: tuple(condition_view(c) for c in found) for key, found in sorted(plan.warnings.items())},
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


def _text(instances: Sequence[InstanceView], config: ConfigStateView, paused: Sequence[PauseView]) -> str:
    how = ", no notice of edits: files are compared from time to time" if config.polling else ""
    lines = [f"config: {config.state} ({config.path}){how}"]
    lines += [f"  {i.severity}: {i.file}:{i.line}: {i.message}" for i in config.issues]
    for pause in paused:
        what = f"queue of {pause.environment}" if pause.environment else "queue"
        lines.append(f"{what}: paused since {pause.since} by {pause.by}")
    for one in instances:
        where = f"port {one.port}" if one.port else "no port"
        who = f"Instance {one.id}" if one.id is not None else one.key
        pid = f", pid {one.pid}" if one.pid else ""
        first, *rest = one.conditions or (None,)
        why = f" - {first.message}" if first else ""
        lines.append(f"{who} ({one.name}): {one.state}, {where}{pid}{why}")
        lines += [f"  {c.type}: {c.message}" for c in rest if c]
        if first is not None and one.desired == "up":
            lines += [f"  -> {hint}" for hint in dict.fromkeys(c.hint for c in one.conditions if c.hint)]
    return "\n".join(lines if instances else [*lines, "no instances declared"])
