"""Health, readiness and metrics."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from aiohttp import web

from comfyd import __version__
from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op
from comfyd.api.views import status_view
from comfyd.api.wire import Answer
from comfyd.core.shown import rfc3339
from comfyd.errors import ComfydError
from comfyd.model.task import TaskStats

STATES = (
    "stopped", "starting", "ready", "unready", "draining", "stopping", "waiting_env", "blocked", "backoff", "failed",
    "conflict", "held",
)  # fmt: skip


class HealthAnswer(Answer):
    """longest_stall_s: how long the daemon's event loop was blocked at worst since its start (0: never for seconds)."""

    status: Literal["healthy"] = "healthy"
    timestamp: str
    version: str = __version__
    longest_stall_s: float = 0.0


class ReadyAnswer(Answer):
    status: Literal["ready"] = "ready"
    timestamp: str


@op("GET", "/health", scope="public", response=HealthAnswer, also=("/api/health", "/healthz", "/livez"))
async def health(call: Call[None, None]) -> HealthAnswer:
    """The daemon answers."""
    stall_s = round(call.context.live.longest_stall_s.get(), 3)
    return HealthAnswer(timestamp=_timestamp(call.context), longest_stall_s=stall_s)


@op("GET", "/ready", scope="public", response=ReadyAnswer, errors=(503,), also=("/readyz",))
async def ready(call: Call[None, None]) -> ReadyAnswer:
    """Whether the daemon takes traffic; 503 lists the reasons if not."""
    live = call.context.live
    reasons = []
    if live.passes.get() == 0:
        reasons.append("starting: the first pass over the configuration is not finished")
    if live.draining.get():
        reasons.append("draining: the daemon is shutting down")
    if trouble := live.queue_trouble.get():
        reasons.append(f"task store: {trouble}")
    if reasons:
        raise ComfydError("; ".join(reasons), code="not_ready", details={"reasons": reasons}, retryable=True)
    return ReadyAnswer(timestamp=_timestamp(call.context))


def _timestamp(context: ApiContext) -> str:
    return rfc3339(context.clock().wall) or ""


@op("GET", "/metrics", scope="client", response=None, media="text/plain")
async def metrics(call: Call[None, None]) -> web.Response:
    """Counters and gauges for Prometheus."""
    context = call.context
    try:
        queue: TaskStats | None = await context.tasks.stats()
    except ComfydError:
        queue = None
    families = _Families(context, queue)
    accept = call.request.headers.get("Accept", "")
    body, content_type = await asyncio.to_thread(_render, list(families.rows()), accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


Row = tuple[str, str, str, dict[str, str], float]


class _Families:
    """(kind, name, help, labels, value) of everything that is measured now."""

    def __init__(self, context: ApiContext, queue: TaskStats | None) -> None:
        self._context = context
        self._queue = queue

    def rows(self) -> Iterator[Row]:
        for name, labels, value in self._context.metrics.samples():
            yield "counter", f"comfyd_{name}", f"comfyd {name.replace('_', ' ')}", labels, value
        status = status_view(self._context)
        counted = Counter(one.state for one in status.instances)
        for state in STATES:
            yield "gauge", "comfyd_instances", "instances by state", {"state": state}, counted[state]
        for one in status.instances:
            labels = {"instance": one.key}
            yield "gauge", "comfyd_instance_ready", "1 if the instance is ready", labels, float(one.ready)
            yield "gauge", "comfyd_instance_restarts", "restarts of the instance", labels, one.restarts
        yield from self._tasks()
        passes = self._context.live.passes.get()
        yield "counter", "comfyd_reconcile_passes", "finished reconcile passes", {}, passes
        stall_s = self._context.live.longest_stall_s.get()
        yield "gauge", "comfyd_longest_stall_seconds", "how long the event loop was blocked at worst", {}, stall_s

    def _tasks(self) -> Iterator[Row]:
        yield "gauge", "comfyd_task_store_up", "1 if the queue can be read", {}, float(self._queue is not None)
        if self._queue is not None:
            for state, count in self._queue.model_dump(exclude={"workflows", "total"}).items():
                yield "gauge", "comfyd_tasks", "tasks by state", {"state": state}, count


def _render(rows: list[Row], accept: str) -> tuple[bytes, str]:
    """The page in the format that `accept` asks for. Imports prometheus_client, so not for the event loop."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

    families: dict[str, Any] = {}
    for kind, name, text, labels, value in rows:
        made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        family = families.setdefault(name, made(name, text, labels=sorted(labels)))
        family.add_metric([labels[label] for label in sorted(labels)], value)

    class Snapshot:
        def collect(self) -> list[Metric]:
            return list(families.values())

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
