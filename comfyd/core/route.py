"""Which environment runs a workflow, which instance a task goes to, and where there is room.

Owns: routing by workflow and by load. Must not: claim anything or know how an instance is called.
"""

from collections.abc import Iterable, Iterator, Mapping

from comfyd.errors import ComfydError
from comfyd.model.desired import DesiredState, EnvironmentSpec
from comfyd.model.observed import Evidence, ObservedProcess, ObservedState, Phase
from comfyd.model.process import DesiredProcess, ResolvedState
from comfyd.model.task import Limit, Slot


def route(desired: DesiredState, workflow: str) -> EnvironmentSpec:
    """The one environment that lists `workflow`.

    Raises ComfydError unknown_workflow whose message and details (`known`) list the workflows there are.
    """
    for environment in desired.environments:
        if workflow in environment.workflows:
            return environment
    known = sorted({name for e in desired.environments for name in e.workflows})
    text = ", ".join(known) if known else "none; list workflows in an environment's config.json"
    raise ComfydError(
        f"no environment runs workflow {workflow!r} (known: {text})",
        code="unknown_workflow",
        details={"workflow": workflow, "known": known},
    )


def limits(desired: Iterable[EnvironmentSpec]) -> dict[str, Limit]:
    """Those of the environments that have any."""
    return {
        one.name: Limit(running=one.max_running, workflows=one.workflow_limits)
        for one in desired
        if one.max_running is not None or one.workflow_limits
    }


def pick_target(
    resolved: ResolvedState, observed: ObservedState, environment: EnvironmentSpec, load: Mapping[int, int]
) -> tuple[int, str | None]:
    """(port, process key or None) where a task of `environment` should run.

    The ready instance with the least work (`load`: port -> tasks; lower id first), else the environment's first
    declared one, else its config port. Raises ComfydError not_ready if it has neither.
    """
    declared = [p for p in _by_id(resolved) if p.environment == environment.name]
    ready = [(_port(p, run), p.key) for p in declared if (run := _ready(observed, p.key))]
    targets = [(port, key) for port, key in ready if port is not None]
    if targets:
        return min(targets, key=lambda target: load.get(target[0], 0))
    for process in declared:
        if process.spec.port is not None:
            return process.spec.port, process.key
    if environment.port is not None:
        return environment.port, None
    raise ComfydError(
        f"environment {environment.name!r} has no instance and no port; "
        "add an instance to instances.json or a port to its config.json",
        code="not_ready",
        retryable=True,
    )


def slots(
    resolved: ResolvedState,
    observed: ObservedState,
    evidence: Mapping[str, Evidence],
    max_in_flight: int = 2,
) -> list[Slot]:
    """Room for prompts now, one Slot for each, the least loaded place first (then by id).

    Only ready runs of wanted instances whose environment is a ComfyUI one with dispatch "on". `evidence` is by
    process key; what it says of another generation does not count. Condemned runs have no slots, and services
    none yet.
    """
    found: list[tuple[int, int, Slot]] = []
    runs, served = observed.by_key(), _dispatched(resolved)
    for rank, process in enumerate(_by_id(resolved)):
        run = runs.get(process.key)
        if run is None or run.phase is not Phase.READY or not process.run or process.environment not in served:
            continue
        port = _port(process, run)
        if port is None:
            continue
        seen = evidence.get(process.key)
        seen = seen if seen and seen.generation == run.generation else None
        if seen is not None and seen.condemned:
            continue
        used = seen.in_flight if seen else 0
        slot = _slot(process, run, port)
        found += [(depth, rank, slot) for depth in range(used, max_in_flight)]
    return [slot for _, _, slot in sorted(found, key=lambda entry: entry[:2])]


def _slot(process: DesiredProcess, run: ObservedProcess, port: int) -> Slot:
    name = process.instance.name if process.instance else process.key
    return Slot(
        key=process.key,
        generation=run.generation,
        port=port,
        environment=process.environment or "",
        instance=name,
    )


def _dispatched(resolved: ResolvedState) -> set[str | None]:
    """Names of the environments whose instances are given tasks."""
    return {e.name for e in resolved.environments if e.spec.service_type is None and e.spec.dispatch == "on"}


def _by_id(resolved: ResolvedState) -> Iterator[DesiredProcess]:
    def order(process: DesiredProcess) -> tuple[int, str]:
        return (process.instance.id if process.instance else 2**31, process.key)

    return iter(sorted(resolved.processes, key=order))


def _ready(observed: ObservedState, key: str) -> ObservedProcess | None:
    process = observed.process(key)
    return process if process and process.phase is Phase.READY else None


def _port(process: DesiredProcess, run: ObservedProcess) -> int | None:
    return run.port if run.port is not None else process.spec.port
