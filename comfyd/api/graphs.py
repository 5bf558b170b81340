"""The graph a task runs: from the request, or the stored workflow of the environment.

Owns: what a graph must look like to be queued. Must not: judge its nodes (the instance does).
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from comfyd.api.context import ApiContext
from comfyd.api.strictjson import decode
from comfyd.errors import ComfydError
from comfyd.host.files import read_bounded
from comfyd.model.desired import ENVIRONMENT_NAME, WORKFLOW_NAME, EnvironmentSpec

MAX_NODES = 20_000
MAX_STORED_BYTES = 10 * 1024 * 1024
UI_HINT = "this is a workflow as the editor saves it; export it with `Save (API Format)` / `Export (API)` and send that"


async def complete(
    context: ApiContext, environment: EnvironmentSpec, workflow: str, params: Mapping[str, Any]
) -> dict[str, Any]:
    """`params` with a checked graph at input_data.wf_json, taken from the stored workflow where the caller sent none.

    A service environment is called over HTTP and needs no graph. Raises missing_workflow_graph, validation_failed.
    """
    given = params.get("input_data")
    if given is not None and not isinstance(given, dict):
        raise ComfydError("/params/input_data: must be an object", code="validation_failed")
    graph = (given or {}).get("wf_json")
    if graph is None and environment.service_type is not None:
        return dict(params)
    if graph is None:
        graph = await _stored(context, environment, workflow)
    check_graph(graph)
    return {**params, "input_data": {**(given or {}), "wf_json": graph}}


def check_graph(graph: Any) -> None:
    """Raises validation_failed if `graph` cannot be a workflow in API format."""
    if not isinstance(graph, dict):
        raise ComfydError("/params/input_data/wf_json: must be an object", code="validation_failed")
    if isinstance(graph.get("nodes"), list) and "links" in graph:
        raise ComfydError(f"/params/input_data/wf_json: {UI_HINT}", code="validation_failed", details={"hint": UI_HINT})
    if not graph:
        raise ComfydError("/params/input_data/wf_json: has no nodes", code="validation_failed")
    if len(graph) > MAX_NODES:
        raise ComfydError(f"/params/input_data/wf_json: has more than {MAX_NODES} nodes", code="validation_failed")


async def _stored(context: ApiContext, environment: EnvironmentSpec, workflow: str) -> Any:
    named = re.fullmatch(ENVIRONMENT_NAME, environment.name) and re.fullmatch(WORKFLOW_NAME, workflow)
    path = context.paths.environments_dir / environment.name / "workflows" / f"{workflow}.json"
    found = await asyncio.to_thread(read_bounded, path, MAX_STORED_BYTES) if named else None
    where = f"config/environments/{environment.name}/workflows/{workflow}.json"
    if found is None or found.data is None:
        problem = "" if found is None or found.problem == "missing" else f" ({found.problem})"
        raise ComfydError(
            f"the request brings no graph and there is no stored workflow {where}{problem}; "
            'send {"params": {"input_data": {"wf_json": {...}}}} or add that file',
            code="missing_workflow_graph",
        )
    try:
        return await asyncio.to_thread(decode, found.data)
    except ComfydError as error:
        raise ComfydError(
            f"the stored workflow {where} is broken: {error.message}", code="missing_workflow_graph"
        ) from None
