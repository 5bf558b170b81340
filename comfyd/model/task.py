"""One request to run a workflow, its leases and its outcome. Times: wall milliseconds since the epoch."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from comfyd.model.base import Frozen


class TaskState(StrEnum):
    PENDING = "PENDING"
    FETCHED = "FETCHED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.FETCHED, TaskState.PROCESSING, TaskState.CANCELLED, TaskState.FAILED}),
    TaskState.FETCHED: frozenset(
        {TaskState.FETCHED, TaskState.PROCESSING, TaskState.PENDING, *TERMINAL},
    ),
    TaskState.PROCESSING: frozenset({TaskState.PROCESSING, TaskState.PENDING, *TERMINAL}),
    TaskState.COMPLETED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}
"""Legal moves. Terminal states never change (a retry by hand makes FAILED or CANCELLED pending by its own verb)."""


class NewTask(Frozen):
    """What create asks for. params: `{"input_data": {"wf_json": {...}}}`. rank_cost: from core.rank.

    run_after: not claimed before. deadline: fails if it is still, or again, queued then; one that runs goes on.
    """

    workflow_name: str
    environment: str
    params: dict[str, Any]
    priority: str = "normal"
    rank_cost: int = 0
    user_id: str | None = None
    max_attempts: int = Field(default=3, ge=1, le=100)
    callback_url: str | None = None
    run_after: int | None = None
    deadline: int | None = None
    idempotency_key: str | None = None
    body_digest: str = ""


class Task(Frozen):
    """One row of the queue. progress is live only (never stored). attempts counts charged tries."""

    task_id: str
    workflow_name: str
    environment: str
    status: TaskState
    params: dict[str, Any]
    priority: str = "normal"
    rank: int = 0
    user_id: str | None = None
    attempts: int = 0
    max_attempts: int = 3
    infra_losses: int = 0
    crashes: int = 0
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    task_message: str | None = None
    output_data: dict[str, Any] | None = None
    callback_url: str | None = None
    instance: str | None = None
    target_port: int | None = None
    node_id: str | None = None
    prompt_id: str | None = None
    generation: str | None = None
    lease_expires_at: int | None = None
    cancel_requested: bool = False
    run_after: int | None = None
    deadline: int | None = None
    progress: dict[str, Any] | None = None


class Slot(Frozen):
    """Room for one prompt on one running instance. environments it serves = [environment]."""

    key: str
    generation: str
    port: int
    environment: str
    instance: str


class Lease(Frozen):
    """The right to finish a task. token is random; expires_mono: CLOCK_BOOTTIME seconds of this boot
    (embedded store) or the server's clock as told in `expires_at` (wall ms)."""

    task_id: str
    token: str
    expires_at: int
    expires_mono: float | None = None


class Claim(Frozen):
    """A leased task and where it runs. prompt_id = the attempt's uuid4, stored before anything is posted."""

    task: Task
    lease: Lease
    prompt_id: str
    slot: Slot | None = None


class Outcome(Frozen):
    """How an attempt ended.

    state COMPLETED or FAILED finish the task. PENDING returns it to the queue: `charged` says whether it counts as an
    attempt (an infrastructure loss does not); past its budget it becomes FAILED with `message`.
    crashed: its instance died while it ran this: neither charged nor a loss, but it has a budget of its own.
    output: `{"urls": [...], "files": [...], "text": [...]}`.
    """

    state: TaskState
    message: str | None = None
    output: dict[str, Any] | None = None
    charged: bool = True
    crashed: bool = False


class TaskFilter(Frozen):
    status: TaskState | None = None
    workflow_name: str | None = None
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


class TaskPage(Frozen):
    tasks: tuple[Task, ...]
    next_cursor: str | None
    queue_length: int


class TaskStats(Frozen):
    total: int = 0
    pending: int = 0
    fetched: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    workflows: dict[str, int] = Field(default_factory=dict)


class Pause(Frozen):
    """Nothing of `environment` (None: of the whole queue) is leased out. since: wall ms."""

    environment: str | None
    since: int
    by: str


class Limit(Frozen):
    """How many tasks of an environment, and of single workflows in it, may be leased at once. None: any number."""

    running: int | None = None
    workflows: dict[str, int] = Field(default_factory=dict)


Limits = Mapping[str, Limit]
"""By environment; only those that have any."""


class ExternalUpdate(Frozen):
    """`POST /comfyui-update-task`. caller: token id or peer address; lease_token may be absent (old clients)."""

    task_id: str
    status: TaskState
    caller: str
    lease_token: str | None = None
    task_message: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    output_data: dict[str, Any] | None = None


class Event(Frozen):
    """One row of the event log. seq is gap-free and rises across restarts. at: wall seconds."""

    seq: int
    at: float
    type: str
    subject: str
    data: dict[str, Any] = Field(default_factory=dict)
