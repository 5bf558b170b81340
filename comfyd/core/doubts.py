"""What is doubtful about an instance though nothing is held for it: its arguments, the generation that it runs.

Pure; part of plan(), so that whoever shows a plan shows these too.
"""

from collections.abc import Iterable

from comfyd.core.lint import argument_warnings
from comfyd.model.base import Condition
from comfyd.model.observed import ObservedEnvironment, ObservedProcess, ObservedState
from comfyd.model.process import DesiredProcess, ResolvedState


def doubts(desired: ResolvedState, observed: ObservedState) -> dict[str, tuple[Condition, ...]]:
    """Key -> warnings, for every process that has any."""
    environments = {one.name: one for one in observed.environments}
    runs = observed.by_key()
    found = {
        wish.key: tuple(_of(wish, environments.get(wish.environment or ""), runs.get(wish.key)))
        for wish in desired.processes
    }
    return {key: warnings for key, warnings in sorted(found.items()) if warnings}


def _of(
    wish: DesiredProcess, environment: ObservedEnvironment | None, seen: ObservedProcess | None
) -> Iterable[Condition]:
    if wish.spec.trailing_argv:
        known = environment.flags if environment is not None and environment.installed else frozenset()
        yield from argument_warnings(wish.spec.trailing_argv, wish.environment or "", known)
    if environment is None or seen is None or not seen.alive or not seen.tree:
        return
    if environment.tree and seen.tree != environment.tree:
        message = f"runs generation {seen.tree.rpartition('.')[2]}, generation {environment.generation} is installed"
        hint = f"`comfyd restart {wish.key.rpartition('/')[2]}` when it suits"
        yield Condition("restart_required", "new_generation", message, hint)
