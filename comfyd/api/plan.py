"""What the next reconcile would do, for the files as they are or for a candidate, and the wish to do it now."""

import asyncio
from dataclasses import replace
from typing import Any, Literal

from pydantic import GetJsonSchemaHandler, RootModel
from pydantic_core import CoreSchema

from comfyd.api.context import ApiContext
from comfyd.api.instances import StartQuery
from comfyd.api.operation import Call, op
from comfyd.api.views import status_view
from comfyd.api.wire import Answer
from comfyd.api.wishes import until
from comfyd.core.config import parse
from comfyd.core.plan import plan
from comfyd.core.resolve import resolve
from comfyd.core.since import dated
from comfyd.core.view import plan_view
from comfyd.errors import ComfydError
from comfyd.host.clock import container_id
from comfyd.model.sources import MachineFacts
from comfyd.model.view import ConfigIssueView, ConfigStateView, PlanView
from comfyd.wiring import variables_from


class Candidate(RootModel[bytes]):
    """An instances.json; comments are accepted."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "object", "title": "Candidate", "description": cls.__doc__}


class PreviewAnswer(PlanView):
    """issues: warnings and blocked parts of the candidate."""

    issues: tuple[ConfigIssueView, ...] = ()


class ReloadAnswer(Answer):
    """refused: the files have errors and the last good state goes on."""

    status: Literal["success", "refused", "pending"]
    message: str
    config: ConfigStateView


@op("GET", "/api/comfyui/plan", scope="client", response=PlanView)
async def show_plan(call: Call[None, None]) -> PlanView:
    """The actions the next reconcile would take, each with its reason, and why the rest waits."""
    live, now = call.context.live, call.context.clock()
    return plan_view(dated(plan(live.resolved.get(), live.observed.get(), now), live.plan.get(), now), now)


@op("POST", "/api/comfyui/plan", scope="client", body=Candidate, response=PreviewAnswer, decode=bytes, errors=(503,))
async def preview_plan(call: Call[Candidate, None]) -> PreviewAnswer:
    """What would happen if the body were the instances.json. Changes nothing."""
    context = call.context
    config, variables = context.live.config.get(), variables_from(context.settings)
    if config.files is None:
        raise ComfydError("the configuration has not been read yet", code="not_ready", retryable=True)
    instances = replace(config.files.instances, data=call.body.root, problem=None, detail="")
    parsed = await asyncio.to_thread(parse, replace(config.files, instances=instances), variables, config.desired)
    issues = tuple(ConfigIssueView(**issue.model_dump()) for issue in parsed.issues)
    if parsed.desired is None:
        raise ComfydError(
            "\n".join(issue.text() for issue in parsed.issues if issue.severity == "error"),
            code="invalid_config",
            details={"issues": [issue.model_dump() for issue in issues]},
        )
    now = context.clock()
    resolved = resolve(parsed.desired, await context.node.overrides(), variables, await _facts(context), now)
    decided = plan(resolved, context.live.observed.get(), now)
    shown = plan_view(dated(decided, context.live.plan.get(), now), now)
    return PreviewAnswer(**dict(shown), issues=issues)


async def _facts(context: ApiContext) -> MachineFacts:
    """What control resolves with; without it, what is stored."""
    if context.facts is not None:
        return context.facts
    stored = await context.node.facts("output/")
    outputs = {key.removeprefix("output/"): str(value["output"]) for key, value in stored.items()}
    return MachineFacts(context.paths, container=container_id(), outputs=outputs)


@op("POST", "/api/comfyui/reload", scope="admin", query=StartQuery, response=ReloadAnswer)
async def reload(call: Call[None, StartQuery]) -> ReloadAnswer:
    """Read the files again and reconcile now."""
    live = call.context.live
    before = live.passes.get()
    live.wake.set()
    done = await until(call.context, lambda: live.passes.get() > before or None, call.query.wait)
    config = status_view(call.context).config
    if not done:
        return ReloadAnswer(status="pending", message="the reconcile goes on", config=config)
    errors = [one for one in config.issues if one.severity == "error"]
    if errors:
        text = f"the files were refused with {len(errors)} errors, the last good state goes on: {errors[0].message}"
        return ReloadAnswer(status="refused", message=text, config=config)
    return ReloadAnswer(status="success", message="Configuration reloaded", config=config)
