"""Status, stop-all and the verbs of one instance."""

from typing import Annotated, Any, Literal

from pydantic import Field

from comfyd.api.operation import Call, op
from comfyd.api.queue import look_at_pauses
from comfyd.api.views import current_instance, find_instance, status_view
from comfyd.api.wire import Answer, LenientAsk, Seconds
from comfyd.api.wishes import Wished, all_stopped, restart_wish, run_down, start_wish, started, write
from comfyd.core.outcome import StartOutcome
from comfyd.errors import ComfydError
from comfyd.model.observed import Phase
from comfyd.model.view import InstanceView, StatusView

STOP_WAIT_S = 25.0
COMFYUI = "comfyui/"


class StartQuery(LenientAsk):
    wait: Annotated[Seconds, Field(description="seconds to wait for the outcome")] = 30.0


class StopQuery(LenientAsk):
    wait: Annotated[Seconds, Field(description="seconds to wait for the end")] = STOP_WAIT_S


class InstanceAnswer(Answer):
    """output: the readable state of the instance."""

    status: Literal["success"] = "success"
    message: str
    output: str
    instance: InstanceView


class StopResult(Answer):
    instance_id: int | None
    name: str
    port: int | None
    status: Literal["stopped", "stopping"]


class StopAllAnswer(Answer):
    status: Literal["success"] = "success"
    message: str
    output: str
    results: tuple[StopResult, ...]


@op("GET", "/api/comfyui/status", scope="client", response=StatusView)
async def status(call: Call[None, None]) -> StatusView:
    """Every instance and environment, the state of the files, and what happens next."""
    await call.context.gpus.refresh(call.context.live.observed.get())
    await look_at_pauses(call.context)
    return status_view(call.context)


@op("GET", "/api/comfyui/instances/{ref}", scope="client", response=InstanceView, errors=(404,))
async def show_instance(call: Call[None, None]) -> InstanceView:
    """One instance by id or name."""
    return find_instance(call.context, call.path("ref"))


@op(
    "POST",
    "/api/comfyui/instances/{ref}/start",
    scope="admin",
    query=StartQuery,
    response=InstanceAnswer,
    errors=(404,),
)
async def start_instance(call: Call[None, StartQuery]) -> InstanceAnswer:
    """Let an instance run, enabled or not, and wait for the outcome."""
    found = find_instance(call.context, call.path("ref"))
    return await _start(call, found, start_wish(call.context, found.key, call.caller), "started")


@op(
    "POST",
    "/api/comfyui/instances/{ref}/restart",
    scope="admin",
    query=StartQuery,
    response=InstanceAnswer,
    errors=(404,),
)
async def restart_instance(call: Call[None, StartQuery]) -> InstanceAnswer:
    """Stop an instance after its prompts are done and start it again."""
    found = find_instance(call.context, call.path("ref"))
    return await _start(call, found, restart_wish(call.context, found.key, call.caller), "restarted")


@op("POST", "/api/comfyui/instances/{ref}/stop", scope="admin", query=StopQuery, response=InstanceAnswer, errors=(404,))
async def stop_instance(call: Call[None, StopQuery]) -> InstanceAnswer:
    """Stop an instance and keep it stopped until it is started again."""
    context = call.context
    found = find_instance(context, call.path("ref"))
    wished = Wished(found.key, (run_down(context, found.key, call.caller),))
    await write(context, wished.overrides)
    done = await all_stopped(context, [wished], call.query.wait)
    message = f"Instance '{found.name}' {'stopped' if done else 'is stopping'}"
    return answer_for(call, found.key, found, message)


@op("POST", "/api/comfyui/stop-all", scope="admin", query=StopQuery, response=StopAllAnswer)
async def stop_all(call: Call[None, StopQuery]) -> StopAllAnswer:
    """Stop every ComfyUI instance that runs or should run, and wait for the ends."""
    context = call.context
    concerned = [one for one in status_view(context).instances if _concerned(one)]
    wished = [Wished(one.key, (run_down(context, one.key, call.caller),)) for one in concerned]
    await write(context, [override for one in wished for override in one.overrides])
    await all_stopped(context, wished, call.query.wait)
    observed = context.live.observed.get()
    results = tuple(
        _stop_result(one, (seen := observed.process(one.key)) is None or not seen.alive) for one in concerned
    )
    late = [one.name for one in results if one.status != "stopped"]
    if late:
        raise ComfydError(
            f"Failed to stop instances: {', '.join(late)} still running after {call.query.wait:g} s; stopping goes on",
            code="stop_failed",
            details={"results": [one.model_dump() for one in results]},
            retryable=True,
        )
    lines = [f"Instance '{one.name}' stopped" for one in results] or ["no instance was running"]
    return StopAllAnswer(message="All instances stopped", output="\n".join(lines), results=results)


def _concerned(one: InstanceView) -> bool:
    alive = one.state in set(Phase) - {Phase.GONE}
    return one.key.startswith(COMFYUI) and (alive or one.desired == "up")


def _stop_result(one: InstanceView, done: bool) -> StopResult:
    return StopResult(instance_id=one.id, name=one.name, port=one.port, status="stopped" if done else "stopping")


async def _start(call: Call[None, StartQuery], found: InstanceView, wished: Wished, verb: str) -> InstanceAnswer:
    await write(call.context, wished.overrides)
    outcome = (await started(call.context, [wished], call.query.wait))[found.key]
    return answer_for(call, found.key, found, start_message(found.name, found.port, outcome, verb))


def start_message(name: str, port: int | None, outcome: StartOutcome, verb: str = "started") -> str:
    """What old clients read. Raises start_failed with the reason of a failed outcome."""
    if outcome.status == "failed":
        hint = f" ({outcome.condition.hint})" if outcome.condition and outcome.condition.hint else ""
        raise start_failed(f"{outcome.message}{hint}", outcome.condition.reason if outcome.condition else "")
    if outcome.status == "started":
        return f"Instance '{name}' {verb} on port {port}" if port else f"Instance '{name}' {verb}"
    return f"Instance '{name}' is {outcome.status}"


def start_failed(reason: str, cause: str = "") -> ComfydError:
    return ComfydError(
        f"Failed to start instance: {reason}", code="start_failed", details={"reason": cause} if cause else {}
    )


def answer_for(call: Call[Any, Any], key: str, fallback: InstanceView, message: str) -> InstanceAnswer:
    """The answer of a verb with the instance as it is now (`fallback` once nothing knows it any more)."""
    now = current_instance(call.context, key) or fallback
    output = "\n".join([message, *(f"{c.type}: {c.message}" for c in now.conditions)])
    return InstanceAnswer(message=message, output=output, instance=now)
