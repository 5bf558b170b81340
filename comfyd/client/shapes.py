"""What the daemon answers, as far as programs rely on it. Every shape may gain keys; these stay."""

from typing import Any, TypedDict


class Condition(TypedDict, total=False):
    type: str
    reason: str
    message: str
    hint: str
    since: str | None


class Instance(TypedDict, total=False):
    """One process. `id` is None for services that are not ComfyUI instances."""

    id: int | None
    key: str
    name: str
    environment: str | None
    port: int | None
    state: str
    ready: bool
    desired: str
    pid: int | None
    since: str | None
    restarts: int
    conditions: list[Condition]
    override: dict[str, Any] | None


class Install(TypedDict, total=False):
    """progress: 0..1 or None. steps: name, state, message."""

    environment: str
    state: str
    generation: int | None
    step: str | None
    progress: float | None
    steps: list[dict[str, Any]]
    conditions: list[Condition]
    log: str
    last_lines: list[str]


class Environment(TypedDict, total=False):
    name: str
    description: str
    port: int | None
    workflows: list[str]
    installed: bool
    state: str
    generation: int | None
    conditions: list[Condition]
    install: Install


class Config(TypedDict, total=False):
    """state: ok | stale | missing | empty."""

    state: str
    path: str
    issues: list[dict[str, Any]]


class PlannedAction(TypedDict):
    action: str
    key: str
    reason: str


class Plan(TypedDict, total=False):
    actions: list[PlannedAction]
    holds: dict[str, Condition]
    wake_in_s: float | None


class Pause(TypedDict, total=False):
    """No task of `environment` (None: of the whole queue) is handed out."""

    environment: str | None
    since: str | None
    by: str


class Status(TypedDict, total=False):
    status: str
    output: str
    instances: list[Instance]
    environments: list[Environment]
    config: Config
    plan: Plan
    paused: list[Pause]
    version: str
    time: str


class InstanceAnswer(TypedDict, total=False):
    """Answer of start, stop and restart of one instance."""

    status: str
    message: str
    output: str
    instance: Instance


class StartResult(TypedDict, total=False):
    """status: started | installing | failed | timeout | error."""

    instance_id: int
    name: str
    port: int
    status: str
    output: str
    error: str


class StartAnswer(TypedDict, total=False):
    status: str
    environment: str
    results: list[StartResult]
    total_instances: int
    started_instances: int
    message: str


class StopAnswer(TypedDict, total=False):
    status: str
    message: str
    output: str
    results: list[dict[str, Any]]


class Task(TypedDict, total=False):
    taskId: str
    workflow_name: str
    environment: str
    target_port: int | None
    status: str
    params: dict[str, Any]
    priority: str
    user_id: str | None
    attempts: int
    max_attempts: int
    infra_losses: int
    crashes: int
    created_at: str | None
    run_after: str | None
    deadline: str | None
    started_at: str | None
    finished_at: str | None
    task_message: str | None
    output_data: dict[str, Any] | None
    progress: dict[str, Any] | None
    instance: str | None


class TaskPage(TypedDict, total=False):
    tasks: list[Task]
    queue_length: int
    next_cursor: str | None


class CreatedTask(TypedDict, total=False):
    success: bool
    task: Task
    taskId: str
    message: str


class Event(TypedDict):
    """One server-sent event. id: what Last-Event-ID takes (empty if none). data: parsed JSON, else the text."""

    id: str
    event: str
    data: Any
