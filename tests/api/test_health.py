"""Health, readiness, metrics."""

from pathlib import Path

import pytest

from comfyd.errors import StoreError
from comfyd.model.observed import Phase
from tests.api.world import world


@pytest.mark.asyncio
async def test_health_always_answers(tmp_path: Path) -> None:
    async with world(tmp_path, control=False) as w:
        for path in ("/health", "/api/health", "/healthz", "/livez"):
            answer = await w.get(path)
            assert answer.status == 200
            assert answer.json["status"] == "healthy"
            assert answer.json["timestamp"].endswith("Z")


@pytest.mark.asyncio
async def test_ready_after_the_first_pass_and_until_draining(tmp_path: Path) -> None:
    async with world(tmp_path, control=False) as w:
        early = await w.get("/ready")
        assert (early.status, early.code) == (503, "not_ready")
        assert early.headers["Retry-After"]
        assert "first pass" in early.json["error"]["details"]["reasons"][0]
        await w.reconcile_once()
        assert (await w.get("/readyz")).json["status"] == "ready"
        w.live.queue_trouble.set("out of reach")
        lost = await w.get("/ready")
        assert (lost.status, lost.json["error"]["details"]["reasons"]) == (503, ["task store: out of reach"])
        w.live.queue_trouble.set("")
        assert (await w.get("/ready")).status == 200
        w.live.draining.set(True)
        late = await w.get("/ready")
        assert late.status == 503
        assert "draining" in late.json["detail"]
        assert (await w.get("/health")).status == 200
        assert (await w.get("/api/comfyui/status")).status == 200


@pytest.mark.asyncio
async def test_metrics_in_both_formats(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        await w.post("/tasks/create/paint")
        await w.get("/nope")
        page = await w.get("/metrics")
        text = page.body.decode()
        assert page.headers["Content-Type"].startswith("text/plain")
        for line in (
            'comfyd_instances{state="ready"} 1.0',
            'comfyd_instance_ready{instance="comfyui/0"} 1.0',
            'comfyd_tasks{state="pending"} 1.0',
            'comfyd_tasks_created_total{environment="comm"} 1.0',
            'comfyd_http_requests_total{method="POST",route="/tasks/create/{workflow_name}",status="200"} 1.0',
            'comfyd_http_requests_total{method="other",route="other",status="404"} 1.0',
        ):
            assert line in text, line
        newer = await w.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert newer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert newer.body.endswith(b"# EOF\n")


@pytest.mark.asyncio
async def test_a_lost_queue_gives_503_on_task_routes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise StoreError("the database cannot be reached; it is tried again")

    async with world(tmp_path) as w:
        for name in ("stats", "list", "enqueue", "load"):
            monkeypatch.setattr(type(w.context.tasks), name, lost)
        for method, path in (("GET", "/tasks"), ("GET", "/api/stats"), ("POST", "/tasks/create/paint")):
            answer = await w.call(method, path)
            assert (answer.status, answer.code) == (503, "store_unavailable")
            assert answer.headers["Retry-After"]
        assert (await w.get("/api/comfyui/status")).status == 200
        assert "comfyd_task_store_up 0.0" in (await w.get("/metrics")).body.decode()
