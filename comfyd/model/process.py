"""What control runs, and the resolved wish for every process and environment.

Keys are strings (`comfyui/0`, `facefusion`, `sidecar/jupyter`): control knows nothing of ComfyUI.
"""

from typing import Literal

from pydantic import Field

from comfyd.model.base import Condition, Frozen
from comfyd.model.desired import EnvironmentSpec, InstanceSpec, ProbeSpec


class OptionalArgument(Frozen):
    """Appended to argv only where the environment's own `--help` lists `flag`."""

    flag: str
    value: str


class ProcessSpec(Frozen):
    """One process, ready to be spawned once `pin` is resolved.

    argv: full command line, no shell. cwd: working folder. env: only what is added to or (value None) removed from
    the scrubbed environment of the daemon. pin: a symlink (environment link); argv and cwd below it are rewritten
    to its target at spawn, so that a later flip never moves a running process. dirs: folders made before the start.
    log, pid_file: absolute paths. stop_signal: name of the first signal of the stop order.
    """

    key: str
    argv: tuple[str, ...]
    optional_argv: tuple[OptionalArgument, ...] = ()
    trailing_argv: tuple[str, ...] = ()
    cwd: str
    env: dict[str, str | None] = Field(default_factory=dict)
    pin: str | None = None
    dirs: tuple[str, ...] = ()
    port: int | None = None
    listen: str = "127.0.0.1"
    probe: ProbeSpec = ProbeSpec()
    stop_signal: Literal["SIGINT", "SIGTERM"] = "SIGINT"
    stop_grace_s: float = 15.0
    log: str
    pid_file: str | None = None

    def command(self, flags: frozenset[str]) -> tuple[str, ...]:
        """argv with the optional arguments that `flags` (of the environment's --help) allow."""
        given: list[str] = []
        for option in self.optional_argv:
            if option.flag in flags:
                given += [option.flag, option.value]
        return (*self.argv, *given, *self.trailing_argv)


class DesiredProcess(Frozen):
    """What one key should be: plan() compares this with ObservedProcess.

    fingerprint: only what needs a restart (restart tokens mixed in). run: should it live now; `why_not` says why it
    should not (`disabled`, `stopped_by_override`, `autolaunch_off`, ...). held: a condition that forbids a start
    whatever the observations say (`override_conflict`, `environment_unknown`, ...); a running process is left alone.
    gpus: () = none, None = all visible, else indices or UUIDs. output: sub-folder of the environment's output folder
    for this instance ("" = the folder itself), recorded at its first start.
    """

    key: str
    spec: ProcessSpec
    fingerprint: str
    run: bool
    why_not: Condition | None = None
    held: Condition | None = None
    environment: str | None = None
    restart_policy: Literal["always", "on_failure", "never"] = "always"
    gpus: tuple[int | str, ...] | None = None
    gpu_exclusive: bool = False
    drain_timeout_s: float = 600.0
    instance: InstanceSpec | None = None
    origin: Literal["file", "override", "services"] = "file"
    overridden: tuple[str, ...] = ()
    output: str = ""


class DesiredEnvironment(Frozen):
    """An environment as it should be installed. fingerprint mixes the install override's token in."""

    name: str
    spec: EnvironmentSpec
    fingerprint: str
    wanted: bool = False


class ResolvedState(Frozen):
    """Files, variables and overrides folded into one wish; the input of plan() and describe().

    processes and environments are sorted by key; wake_at: wall seconds of the next override expiry.
    """

    processes: tuple[DesiredProcess, ...] = ()
    environments: tuple[DesiredEnvironment, ...] = ()
    startup_delay: float = 0.0
    wake_at: float | None = None

    def process(self, key: str) -> DesiredProcess | None:
        return next((p for p in self.processes if p.key == key), None)

    def environment(self, name: str) -> DesiredEnvironment | None:
        return next((e for e in self.environments if e.name == name), None)
