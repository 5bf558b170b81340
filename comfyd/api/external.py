"""Outside workers: fetch a task under a lease, report what became of it. Two envelopes of the same two calls."""

from typing import Annotated, Any

from aiohttp import web
from pydantic import ConfigDict, Field

from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op, reply, under_api
from comfyd.api.tasks import AnyCase
from comfyd.api.taskview import targets
from comfyd.api.wire import Answer, Instant, LenientAsk, rfc3339_ms
from comfyd.model.task import Claim, ExternalUpdate, TaskState


class FetchQuery(LenientAsk):
    workflow_names: Annotated[str | None, Field(description="comma-separated; none means every workflow")] = None


class FetchedTask(Answer):
    """Empty if no task waits."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    taskId: str | None = None
    workflow_name: str | None = None
    environment: str | None = None
    target_port: int | None = None
    params: dict[str, Any] | None = None
    status: str | None = None
    lease_token: str | None = None
    lease_expires_at: str | None = None


class FetchEnvelope(Answer):
    success: bool = True
    code: int = 200
    message: str
    data: FetchedTask | None


class TaskUpdate(LenientAsk):
    """Without lease_token it acts on the current lease if the same caller fetched it."""

    taskId: str = Field(max_length=256)
    status: AnyCase
    task_message: str | None = Field(default=None, max_length=65536)
    started_at: Instant = None
    finished_at: Instant = None
    output_data: dict[str, Any] | None = None
    lease_token: str | None = Field(default=None, max_length=256)


class UpdateAnswer(Answer):
    success: bool = True
    message: str = "Task updated successfully"


class UpdateEnvelope(UpdateAnswer):
    code: int = 200
    data: dict[str, str]


@op(
    "GET", "/comfyui-fetch-task", scope="worker", query=FetchQuery, response=FetchedTask,
    also=under_api("/comfyui-fetch-task"),
)  # fmt: skip
async def fetch_task(call: Call[None, FetchQuery]) -> web.Response:
    """Lease the next waiting task; `{}` if there is none."""
    claim = await _fetch(call)
    return reply(_fetched(claim, "PENDING") if claim else FetchedTask(), only_set=True)


@op("POST", "/comfyui-update-task", scope="worker", body=TaskUpdate, response=UpdateAnswer, errors=(404, 409),
    also=under_api("/comfyui-update-task"))  # fmt: skip
async def update_task(call: Call[TaskUpdate, None]) -> UpdateAnswer:
    """Report the state of a fetched task; reports before the end renew the lease."""
    await _update(call)
    return UpdateAnswer()


@op("GET", "/api/comm/task/fetch", scope="worker", query=FetchQuery, response=FetchEnvelope,
    also=under_api("/api/comm/task/fetch"))  # fmt: skip
async def fetch_task_in_envelope(call: Call[None, FetchQuery]) -> FetchEnvelope:
    """Lease the next waiting task; data is null if there is none."""
    claim = await _fetch(call)
    data = _fetched(claim, TaskState.FETCHED.value) if claim else None
    return FetchEnvelope(message="Task fetched successfully" if data else "No pending task", data=data)


@op("POST", "/api/comm/task/update", scope="worker", body=TaskUpdate, response=UpdateEnvelope, errors=(404, 409),
    also=under_api("/api/comm/task/update"))  # fmt: skip
async def update_task_in_envelope(call: Call[TaskUpdate, None]) -> UpdateEnvelope:
    """Report the state of a fetched task."""
    await _update(call)
    return UpdateEnvelope(data={"taskId": call.body.taskId, "status": call.body.status.value})


async def _fetch(call: Call[None, FetchQuery]) -> Claim | None:
    context = call.context
    names = [name.strip() for name in (call.query.workflow_names or "").split(",") if name.strip()]
    lease_s = context.settings.fetch_lease_s
    ports = await targets(context)
    claim = await context.tasks.fetch(call.caller, names or None, _own(context), ports, lease_s, context.clock())
    if claim is not None:
        context.live.task_wake.set()  # there is a lease that may run out: dispatch keeps the timer
    return claim


def _own(context: ApiContext) -> list[str] | None:
    """Of a queue that nodes share, the tasks that this node's environments can run; of its own queue, all."""
    if context.settings.database_url is None:
        return None
    return [environment.name for environment in context.live.config.get().desired.environments]


def _fetched(claim: Claim, status: str) -> FetchedTask:
    task = claim.task
    return FetchedTask(
        taskId=task.task_id,
        workflow_name=task.workflow_name,
        environment=task.environment,
        target_port=task.target_port,
        params=task.params,
        status=status,
        lease_token=claim.lease.token,
        lease_expires_at=rfc3339_ms(claim.lease.expires_at),
    )


async def _update(call: Call[TaskUpdate, None]) -> None:
    context, given = call.context, call.body
    change = ExternalUpdate(task_id=given.taskId, caller=call.caller, **given.model_dump(exclude={"taskId"}))
    task = await context.tasks.update(change, context.settings.fetch_lease_s, context.clock())
    if task.status not in {
        TaskState.FETCHED,
        TaskState.PROCESSING,
    }:  # it may be taken again, or leaves room under a limit
        context.live.task_wake.set()
