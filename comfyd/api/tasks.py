"""Tasks: create, list, show, cancel, retry, count, clear.

Owns: the shapes of these calls. Must not: choose an instance for good or run anything.
"""

import asyncio
import hashlib
import json
import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from comfyd.api.graphs import complete
from comfyd.api.operation import Call, op, under_api
from comfyd.api.taskview import TaskAnswer, TaskView, task_answer, task_view, task_views
from comfyd.api.wire import Answer, Ask, Instant, JsonInt, LenientAsk, rfc3339_ms
from comfyd.core.rank import parse_priority, rank_cost
from comfyd.core.route import route
from comfyd.errors import ComfydError
from comfyd.host.files import remove_trees
from comfyd.model.task import Lease, NewTask, TaskFilter, TaskState, TaskStats

IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


AnyCase = Annotated[TaskState, BeforeValidator(_upper)]


class TaskOptions(LenientAsk):
    """What may be said of any task, whatever it is to do."""

    priority: str | JsonInt | None = Field(default=None, description="vip, normal, guest or an integer")
    user_id: str | None = Field(default=None, max_length=256)
    callback_url: str | None = Field(default=None, max_length=2048, pattern=r"^https?://[^\s]+$")
    max_attempts: Annotated[JsonInt, Field(ge=1, le=100)] = 3
    run_after: Annotated[Instant, Field(description="not started before this instant")] = None
    deadline: Annotated[Instant, Field(description="fails if it has not been started by then")] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.run_after is not None and self.deadline is not None and self.deadline <= self.run_after:
            raise ValueError("deadline must be later than run_after")
        return self


class CreateTask(TaskOptions):
    """`{params: {input_data: {wf_json}}}`, or `{wf_json}`, or neither to use the stored workflow."""

    params: dict[str, Any] = Field(default_factory=dict)
    wf_json: dict[str, Any] | None = None


class CreateNamedTask(CreateTask):
    workflow_name: str = Field(max_length=256)


class TaskQuery(LenientAsk):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    status: AnyCase | None = None
    workflow_name: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: str | None = None


class TasksAnswer(Answer):
    """Newest first. queue_length counts PENDING tasks."""

    tasks: tuple[TaskView, ...]
    queue_length: int
    next_cursor: str | None


class Counts(Answer):
    total: int
    pending: int
    fetched: int
    processing: int
    completed: int
    failed: int
    cancelled: int


class StatsAnswer(Answer):
    success: bool = True
    stats: Counts
    workflow_stats: dict[str, int]


class ClearAnswer(Answer):
    message: str = "All tasks cleared"
    cleared: int


class Heartbeat(Ask):
    lease_token: str = Field(max_length=256)


class HeartbeatAnswer(Answer):
    success: bool = True
    lease_expires_at: str


@op(
    "POST", "/tasks/create/{workflow_name}", scope="client", body=CreateTask, body_required=False, response=TaskAnswer,
    errors=(404,), also=under_api("/tasks/create/{workflow_name}"),
)  # fmt: skip
async def create_task(call: Call[CreateTask | None, None]) -> TaskAnswer:
    """Queue a task for a workflow. The header Idempotency-Key makes repeating it safe."""
    return await create(call, call.path("workflow_name"), call.body or CreateTask())


@op(
    "POST", "/tasks/create", scope="client", body=CreateNamedTask, response=TaskAnswer, errors=(404,),
    also=under_api("/tasks/create"),
)  # fmt: skip
async def create_named_task(call: Call[CreateNamedTask, None]) -> TaskAnswer:
    """Queue a task; the body names the workflow."""
    return await create(call, call.body.workflow_name, call.body)


async def create(call: Call[Any, None], workflow: str, body: CreateTask) -> TaskAnswer:
    """Check what was asked for and queue it. Raises unknown_workflow, missing_workflow_graph, validation_failed."""
    context = call.context
    key = _idempotency_key(call)
    priority = parse_priority(body.priority)
    environment = route(context.live.config.get().desired, workflow)
    params = dict(body.params)
    if body.wf_json is not None:
        params["input_data"] = {**(params.get("input_data") or {}), "wf_json": body.wf_json}
    new = NewTask(
        workflow_name=workflow,
        environment=environment.name,
        params=await complete(context, environment, workflow, params),
        priority=priority,
        rank_cost=rank_cost(priority),
        user_id=body.user_id,
        max_attempts=body.max_attempts,
        callback_url=body.callback_url,
        run_after=body.run_after,
        deadline=body.deadline,
        idempotency_key=key,
        body_digest=await _digest(workflow, body) if key else "",
    )
    task, made = await context.tasks.enqueue(new, context.clock())
    if made:
        context.live.task_wake.set()
        context.metrics.count("tasks_created", environment=environment.name)
    message = "Task created successfully" if made else "Task already exists for this Idempotency-Key"
    return await task_answer(context, task, message)


def _idempotency_key(call: Call[Any, Any]) -> str | None:
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise ComfydError("the Idempotency-Key has 1 to 255 printable ASCII characters", code="bad_request")
    return key


async def _digest(workflow: str, body: CreateTask) -> str:
    """What the caller asked for, whichever of the two addresses was used. In a thread: a graph may be large."""

    def made() -> str:
        later = {name for name in ("run_after", "deadline") if getattr(body, name) is None}
        asked = {**body.model_dump(mode="json", exclude=later), "workflow_name": workflow}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    return await asyncio.to_thread(made)


@op("GET", "/tasks", scope="client", query=TaskQuery, response=TasksAnswer, also=under_api("/tasks"))
async def list_tasks(call: Call[None, TaskQuery]) -> TasksAnswer:
    """Tasks, newest first, page by page."""
    page = await call.context.tasks.list(TaskFilter(**call.query.model_dump()))
    shown = await task_views(call.context, page.tasks)
    return TasksAnswer(tasks=shown, queue_length=page.queue_length, next_cursor=page.next_cursor)


@op("GET", "/tasks/{task_id}", scope="client", response=TaskView, errors=(404,), also=under_api("/tasks/{task_id}"))
async def show_task(call: Call[None, None]) -> TaskView:
    """One task with its state, attempts, progress and outputs."""
    return await task_view(call.context, await call.context.tasks.get(call.path("task_id")))


@op(
    "POST", "/tasks/{task_id}/cancel", scope="client", response=TaskAnswer, errors=(404, 409),
    also=under_api("/tasks/{task_id}/cancel"),
)  # fmt: skip
async def cancel_task(call: Call[None, None]) -> TaskAnswer:
    """Cancel a task; one that runs ends as soon as its instance lets go of it."""
    context = call.context
    task = await context.tasks.cancel(call.path("task_id"), context.clock())
    context.live.task_wake.set()
    done = task.status is TaskState.CANCELLED
    return await task_answer(context, task, "Task cancelled" if done else "Task is being cancelled")


@op(
    "POST", "/tasks/{task_id}/retry", scope="client", response=TaskAnswer, errors=(404, 409),
    also=under_api("/tasks/{task_id}/retry"),
)  # fmt: skip
async def retry_task(call: Call[None, None]) -> TaskAnswer:
    """Queue a failed or cancelled task again, with fresh attempts."""
    context = call.context
    task = await context.tasks.retry(call.path("task_id"), context.clock())
    context.live.task_wake.set()
    return await task_answer(context, task, "Task queued again")


class DeleteAnswer(Answer):
    success: bool = True
    taskId: str
    message: str = "Task deleted"


@op(
    "DELETE", "/tasks/{task_id}", scope="admin", response=DeleteAnswer, errors=(404, 409),
    also=under_api("/tasks/{task_id}"),
)  # fmt: skip
async def delete_task(call: Call[None, None]) -> DeleteAnswer:
    """Take a task that has ended away, with its result files. The only way that a failed one goes."""
    context, task_id = call.context, call.path("task_id")
    await context.tasks.delete(task_id, context.clock())
    await asyncio.to_thread(remove_trees, context.paths.outputs, [task_id])
    return DeleteAnswer(taskId=task_id)


class DeadQuery(LenientAsk):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workflow_name: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: str | None = None


@op("GET", "/api/queue/dead", scope="admin", query=DeadQuery, response=TasksAnswer)
async def list_dead_tasks(call: Call[None, DeadQuery]) -> TasksAnswer:
    """Tasks that were given up, newest first; they stay until they are retried or deleted by hand."""
    page = await call.context.tasks.list(TaskFilter(status=TaskState.FAILED, **call.query.model_dump()))
    shown = await task_views(call.context, page.tasks)
    return TasksAnswer(tasks=shown, queue_length=page.queue_length, next_cursor=page.next_cursor)


@op(
    "POST", "/tasks/{task_id}/heartbeat", scope="worker", body=Heartbeat, response=HeartbeatAnswer, errors=(404, 409),
    also=under_api("/tasks/{task_id}/heartbeat"),
)  # fmt: skip
async def renew_task(call: Call[Heartbeat, None]) -> HeartbeatAnswer:
    """Renew the lease of a fetched task."""
    context = call.context
    held = Lease(task_id=call.path("task_id"), token=call.body.lease_token, expires_at=0)
    lease = await context.tasks.renew(held, context.settings.fetch_lease_s, context.clock())
    return HeartbeatAnswer(lease_expires_at=rfc3339_ms(lease.expires_at) or "")


@op("GET", "/api/stats", scope="client", response=StatsAnswer, also=under_api("/api/stats"))
async def stats(call: Call[None, None]) -> StatsAnswer:
    """How many tasks there are, by state and by workflow."""
    found: TaskStats = await call.context.tasks.stats()
    return StatsAnswer(stats=Counts(**found.model_dump(exclude={"workflows"})), workflow_stats=found.workflows)


@op("DELETE", "/api/tasks/clear", scope="admin", response=ClearAnswer, also=under_api("/api/tasks/clear"))
async def clear_tasks(call: Call[None, None]) -> ClearAnswer:
    """Remove every task that is not running."""
    return ClearAnswer(cleared=await call.context.tasks.clear())
