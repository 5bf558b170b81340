"""One instance or sidecar -> the ProcessSpec that control runs, and the fingerprint of what needs a restart.

Owns: command lines, variables, folders, log and pid names, probe defaults. Must not: decide what runs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comfyd.core.config_args import Arguments
from comfyd.core.config_environments import is_service
from comfyd.model.desired import EnvironmentSpec, GlobalSettings, InstanceSpec, ProbeSpec, SidecarSpec, digest
from comfyd.model.process import OptionalArgument, ProcessSpec
from comfyd.model.sources import MachineFacts, Variables

_PLACEHOLDER = re.compile(r"\{(port|id|env_dir|root)\}")
_DEFAULT_LOGS = GlobalSettings().log_directory


@dataclass(frozen=True, slots=True)
class Setting:
    """What all processes of one resolve() share. extra: EXTRA_ARGS, split and checked.

    first_of: environment -> lowest instance id, whose log is named after a service environment.
    in_file: environment -> how many instances of instances.json it has.
    """

    settings: GlobalSettings
    variables: Variables
    facts: MachineFacts
    extra: Arguments
    first_of: Mapping[str, int]
    in_file: Mapping[str, int]
    _folders: dict[str, str] = field(default_factory=dict)
    """What path arithmetic has given: the results are few, their users as many as instances."""

    @property
    def shared_args(self) -> tuple[str, ...]:
        return (*self.settings.default_extra_args, *self.extra.args)

    def link(self, environment: str) -> str:
        return self._folder(f"link {environment}", lambda: self.facts.paths.environment_link(environment))

    def data(self, environment: str) -> str:
        return self._folder(f"data {environment}", lambda: self.facts.paths.environment_data(environment))

    def instance_data(self, environment: str, number: int) -> str:
        parent = self._folder(f"of {environment}", lambda: self.facts.paths.instance_data(environment, 0).parent)
        return f"{parent}/{number}"

    def log(self, stem: str) -> str:
        return self._in(self.settings.log_directory, f"{stem}.log")

    def pid_file(self, stem: str) -> str:
        return self._in(self.settings.pid_directory, f"{stem}.pid")

    def _in(self, directory: str, name: str) -> str:
        paths = self.facts.paths
        default = directory.rstrip("/") == _DEFAULT_LOGS
        folder = self._folder(f"in {directory}", lambda: paths.log_dir if default else paths.inside(directory))
        return f"{folder.rstrip('/')}/{name}"

    def _folder(self, name: str, path: Callable[[], Path]) -> str:
        if name not in self._folders:
            self._folders[name] = str(path())
        return self._folders[name]


def instance_process(
    spec: InstanceSpec, environment: EnvironmentSpec | None, setting: Setting, output: str
) -> ProcessSpec:
    """output: sub-folder of the environment's output folder ("" = the folder itself)."""
    link = setting.link(spec.environment)
    data = setting.instance_data(spec.environment, spec.id)
    results = f"{setting.data(spec.environment)}/output" + (f"/{output}" if output else "")
    service = environment if environment is not None and is_service(environment) else None
    stem = f"comfyui_instance_{spec.id}"
    if service is not None:
        stem = (
            spec.environment if setting.first_of.get(spec.environment) == spec.id else f"{spec.environment}_{spec.id}"
        )
    listen = listen_address(spec, setting)
    common = ProcessSpec(
        key=spec.key,
        argv=(),
        cwd=link,
        env=_instance_env(spec, setting, data),
        pin=link,
        dirs=(data, results),
        port=spec.port,
        listen=listen,
        probe=_probe(spec, environment, setting.variables),
        stop_grace_s=spec.stop_grace_s if _given(spec, "stop_grace_s") else setting.variables.stop_grace_s,
        log=setting.log(stem),
        pid_file=setting.pid_file(stem),
    )
    if service is not None:
        address = {"HOST": listen.partition(",")[0], "PORT": str(spec.port)}
        argv = (*_service_argv(service, spec, setting), *spec.extra_args)
        return common.model_copy(update={"argv": argv, "stop_signal": "SIGTERM", "env": address | common.env})
    own = ("--listen", listen, "--port", str(spec.port), "--output-directory", results, "--temp-directory", data)
    return common.model_copy(
        update={
            "argv": (f"{link}/venv/bin/python", "main.py", *own),
            "optional_argv": (OptionalArgument(flag="--database-url", value=f"sqlite:///{data}/comfyui.db"),),
            "trailing_argv": (*setting.shared_args, *spec.extra_args),
        }
    )


def listen_address(spec: InstanceSpec, setting: Setting) -> str:
    """parse() has put what the file's arguments say into the field; an override's instance still needs EXTRA_ARGS."""
    return spec.listen or setting.extra.listen or setting.variables.instance_listen


def _given(spec: InstanceSpec | ProbeSpec, name: str) -> bool:
    return name in spec.model_fields_set


def _instance_env(spec: InstanceSpec, setting: Setting, data: str) -> dict[str, str | None]:
    """ComfyUI-Manager restarts by exiting instead of exec where __COMFY_CLI_SESSION__ is set."""
    env: dict[str, str | None] = {"PYTHONUNBUFFERED": "1", "__COMFY_CLI_SESSION__": f"{data}/session"}
    if spec.gpus is not None:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = "" if spec.gpus == "none" else ",".join(str(g) for g in spec.gpus)
    if setting.facts.tcmalloc:
        env["LD_PRELOAD"] = setting.facts.tcmalloc
    return env | spec.env


def _probe(spec: InstanceSpec, environment: EnvironmentSpec | None, variables: Variables) -> ProbeSpec:
    """The instance's, else its environment's, else http for ComfyUI and tcp for other services."""
    if _given(spec, "probe"):
        probe = spec.probe
    elif environment is not None and environment.probe is not None:
        probe = environment.probe
    else:
        probe = ProbeSpec(type="tcp" if environment is not None and is_service(environment) else "http")
    return _with_deadline(probe, variables)


def _with_deadline(probe: ProbeSpec, variables: Variables) -> ProbeSpec:
    if _given(probe, "startup_deadline_s"):
        return probe
    return probe.model_copy(update={"startup_deadline_s": variables.startup_deadline_s})


def _service_argv(service: EnvironmentSpec, spec: InstanceSpec, setting: Setting) -> tuple[str, ...]:
    """The command, or the startup script run as a file; a relative program lies in the environment's folder."""
    paths = setting.facts.paths
    folder = setting.link(service.name)
    words = service.command or ((service.startup_script,) if service.startup_script else ())
    values = {"port": str(spec.port), "id": str(spec.id), "env_dir": folder, "root": str(paths.root)}
    filled = fill(words, values)
    if not filled:
        return ()
    script = bool(service.startup_script) and not service.command
    return (_program(filled[0], folder, setting, script=script), *filled[1:])


def _program(word: str, folder: str, setting: Setting, *, script: bool = False) -> str:
    if word.startswith("/"):
        return str(setting.facts.paths.inside(word))
    return f"{folder}/{word}" if "/" in word or script else word


def fill(words: tuple[str, ...], values: Mapping[str, str]) -> tuple[str, ...]:
    """`{name}` of `values` in each word; other braces stay. One word stays one argument."""
    return tuple(_PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), w) if "{" in w else w for w in words)


def sidecar_process(spec: SidecarSpec, setting: Setting) -> ProcessSpec:
    root = str(setting.facts.paths.root)
    values = {"root": root} | ({"port": str(spec.port)} if spec.port is not None else {})
    words = fill(spec.command, values)
    probe = spec.probe or ProbeSpec(type="none" if spec.port is None else "tcp")
    stem = f"sidecar_{spec.name}"
    return ProcessSpec(
        key=spec.key,
        argv=(_program(words[0], root, setting), *words[1:]),
        cwd=root,
        env=dict(spec.env),
        port=spec.port,
        probe=_with_deadline(probe, setting.variables),
        stop_signal="SIGTERM",
        stop_grace_s=setting.variables.stop_grace_s,
        log=setting.log(stem),
        pid_file=setting.pid_file(stem),
    )


def instance_fingerprint(
    spec: InstanceSpec, environment: EnvironmentSpec | None, setting: Setting, token: str | None
) -> str:
    """Changes exactly when the process has to be restarted. Knows no paths, folders or facts of the machine."""
    command: tuple[str | None, ...] = ()
    shared: tuple[str, ...] = setting.shared_args
    if environment is not None and is_service(environment):
        command, shared = (*(environment.command or ()), environment.startup_script), ()
    listen = listen_address(spec, setting)
    args = [*shared, *spec.extra_args]
    return digest([spec.environment, spec.port, listen, args, spec.env, spec.gpus, command, token])


def sidecar_fingerprint(spec: SidecarSpec, token: str | None) -> str:
    return digest([spec.command, spec.port, spec.env, token])
