"""The status of the moment from the live cells, and how a name in a path finds its instance.

Owns: nothing; core.view decides what is shown.
"""

from comfyd import __version__
from comfyd.api.context import ApiContext
from comfyd.core.resolve import autolaunch
from comfyd.core.view import ViewInput, describe, instance_view
from comfyd.errors import ComfydError
from comfyd.model.process import DesiredProcess
from comfyd.model.view import EnvironmentView, InstanceView, StatusView
from comfyd.wiring import variables_from

SHOWN_NAMES = 50


def launches_by_itself(context: ApiContext) -> bool:
    """Whether enabled instances of the file run without being asked for (DISABLE_AUTOLAUNCH and friends)."""
    return autolaunch(context.live.config.get().desired, variables_from(context.settings))


def _input(context: ApiContext) -> ViewInput:
    live, config = context.live, context.live.config.get()
    return ViewInput(
        resolved=live.resolved.get(),
        observed=live.observed.get(),
        plan=live.plan.get(),
        now=context.clock(),
        version=__version__,
        evidence=live.evidence.get(),
        overrides=live.overrides.get(),
        issues=config.issues,
        config_state=config.state,
        config_path=config.path,
        revision=config.revision,
        seen_revision=config.seen_revision,
        loaded_at=config.loaded_at,
        autolaunch=launches_by_itself(context),
        source=config.files.instances if config.files else None,
        sha256=config.sha256,
        polling=live.polling.get(),
        gpus=context.gpus.views,
        gpu_problem=context.gpus.problem,
        gpu_memory=context.gpus.memory,
        paused=context.paused,
        durability=live.queue_durability.get() or None,
    )


def status_view(context: ApiContext) -> StatusView:
    """Everything at this moment, as core.view shows it."""
    return describe(_input(context))


def find_instance(context: ApiContext, ref: str) -> InstanceView:
    """The instance called `ref`: id first, then name, then key. Raises unknown_instance that names the known ones.

    Only that one is described: with hundreds of them the whole status costs more than what is asked for it.
    """
    processes = context.live.resolved.get().processes
    instances = [(wish.instance, wish) for wish in processes if wish.instance is not None]
    for attribute in ("id", "name"):
        named = [(spec.id, wish) for spec, wish in instances if str(getattr(spec, attribute)) == ref]
        if named:
            return _one(context, min(named, key=lambda one: one[0])[1])
    by_key = next((wish for wish in processes if wish.key == ref), None)
    return _one(context, by_key) if by_key is not None else _find_otherwise(status_view(context), ref)


def current_instance(context: ApiContext, key: str) -> InstanceView | None:
    """The instance of that key as it is now."""
    wish = context.live.resolved.get().process(key)
    if wish is not None:
        return _one(context, wish)
    return next((one for one in status_view(context).instances if one.key == key), None)


def _one(context: ApiContext, wish: DesiredProcess) -> InstanceView:
    return instance_view(_input(context), wish, context.live.observed.get().process(wish.key))


def _find_otherwise(status: StatusView, ref: str) -> InstanceView:
    """Services by their short name, and runs that nobody declares any more."""
    for attribute in ("id", "name", "key"):
        for one in status.instances:
            value = getattr(one, attribute)
            if value is not None and str(value) == ref:
                return one
    known = [f"{one.id} ({one.name})" if one.id is not None else one.key for one in status.instances][:SHOWN_NAMES]
    raise ComfydError(
        f"there is no instance {ref[:100]!r}; there are: {', '.join(known) or 'none'}",
        code="unknown_instance",
        details={"known": known},
    )


def find_environment(status: StatusView, name: str) -> EnvironmentView:
    """Raises unknown_environment that names the known ones."""
    found = next((one for one in status.environments if one.name == name), None)
    if found is None:
        known = [one.name for one in status.environments][:SHOWN_NAMES]
        raise ComfydError(
            f"there is no environment {name[:100]!r}; there are: {', '.join(known) or 'none'}",
            code="unknown_environment",
            details={"known": known},
        )
    return found
