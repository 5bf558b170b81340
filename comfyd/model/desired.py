"""What the files and the API ask for. Frozen; unknown keys refused; fingerprints hold only what needs a restart.

Owns: the fields of instances.json, config.json and services.json (spec section 1) and the overrides.
Must not: read files, know defaults that depend on the machine, or say what happens next (core does).
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from comfyd.model.base import Condition, Frozen

ENVIRONMENT_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
WORKFLOW_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

PROBE_PATH = r"^/[!-~]*$"

Port = Annotated[int, Field(ge=1, le=65535)]
InstanceId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def digest(value: Any) -> str:
    """A short stable hash of plain data (16 hex digits of sha256 over canonical JSON)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ProbeSpec(Frozen):
    """How readiness and liveness are asked. All durations in seconds.

    liveness_period_s times liveness_failures: how long an idle run may be silent; core/liveness.py has the rest.
    """

    type: Literal["http", "tcp", "none"] = "http"
    path: str = Field(default="/prompt", pattern=PROBE_PATH, max_length=1000)
    timeout_s: float = Field(default=3.0, gt=0, le=600)
    startup_deadline_s: float = Field(default=600.0, gt=0)
    period_s: float = Field(default=5.0, gt=0)
    failures: int = Field(default=3, ge=1)
    liveness_period_s: float = Field(default=10.0, gt=0)
    liveness_failures: int = Field(default=6, ge=1)


class RestartSpec(Frozen):
    """`on_failure` as in systemd: clean exit, SIGTERM or SIGINT from outside count as stopped by hand."""

    policy: Literal["always", "on_failure", "never"] = "always"


class InstanceSpec(Frozen):
    """One entry of instances.json. None = not given (the file's, then the machine's default holds)."""

    id: InstanceId
    port: Port
    name: str
    description: str = ""
    extra_args: tuple[str, ...] = ()
    enabled: bool = True
    environment: str = "comm"
    restart: RestartSpec = RestartSpec()
    gpu_exclusive: bool = False
    gpus: tuple[int | str, ...] | Literal["none"] | None = None
    env: dict[str, str] = Field(default_factory=dict)
    listen: str | None = None
    stop_grace_s: float = Field(default=15.0, ge=0, le=3600)
    drain_timeout_s: float = Field(default=600.0, ge=0, le=86400)
    probe: ProbeSpec = ProbeSpec()

    @property
    def key(self) -> str:
        return f"comfyui/{self.id}"


class NodeSpec(Frozen):
    """One custom node. `url` is what git clones; `ref` a branch, tag or commit (None = default branch)."""

    url: str
    ref: str | None = None
    requirements: bool = True

    @property
    def name(self) -> str:
        """The folder below custom_nodes: the last part of the URL without `.git`."""
        return self.url.rstrip("/").removesuffix(".git").replace(":", "/").rsplit("/", 1)[-1]


class DownloadParams(Frozen):
    """`download_params` of a model; unknown keys are kept out by Frozen."""

    retries: int | None = Field(default=None, ge=0)
    retry_delay: float | None = Field(default=None, ge=0)
    timeout: float | None = Field(default=None, gt=0)
    connect_timeout: float | None = Field(default=None, gt=0)
    max_filesize: str | int | None = None
    speed_limit: str | int | None = None
    repo_type: Literal["model", "dataset", "space"] | None = None


class ModelSpec(Frozen):
    """One model file. `type` is the sub-folder of shared-models."""

    url: str
    type: str = "checkpoints"
    filename: str | None = None
    path: str | None = None
    source: Literal["auto", "huggingface", "huggingface-cli", "civitai", "http", "curl"] = "auto"
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    size: int | None = Field(default=None, ge=0)
    revision: str | None = None
    download_params: DownloadParams = DownloadParams()
    token_env: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    unpack: bool = False
    allow_pickle: bool | None = None


class EnvironmentSpec(Frozen):
    """One folder below config/environments together with its build folder.

    build_hash: content hash of build/<name> (None: no such folder); has_install: it holds install.sh.
    fix_hash: content hash of fix_dependencies.sh (None: no such file).
    max_running, workflow_limits: of tasks that are leased at once, by all nodes together.
    issue: set when config.json is broken and no good version of it is known; its instances are held.
    """

    name: str
    description: str = ""
    port: Port | None = None
    workflows: tuple[str, ...] = ()
    nodes: tuple[NodeSpec, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    dispatch: Literal["on", "external"] = "on"
    max_running: int | None = Field(default=None, ge=1)
    workflow_limits: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    service_type: str | None = None
    startup_script: str | None = None
    command: tuple[str, ...] | None = None
    python_environment: str | None = None
    conda_env: str | None = None
    requirements: tuple[str, ...] = ()
    probe: ProbeSpec | None = None
    mode: Literal["link", "extra_model_paths"] = "link"
    build_hash: str | None = None
    has_install: bool = False
    fix_hash: str | None = None
    stored_workflows: tuple[str, ...] = ()
    issue: Condition | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when a new generation has to be built (models only need a download)."""
        nodes = [n.model_dump(mode="json") for n in self.nodes]
        return digest([self.build_hash, self.fix_hash, nodes, self.requirements])

    @property
    def models_fingerprint(self) -> str:
        return digest([m.model_dump(mode="json") for m in self.models])


class SidecarSpec(Frozen):
    """One entry of config/services.json: a process without environment or queue."""

    name: str
    command: tuple[str, ...]
    port: Port | None = None
    env: dict[str, str] = Field(default_factory=dict)
    enabled: bool = True
    probe: ProbeSpec | None = None

    @property
    def key(self) -> str:
        return f"sidecar/{self.name}"


class GlobalSettings(Frozen):
    """`global_settings` of instances.json. Paths as written; Paths.inside maps them under the root."""

    log_directory: str = "/workspace/logs"
    pid_directory: str = "/workspace/logs"
    default_extra_args: tuple[str, ...] = ()
    startup_delay: float = Field(default=0.0, ge=0, le=3600)


class DesiredState(Frozen):
    """One accepted revision of all files. `stock`: instances.json is the image's unchanged example.

    default_environment: what instances.json says for entries that name none (None: it says nothing).
    """

    instances: tuple[InstanceSpec, ...] = ()
    environments: tuple[EnvironmentSpec, ...] = ()
    services: tuple[SidecarSpec, ...] = ()
    settings: GlobalSettings = GlobalSettings()
    default_environment: str | None = None
    stock: bool = False

    def environment(self, name: str) -> EnvironmentSpec | None:
        return next((e for e in self.environments if e.name == name), None)


class ConfigIssue(Frozen):
    """One thing wrong in a file. path: JSON pointer inside it; line and column count from 1 (0 = whole file).

    severity: `error` refuses the whole revision; `blocked` is accepted but something named in it cannot run;
    `warning` changes nothing.
    """

    severity: Literal["error", "blocked", "warning"]
    code: str
    message: str
    file: str
    path: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    def text(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        at = f" {self.path}:" if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}: {self.severity}:{at} {self.message}{hint}"


class Want(StrEnum):
    UP = "up"
    DOWN = "down"


class Override(Frozen):
    """A wish made through the API, layered over the files. One row per (kind, key).

    kind `run`: key is a process key, `want` up or down. kind `spec`: key `comfyui/<id>`, `fields` are the given
    fields of an instances.json entry (all of them for an id that no file declares). kind `restart`: `token` is mixed
    into the fingerprint. kind `install`: key is an environment name, `token` asks for a fresh install.
    scope: container identity it is valid in (None = everywhere), see spec DISABLE_AUTOLAUNCH.
    created_at, expires_at: wall seconds. by: who asked (`api`, `cli`, an address).
    """

    kind: Literal["run", "spec", "restart", "install"]
    key: str
    want: Want | None = None
    fields: dict[str, Any] = Field(default_factory=dict)
    token: str | None = None
    scope: str | None = None
    created_at: float
    expires_at: float | None = None
    by: str = "api"
