"""`start-single` and `start-instances`: entries as in instances.json become wishes, then their outcome is awaited.

Owns: the fixed shapes of both calls. Must not: know how an instance is started.
"""

from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from pydantic import ConfigDict, Field, model_validator

from comfyd.api.entries import Entry, read_entry, refuse_rivals
from comfyd.api.instances import InstanceAnswer, StartQuery, start_failed, start_message
from comfyd.api.operation import Call, op
from comfyd.api.strictjson import decode_prefix, refuse
from comfyd.api.views import find_instance
from comfyd.api.wire import Answer, JsonInt, LenientAsk
from comfyd.api.wishes import started
from comfyd.core.outcome import StartOutcome
from comfyd.errors import ComfydError

MAX_ENTRIES = 1000


class StartEntry(LenientAsk):
    """One entry of instances.json. Unknown keys are ignored with a warning, keys that are null count as not given."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: Annotated[JsonInt, Field(ge=0, le=2**31 - 1)]
    port: Annotated[JsonInt, Field(ge=1, le=65535)]
    name: str
    description: str | None = None
    extra_args: str | list[str] | None = None
    enabled: Annotated[bool | None, Field(strict=True)] = None
    environment: str | None = None
    restart: dict[str, Any] | None = None
    gpu_exclusive: Annotated[bool | None, Field(strict=True)] = None
    gpus: list[int | str] | Literal["none"] | None = None
    env: dict[str, str] | None = None
    listen: str | None = None
    stop_grace_s: float | None = None
    drain_timeout_s: float | None = None
    probe: dict[str, Any] | None = None


class StartSingleQuery(StartQuery):
    environment: Annotated[str | None, Field(description="used if the body names none")] = None


class StartInstances(LenientAsk):
    environment: str | None = None
    instances: Annotated[list[StartEntry], Field(max_length=MAX_ENTRIES)]

    @model_validator(mode="before")
    @classmethod
    def _has_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and not isinstance(value.get("instances"), list):
            raise ComfydError("Invalid instances array", code="bad_request")
        return value


class StartSingleAnswer(InstanceAnswer):
    warnings: tuple[str, ...] = ()


class StartResult(Answer):
    """timeout: still starting when the wait ended."""

    instance_id: int
    name: str
    port: int
    status: Literal["started", "installing", "failed", "timeout", "error"]
    output: str | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()


class StartInstancesAnswer(Answer):
    status: Literal["completed"] = "completed"
    environment: str
    results: tuple[StartResult, ...]
    total_instances: int
    started_instances: int
    instances_count: int
    message: str = "Instances started"
    output: str


def decode_with_tail(data: bytes) -> Any:
    """JSON, or JSON followed by `&environment=NAME` as `curl -d '{...}' --data-urlencode environment=NAME` sends it."""
    value, rest = decode_prefix(data)
    if not rest:
        return value
    given = parse_qs(rest.removeprefix("&"), keep_blank_values=True, max_num_fields=2) if rest[0] == "&" else {}
    if set(given) != {"environment"} or len(given["environment"]) != 1 or not isinstance(value, dict):
        refuse("there is text after its end")
    return {"environment": given["environment"][0].strip(), **value}


@op(
    "POST", "/api/comfyui/start-single", scope="admin", body=StartEntry, query=StartSingleQuery,
    response=StartSingleAnswer, decode=decode_with_tail,
)  # fmt: skip
async def start_single(call: Call[StartEntry, StartSingleQuery]) -> StartSingleAnswer:
    """Start one instance, declared or not, and wait for the outcome; `enabled` is ignored."""
    context = call.context
    entry = read_entry(context, call.body, call.query.environment, call.caller)
    refusal = refuse_rivals(context, [entry]).get(entry.key)
    if refusal:
        raise start_failed(refusal, "occupied")
    await entry.write(context)
    outcome = (await started(context, [entry.wished], call.query.wait))[entry.key]
    message = start_message(entry.name, entry.port, outcome)
    instance = find_instance(context, str(entry.id))
    output = "\n".join([message, *(f"{c.type}: {c.message}" for c in instance.conditions), *entry.warnings])
    return StartSingleAnswer(message=message, output=output, instance=instance, warnings=entry.warnings)


@op(
    "POST", "/api/comfyui/start-instances", scope="admin", body=StartInstances, query=StartQuery,
    response=StartInstancesAnswer,
)  # fmt: skip
async def start_instances(call: Call[StartInstances, StartQuery]) -> StartInstancesAnswer:
    """Start several instances under one wait; entries with `enabled: false` are only counted."""
    context, body = call.context, call.body
    asked = [one for one in body.instances if one.enabled is not False]
    entries = [
        read_entry(context, one, body.environment, call.caller, f"/instances/{index}")
        for index, one in enumerate(body.instances)
        if one.enabled is not False
    ]
    doubled = {one.id for one in asked if sum(other.id == one.id for other in asked) > 1}
    if doubled:
        raise ComfydError(f"/instances: the id {min(doubled)} is given twice", code="validation_failed")
    refusals = refuse_rivals(context, entries)
    accepted = [one for one in entries if one.key not in refusals]
    for one in accepted:
        await one.write(context)
    outcomes = await started(context, [one.wished for one in accepted], call.query.wait)
    results = tuple(_result(one, outcomes.get(one.key), refusals.get(one.key)) for one in entries)
    return StartInstancesAnswer(
        environment=body.environment or context.settings.environment,
        results=results,
        total_instances=len(body.instances),
        started_instances=sum(one.status == "started" for one in results),
        instances_count=len(body.instances),
        output="\n".join(one.error or one.output or "" for one in results),
    )


def _result(entry: Entry, outcome: StartOutcome | None, refusal: str | None) -> StartResult:
    status: Literal["started", "installing", "failed", "timeout", "error"] = "failed"
    output = error = None
    if outcome is None:
        error = f"Failed to start instance: {refusal}"
    elif outcome.status == "failed":
        error = f"Failed to start instance: {outcome.message}"
    else:
        status = "timeout" if outcome.status == "starting" else outcome.status
        output = start_message(entry.name, entry.port, outcome)
    if status == "timeout":
        error = f"Instance '{entry.name}' is still starting: {outcome.message if outcome else ''}".rstrip(": ")
    return StartResult(
        instance_id=entry.id, name=entry.name, port=entry.port, status=status, output=output, error=error,
        warnings=entry.warnings,
    )  # fmt: skip
