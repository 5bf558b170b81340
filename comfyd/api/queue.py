"""Pausing and resuming the queue, as a whole or one environment of it.

Owns: the shapes of these calls, and what the status knows of the queue. Must not: decide what a pause keeps back.
"""

import asyncio
from collections.abc import Iterable

from pydantic import Field

from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op
from comfyd.api.views import find_environment, status_view
from comfyd.api.wire import Answer, LenientAsk
from comfyd.core.shown import rfc3339
from comfyd.errors import ComfydError
from comfyd.model.task import Pause
from comfyd.model.view import PauseView

LOOK_S = 1.0
"""The status waits so long for the queue's database, then it shows what it knew."""


class PauseAsk(LenientAsk):
    environment: str | None = Field(
        default=None, max_length=64, description="only this one; none means the whole queue"
    )


class PauseAnswer(Answer):
    """paused: what is paused now; an entry without environment stands for the whole queue."""

    success: bool = True
    message: str
    paused: tuple[PauseView, ...]


@op("POST", "/api/queue/pause", scope="admin", body=PauseAsk, body_required=False, query=PauseAsk, response=PauseAnswer,
    errors=(404,))  # fmt: skip
async def pause_queue(call: Call[PauseAsk | None, PauseAsk]) -> PauseAnswer:
    """Hand out no more tasks, to instances and to outside workers; what runs goes on. Survives restarts."""
    context, name = call.context, _named(call)
    if name is not None:
        find_environment(status_view(context), name)
    paused = await context.tasks.pause(name, call.caller, context.clock())
    return _answer(context, f"{_title(name)} is paused", paused)


@op("POST", "/api/queue/resume", scope="admin", body=PauseAsk, body_required=False, query=PauseAsk,
    response=PauseAnswer)  # fmt: skip
async def resume_queue(call: Call[PauseAsk | None, PauseAsk]) -> PauseAnswer:
    """Hand out tasks again; without an environment every pause ends."""
    context, name = call.context, _named(call)
    paused = await context.tasks.resume(name, call.caller, context.clock())
    context.live.task_wake.set()
    held = any(one.environment is None or one.environment == name for one in paused)
    return _answer(context, f"{_title(name)} {'is still paused as a part of the whole' if held else 'goes on'}", paused)


def _named(call: Call[PauseAsk | None, PauseAsk]) -> str | None:
    return (call.body.environment if call.body else None) or call.query.environment or None


def _title(name: str | None) -> str:
    return "The queue" if name is None else f"The queue of environment '{name}'"


def _answer(context: ApiContext, message: str, paused: Iterable[Pause]) -> PauseAnswer:
    context.paused = _views(paused)
    return PauseAnswer(message=message, paused=context.paused)


async def look_at_pauses(context: ApiContext) -> None:
    """For the status, which must not fail or wait because the queue's database does."""
    try:
        async with asyncio.timeout(LOOK_S):
            context.paused = _views(await context.tasks.pauses())
    except (ComfydError, TimeoutError):
        return


def _views(paused: Iterable[Pause]) -> tuple[PauseView, ...]:
    return tuple(PauseView(environment=one.environment, since=rfc3339(one.since / 1000), by=one.by) for one in paused)
