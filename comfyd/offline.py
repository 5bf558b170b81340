"""The second, small composition root: what can be answered from disk without a daemon.

Owns: `validate`, `plan` and the preview of a rewrite, offline. Must not: write anything, start or stop a process, or
touch the daemon's lock. Blocking.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from comfyd.core.config import parse
from comfyd.core.plan import plan
from comfyd.core.resolve import resolve
from comfyd.core.view import plan_view
from comfyd.environments.scan import read_config_files
from comfyd.environments.scripts import preview_folder, unified_diff
from comfyd.environments.tree import next_generation, observe
from comfyd.errors import ComfydError
from comfyd.host import clock
from comfyd.host.sockets import holders, listening
from comfyd.model.base import Now
from comfyd.model.desired import ConfigIssue, DesiredState
from comfyd.model.observed import ObservedState, PortHolder
from comfyd.model.paths import Paths
from comfyd.model.process import ResolvedState
from comfyd.model.sources import MachineFacts, ParseResult
from comfyd.model.view import PlanView
from comfyd.settings import Settings
from comfyd.wiring import paths_from, variables_from

OFFLINE_NOTES = (
    "no daemon is running: planned as if nothing runs",
    "overrides stored by an earlier daemon are not looked at",
    "`gpus` is not compared with the GPUs of this machine",
)


@dataclass(frozen=True, slots=True)
class OfflinePlan:
    """notes: what this plan could not take into account, one sentence each."""

    view: PlanView
    issues: tuple[ConfigIssue, ...]
    notes: tuple[str, ...] = OFFLINE_NOTES


@dataclass(frozen=True, slots=True)
class RewritePreview:
    """A unified diff of build scripts, and what no rewrite can put right."""

    target: str
    diff: str
    problems: tuple[str, ...]


def validate(settings: Settings, candidate: Path | None = None) -> ParseResult:
    """Parse all files as the daemon would; `candidate` stands in for instances.json.

    Arguments are compared with what the --help of an installed environment lists, too.
    """
    paths = _paths(settings, candidate)
    files = read_config_files(paths)
    flags = {one.name: observe(paths, one.name, skip_models=True).flags for one in files.environments}
    return parse(files, variables_from(settings), None, flags)


def plan_offline(settings: Settings, candidate: Path | None = None) -> OfflinePlan:
    """What a daemon started now would do first. Raises ComfydError invalid_config with every issue in its details."""
    result = validate(settings, candidate)
    if result.desired is None:
        texts = [issue.text() for issue in result.issues]
        raise ComfydError(
            "\n".join(texts) or "there is nothing to plan", code="invalid_config", details={"issues": texts}
        )
    now = Now(clock.mono(), clock.wall())
    wished, observed = look(settings, result.desired, now)
    return OfflinePlan(plan_view(plan(wished, observed, now), now), result.issues)


def look(settings: Settings, desired: DesiredState, now: Now) -> tuple[ResolvedState, ObservedState]:
    """What is wished without overrides, and what of it stands on disk and on ports; as if no process ran."""
    paths = paths_from(settings)
    facts = MachineFacts(paths=paths, container=clock.container_id())
    wished = resolve(desired, (), variables_from(settings), facts, now)
    return wished, _observe(paths, desired, wished, skip_models=settings.skip_model_download)


def rewrite_preview(settings: Settings, environment: str) -> RewritePreview:
    """What an install would change in the copy of build/<environment>."""
    paths = paths_from(settings)
    folders = {f.name for f in paths.build_dir.iterdir() if f.is_dir()} if paths.build_dir.is_dir() else set()
    if environment not in folders:
        known = ", ".join(sorted(folders)) or "none"
        message = f"there is no build folder {paths.build_dir / environment}; known: {known}"
        raise ComfydError(message, code="unknown_environment", details={"known": sorted(folders)})
    tree = paths.generation(environment, next_generation(paths, environment))
    changed, problems = preview_folder(paths.build_dir / environment, tree)
    return RewritePreview(str(tree), unified_diff(changed), tuple(problems))


def _paths(settings: Settings, candidate: Path | None) -> Paths:
    paths = paths_from(settings)
    return paths if candidate is None else replace(paths, instances_file=candidate.absolute())


def _observe(paths: Paths, desired: DesiredState, wished: ResolvedState, *, skip_models: bool) -> ObservedState:
    ports = [wish.spec.port for wish in wished.processes if wish.spec.port is not None]
    return ObservedState(
        environments=tuple(observe(paths, e.name, skip_models=skip_models) for e in desired.environments),
        ports=tuple(PortHolder(port=h.port, pid=h.pid, name=h.name) for h in holders(ports, listening())),
    )
