"""From settings to what the rooms below take: paths and variables. Pure; read by both composition roots.

Owns: which setting becomes which field. Must not: read files or the environment.
"""

from comfyd.model.paths import Paths
from comfyd.model.sources import Variables
from comfyd.settings import Settings

_PATH_FIELDS = (
    "instances_file", "services_file", "environments_dir", "build_dir", "baked_tree",
    "workspace", "models_dir", "data_dir", "log_dir", "state_dir",
)  # fmt: skip


def paths_from(settings: Settings) -> Paths:
    """The layout under `settings.root`; a path set by itself is taken from the working folder if it is relative."""
    given = {name: getattr(settings, name) for name in _PATH_FIELDS}
    return Paths.under(settings.root, **{name: path and path.absolute() for name, path in given.items()})


def variables_from(settings: Settings) -> Variables:
    """The settings that the meaning of the files depends on."""
    return Variables(
        environment=settings.environment,
        base_port=settings.base_port,
        disable_autolaunch=settings.disable_autolaunch,
        multi_instance=settings.multi_instance,
        instances=settings.legacy_instances,
        extra_args=settings.extra_args,
        api_port=settings.port,
        instance_listen=settings.instance_listen,
        startup_deadline_s=settings.startup_deadline_s,
        stop_grace_s=settings.stop_grace_s,
        drain_timeout_s=settings.drain_timeout_s,
        strict=settings.strict,
    )
