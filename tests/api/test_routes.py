"""Every route is declared, described, scoped and answers errors in the one shape."""

import json
import re
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from comfyd.api.app import FAMILIES, create_app
from comfyd.api.operation import Operation, operations
from comfyd.errors import HTTP_STATUS
from tests.api.world import world

ALL = operations(FAMILIES)
SCOPES = {"admin", "client", "worker", "public"}
CONTRACT = """
POST /api/comfyui/start-single
POST /api/comfyui/start-instances
GET /api/comfyui/status
POST /api/comfyui/stop-all
POST /api/comfyui/instances/{ref}/start
POST /api/comfyui/instances/{ref}/stop
POST /api/comfyui/instances/{ref}/restart
GET /api/comfyui/instances/{ref}
GET /api/comfyui/instances/{ref}/logs
GET /api/comfyui/overrides
DELETE /api/comfyui/overrides
GET /api/comfyui/overrides/{ref}
PUT /api/comfyui/overrides/{ref}
DELETE /api/comfyui/overrides/{ref}
GET /api/comfyui/plan
POST /api/comfyui/plan
POST /api/comfyui/reload
GET /api/queue/dead
DELETE /tasks/{task_id}
POST /api/queue/pause
POST /api/queue/resume
GET /environments
GET /environments/{env}
POST /environments/{env}/install
GET /environments/{env}/install
GET /workflows
GET /comfyui-fetch-task
POST /comfyui-update-task
GET /api/comm/task/fetch
POST /api/comm/task/update
GET /tasks
POST /tasks/create/{workflow_name}
POST /tasks/create
POST /api/faceswap/create
GET /tasks/{task_id}
POST /tasks/{task_id}/cancel
POST /tasks/{task_id}/retry
POST /tasks/{task_id}/heartbeat
GET /tasks/{task_id}/outputs/{n}
GET /api/stats
DELETE /api/tasks/clear
GET /events
GET /health
GET /ready
GET /metrics
GET /openapi.json
GET /docs
GET /
"""


def declared() -> set[str]:
    return {f"{one.method} {path}" for one in ALL for path in one.paths}


@pytest.mark.asyncio
async def test_the_router_holds_exactly_the_declared_operations(tmp_path: Path) -> None:
    async with world(tmp_path, control=False) as w:
        app = create_app(w.context)
        routes = {f"{route.method} {route.resource.canonical}" for route in app.router.routes()}  # type: ignore[union-attr]
        heads = {f"HEAD {path}" for one in ALL if one.scope == "public" for path in one.paths}
        assert routes == declared() | heads


def test_every_operation_of_the_contract_is_there() -> None:
    assert {f"{one.method} {one.path}" for one in ALL} == set(CONTRACT.strip().splitlines())


def test_task_workflow_and_environment_routes_have_two_addresses() -> None:
    pattern = re.compile(r"^(\w+) (?:/api)?(/(?:tasks|workflows|environments|comfyui-|comm|stats).*)$")
    for one in map(pattern.match, declared()):
        if one:
            assert {f"{one[1]} {one[2]}", f"{one[1]} /api{one[2]}"} <= declared()


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_operation_has_a_scope_and_a_sentence(one: Operation) -> None:
    assert one.scope in SCOPES
    assert (one.handler.__doc__ or "").strip().endswith(".")
    changes = one.method in ("POST", "PUT", "DELETE")
    assert not (changes and one.scope == "public")


def test_only_health_and_readiness_are_public() -> None:
    assert {one.path for one in ALL if one.scope == "public"} == {"/health", "/ready"}


@pytest.mark.asyncio
async def test_openapi_is_valid_and_complete(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        document = (await w.get("/openapi.json")).json
        assert document["openapi"] == "3.1.0"
        assert [str(e) for e in OpenAPIV31SpecValidator(document).iter_errors()] == []
        shown = {f"{m.upper()} {path}" for path, methods in document["paths"].items() for m in methods}
        assert shown == declared()
        names = [entry["operationId"] for methods in document["paths"].values() for entry in methods.values()]
        assert len(set(names)) == len(names)
        for methods in document["paths"].values():
            for entry in methods.values():
                assert entry["x-scope"] in SCOPES
                assert {"403", "500"} <= set(entry["responses"])


@pytest.mark.asyncio
async def test_the_docs_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in ("/docs", "/"):
            page = await w.get(path)
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert b"<script" not in page.body
            assert b"http://" not in page.body.replace(b"http://127.0.0.1", b"")
        docs = (await w.get("/docs")).body.decode()
        assert all(one.path in docs for one in ALL)


@pytest.mark.asyncio
async def test_names_from_outside_are_escaped_on_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)<!--"
    async with world(tmp_path, {"id": 0, "port": 3001, "name": "<img src=x onerror=y>"}) as w:
        assert b"<img" not in (await w.get("/")).body
        assert name.encode() not in (await w.get("/")).body


@pytest.mark.asyncio
async def test_unknown_addresses_and_methods(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in ("/nope", "/api/nope", "/api/comfyui", "/tasks/", "/..%2f..%2fetc/passwd", "/%00", "/static/x"):
            answer = await w.get(path)
            assert (answer.status, answer.code) == (404, "not_found"), path
        for method, path in (("DELETE", "/tasks"), ("PUT", "/api/comfyui/status"), ("POST", "/health")):
            answer = await w.call(method, path)
            assert (answer.status, answer.code) == (405, "method_not_allowed")
            assert "GET" in answer.headers["Allow"]
        assert (await w.call("OPTIONS", "/tasks")).status == 405
        assert (await w.call("HEAD", "/comfyui-fetch-task")).status == 405
        assert (await w.call("HEAD", "/health")).status == 200


@pytest.mark.asyncio
async def test_a_request_id_is_echoed_or_made(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert (await w.get("/health", headers={"X-Request-ID": "abc-1"})).headers["X-Request-ID"] == "abc-1"
        assert re.fullmatch("[0-9a-f]{32}", (await w.get("/health")).headers["X-Request-ID"])
        assert re.fullmatch(
            "[0-9a-f]{32}", (await w.get("/nope", headers={"X-Request-ID": "a b<"})).headers["X-Request-ID"]
        )


@pytest.mark.asyncio
async def test_an_unexpected_failure_tells_an_id_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/very/private/path.py secret")

    async with world(tmp_path) as w:
        monkeypatch.setattr(type(w.context.tasks), "stats", broken)
        answer = await w.get("/api/stats")
        assert (answer.status, answer.code) == (500, "internal")
        assert b"private" not in answer.body
        assert b"RuntimeError" not in answer.body
        assert answer.json["error"]["details"]["request_id"] == answer.headers["X-Request-ID"]
        assert answer.headers["Server"] == "comfyd"


@pytest.mark.asyncio
async def test_headers_that_every_answer_has(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in ("/health", "/nope", "/docs", "/tasks"):
            headers = (await w.get(path)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in headers


def test_every_code_used_by_the_api_is_in_the_table() -> None:
    folder = Path(create_app.__code__.co_filename).parent
    used = {code for file in folder.glob("*.py") for code in re.findall(r'code="([a-z_]+)"', file.read_text())}
    assert used <= set(HTTP_STATUS)


@pytest.mark.asyncio
async def test_answers_match_their_schemas(tmp_path: Path) -> None:
    """Every GET without parameters is compared with what the document says about it."""
    import jsonschema

    async with world(tmp_path) as w:
        await w.post("/tasks/create/paint")
        document = (await w.get("/openapi.json")).json
        checked = 0
        for path, methods in document["paths"].items():
            content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            if "{" in path or "$ref" not in schema:
                continue
            answer = await w.get(path)
            whole = {**schema, "components": document["components"]}
            jsonschema.validate(answer.json, json.loads(json.dumps(whole)))
            checked += 1
        assert checked >= 15
