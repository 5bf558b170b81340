"""All checks in order; one that fails is a finding itself and costs only its own lines."""

from collections.abc import Callable, Iterable

from comfyd.client import Client
from comfyd.doctor import installed, instances, machine, service
from comfyd.doctor.scene import Scene, look
from comfyd.model.finding import Diagnosis, Finding
from comfyd.settings import Settings

Check = Callable[[Scene], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "version": service.version,
    "config": service.config,
    "daemon": service.daemon,
    "instance": instances.instances,
    "queue": service.queue,
    "process": instances.processes,
    "port": instances.ports,
    "environment": installed.environments,
    "venv": installed.venvs,
    "models": installed.models,
    "disk": machine.disks,
    "state": machine.state,
    "logs": machine.logs,
    "gpu": machine.gpus,
    "memory": instances.memory,
    "limits": machine.limits,
    "sqlite": service.sqlite,
}
"""Name of the findings -> what makes them. The names are part of the contract (docs/operations.md)."""


def examine(settings: Settings, client: Client) -> tuple[Diagnosis, Scene]:
    """Every check once. Takes a few seconds where environments are installed."""
    scene = look(settings, client)
    findings = [finding for name, check in CHECKS.items() for finding in _made(name, check, scene)]
    return Diagnosis(source="daemon" if scene.asked else "offline", findings=tuple(findings)), scene


def _made(name: str, check: Check, scene: Scene) -> Iterable[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check(scene))
    except Exception as error:
        message = f"this check could not be made: {type(error).__name__}: {error}"
        hint = "permissions? run it as the user of the daemon; else it is a fault of comfyd: please report it"
        found.append(Finding(name=name, level="error", message=message, hint=hint))
    return found
