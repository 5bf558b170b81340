"""The task as programs see it, and where its environment would run it now."""

from collections.abc import Iterable
from typing import Any

from comfyd.api.context import ApiContext
from comfyd.api.wire import Answer, rfc3339_ms
from comfyd.core.route import pick_target
from comfyd.errors import ComfydError, StoreError
from comfyd.model.task import TERMINAL, Task


class TaskView(Answer):
    """Times are RFC 3339 UTC with milliseconds. target_port of a waiting task: where it would go now."""

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
    created_at: str
    run_after: str | None
    deadline: str | None
    started_at: str | None
    finished_at: str | None
    task_message: str | None
    output_data: dict[str, Any] | None
    progress: dict[str, Any] | None
    instance: str | None


class TaskAnswer(Answer):
    success: bool = True
    task: TaskView
    taskId: str
    message: str


async def targets(context: ApiContext) -> dict[str, int]:
    """environment → port where its next task would go; those without instance and port are left out."""
    live = context.live
    load = await context.tasks.load()
    found: dict[str, int] = {}
    for environment in live.config.get().desired.environments:
        try:
            port, _ = pick_target(live.resolved.get(), live.observed.get(), environment, load)
        except ComfydError:
            continue
        found[environment.name] = port
    return found


async def _known_targets(context: ApiContext) -> dict[str, int]:
    """Only shown: a store that was lost since must not turn what is done into an error."""
    try:
        return await targets(context)
    except StoreError:
        return {}


async def task_views(context: ApiContext, tasks: Iterable[Task]) -> tuple[TaskView, ...]:
    given = tuple(tasks)
    waiting = any(task.target_port is None and task.status not in TERMINAL for task in given)
    ports = await _known_targets(context) if waiting else {}
    frames = context.live.progress.get()
    return tuple(_view(task, ports, frames.get(task.task_id)) for task in given)


async def task_view(context: ApiContext, task: Task) -> TaskView:
    return (await task_views(context, [task]))[0]


async def task_answer(context: ApiContext, task: Task, message: str) -> TaskAnswer:
    return TaskAnswer(task=await task_view(context, task), taskId=task.task_id, message=message)


def _view(task: Task, ports: dict[str, int], frame: dict[str, Any] | None) -> TaskView:
    port = task.target_port
    if port is None and task.status not in TERMINAL:
        port = ports.get(task.environment)
    return TaskView(
        taskId=task.task_id,
        workflow_name=task.workflow_name,
        environment=task.environment,
        target_port=port,
        status=task.status.value,
        params=task.params,
        priority=task.priority,
        user_id=task.user_id,
        attempts=task.attempts,
        max_attempts=task.max_attempts,
        infra_losses=task.infra_losses,
        crashes=task.crashes,
        run_after=rfc3339_ms(task.run_after),
        deadline=rfc3339_ms(task.deadline),
        created_at=rfc3339_ms(task.created_at) or "",
        started_at=rfc3339_ms(task.started_at),
        finished_at=rfc3339_ms(task.finished_at),
        task_message=task.task_message,
        output_data=task.output_data,
        progress=None if task.status in TERMINAL else (frame or task.progress),
        instance=task.instance,
    )
