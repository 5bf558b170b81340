"""What people and programs are shown: the JSON of status, CLI, events and metrics. Made only by core/view.py.

Instants are RFC 3339 UTC with milliseconds. Keys of spec section 2 marked as fixed may gain neighbours, never go.
"""

from typing import Any

from pydantic import Field

from comfyd.model.base import Frozen


class ConditionView(Frozen):
    type: str
    reason: str
    message: str
    hint: str = ""
    since: str | None = None


class ExitView(Frozen):
    """How the last run ended; `text` is one phrase for people, `reason` a stable name, where it is known."""

    code: int | None = None
    signal: str | None = None
    oom: bool = False
    reason: str = ""
    asked: bool = False
    at: str
    text: str
    last_lines: tuple[str, ...] = ()


class InstanceView(Frozen):
    """One process. `id` is None for services that are not ComfyUI instances; `key` always names it.

    state: stopped starting ready unready draining stopping waiting_env blocked backoff failed conflict held.
    """

    id: int | None = None
    key: str
    name: str
    description: str = ""
    environment: str | None = None
    port: int | None = None
    state: str
    ready: bool = False
    desired: str = "up"
    pid: int | None = None
    since: str | None = None
    restarts: int = 0
    gpus: list[int | str] | str | None = None
    conditions: tuple[ConditionView, ...] = ()
    override: dict[str, Any] | None = None
    origin: str = "file"
    generation: str | None = None
    adopted: bool = False
    identity: str = "strong"
    in_flight: int = 0
    gpu_memory: int | None = None
    last_exit: ExitView | None = None
    log: str | None = None


class GpuView(Frozen):
    """One GPU as NVML sees it; index in PCI order. memory_*: bytes; utilisation: percent; temperature: degrees C."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    utilisation: int | None = None
    temperature: int | None = None


class InstallStepView(Frozen):
    name: str
    state: str
    started_at: str | None = None
    finished_at: str | None = None
    message: str = ""


class InstallView(Frozen):
    """The latest install of an environment. progress: 0..1 or None if unknown. log: path of its log file.

    last_lines: what the script that failed printed last; gone once an install has succeeded.
    """

    environment: str
    state: str
    generation: int | None = None
    step: str | None = None
    progress: float | None = None
    steps: tuple[InstallStepView, ...] = ()
    failures: int = 0
    conditions: tuple[ConditionView, ...] = ()
    log: str = ""
    last_lines: tuple[str, ...] = ()


class EnvironmentView(Frozen):
    """One environment with its config (tokens masked) and what is installed."""

    name: str
    description: str = ""
    port: int | None = None
    workflows: tuple[str, ...] = ()
    nodes: tuple[dict[str, Any], ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    installed: bool = False
    state: str = "absent"
    generation: int | None = None
    resolved_nodes: dict[str, str] = Field(default_factory=dict)
    conditions: tuple[ConditionView, ...] = ()
    install: InstallView


class ConfigIssueView(Frozen):
    severity: str
    code: str
    message: str
    file: str
    path: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""


class ConfigStateView(Frozen):
    """state: ok | stale (newest revision refused, last good one runs) | missing | empty.

    inode, sha256, mounted (a mount of its own): of the file as last read; polling: nothing tells of edits, so files
    are only compared every COMFYD_POLL_S.
    """

    state: str
    path: str
    revision: str = ""
    seen_revision: str = ""
    loaded_at: str | None = None
    issues: tuple[ConfigIssueView, ...] = ()
    autolaunch: bool = True
    inode: int | None = None
    sha256: str = ""
    mounted: bool = False
    polling: bool = False


class PlannedAction(Frozen):
    """action: install | start | stop."""

    action: str
    key: str
    reason: str


class PlanView(Frozen):
    """What the next reconcile would do and why the rest waits. warnings: what is doubtful though nothing waits."""

    actions: tuple[PlannedAction, ...] = ()
    holds: dict[str, ConditionView] = Field(default_factory=dict)
    warnings: dict[str, tuple[ConditionView, ...]] = Field(default_factory=dict)
    wake_in_s: float | None = None


class PauseView(Frozen):
    """No task of `environment` (None: of the whole queue) is handed out."""

    environment: str | None
    since: str | None
    by: str


class StatusView(Frozen):
    """`GET /api/comfyui/status`. `output` is the readable text of the same facts.

    unrecorded: pids that carry this daemon's tag but stand in no record, as of its start; they are left alone.
    paused: of the queue. durability, of a shared queue: "sync" where the database has a synchronous standby, else
    "async": what it has acknowledged it may forget in a failover.
    """

    status: str = "success"
    output: str
    instances: tuple[InstanceView, ...]
    environments: tuple[EnvironmentView, ...]
    config: ConfigStateView
    plan: PlanView
    gpus: tuple[GpuView, ...] = ()
    gpu_problem: str | None = None
    unrecorded: tuple[int, ...] = ()
    paused: tuple[PauseView, ...] = ()
    durability: str | None = None
    version: str
    time: str
