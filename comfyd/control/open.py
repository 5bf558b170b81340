"""The control room as one context: entering adopts and reconciles, leaving stops or leaves the processes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio

from comfyd.control.logkeeper import LogKeeper
from comfyd.control.loop import Hands, Reconciler
from comfyd.control.pen import Pen
from comfyd.control.supervise import Supervisor
from comfyd.control.watch import Watcher
from comfyd.failpoint import failpoint
from comfyd.live import Live
from comfyd.model.sources import MachineFacts, Variables
from comfyd.settings import Settings
from comfyd.store.protocol import NodeStore

PUBLISH_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class ControlParts:
    """What the composition root hands in. leave: asked at the end; True = instances run on without us."""

    live: Live
    node: NodeStore
    settings: Settings
    hands: Hands
    variables: Variables
    facts: MachineFacts
    leave: Callable[[], bool]


@contextlib.asynccontextmanager
async def open_control(parts: ControlParts) -> AsyncIterator[None]:
    """Adopt, then reconcile until the body ends. A body that fails leaves every process running."""
    live, settings = parts.live, parts.settings
    stopping, told = False, asyncio.Event()

    def changed() -> None:
        (told if stopping else live.wake).set()

    async def run_publishing() -> None:
        """While all processes end, one snapshot serves all that happens within the pause."""
        while True:
            await told.wait()
            told.clear()
            reconciler.publish()
            await anyio.sleep(PUBLISH_PAUSE_S)

    def logs() -> list[str]:
        return [*supervisor.logs(), str(parts.facts.paths.log_dir / "comfyd.log")]

    pen = Pen(parts.node)
    supervisor = Supervisor(parts.facts.paths, live, pen, changed)
    reconciler = Reconciler(live, parts.node, supervisor, pen, parts.hands, parts.variables, parts.facts)
    watcher = Watcher(live.wake.set, settings.debounce_s, settings.force_polling)
    try:
        async with anyio.create_task_group() as watching:
            await supervisor.open(watching, await parts.node.facts("crash/"))
            watching.start_soon(LogKeeper(logs).run_keeping)
            await reconciler.open()
            async with anyio.create_task_group() as deciding:
                deciding.start_soon(pen.run_writing)
                deciding.start_soon(watcher.run_watching)
                deciding.start_soon(reconciler.run_reconciling, watcher, settings.poll_s)
                try:
                    yield
                finally:
                    watcher.close()
                stopping = True
                deciding.cancel_scope.cancel()
            if not parts.leave():
                told.set()
                watching.start_soon(run_publishing)
                await supervisor.stop_all(0.0)
                reconciler.publish()
                failpoint("children_stopped")
            watching.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await pen.flush()
            await supervisor.close()
