"""The status of the moment from the live cells, and how a name in a path finds its instance.

Owns: nothing; core.view decides what is shown.
"""

from comfyd import __version__
from comfyd.api.context import ApiContext
from comfyd.core.resolve import autolaunch
from comfyd.core.view import ViewInput, describe
from comfyd.errors import ComfydError
from comfyd.model.view import EnvironmentView, InstanceView, StatusView
from comfyd.wiring import variables_from

SHOWN_NAMES = 50


def launches_by_itself(context: ApiContext) -> bool:
    """Whether enabled instances of the file run without being asked for (DISABLE_AUTOLAUNCH and friends)."""
    return autolaunch(context.live.config.get().desired, variables_from(context.settings))


def status_view(context: ApiContext) -> StatusView:
    """Everything at this moment, as core.view shows it."""
    live, config = context.live, context.live.config.get()
    return describe(
        ViewInput(
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
        )
    )


def find_instance(status: StatusView, ref: str) -> InstanceView:
    """The instance called `ref`: id first, then name, then key. Raises unknown_instance that names the known ones."""
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
