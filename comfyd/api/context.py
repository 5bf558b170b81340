"""What every operation is handed. Built by the composition root; the API owns none of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from comfyd.api.gpus import GpuLook
from comfyd.live import Live
from comfyd.metrics import Metrics
from comfyd.model.base import Now
from comfyd.model.paths import Paths
from comfyd.model.sources import MachineFacts
from comfyd.model.view import PauseView
from comfyd.settings import Settings
from comfyd.store.protocol import NodeStore, TaskStore


@dataclass(slots=True)
class ApiContext:
    """live is only read, but for its two wake events; the stores take wishes and tasks. facts: what control resolves
    with, for previews. paused: what is paused of the queue, as last seen."""

    live: Live
    node: NodeStore
    tasks: TaskStore
    settings: Settings
    paths: Paths
    clock: Callable[[], Now]
    metrics: Metrics
    facts: MachineFacts | None = None
    gpus: GpuLook = field(default_factory=GpuLook)
    paused: tuple[PauseView, ...] = ()


CONTEXT: web.AppKey[ApiContext] = web.AppKey("context", ApiContext)
