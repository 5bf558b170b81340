"""The installer of the running daemon: at most one install per environment, published in `live.installs`.

Owns: the cell `installs`, the install events, when an environment is looked at on disk again. Must not: decide what
is to be installed (plan does), or let one environment's failure reach another.
"""

import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from comfyd.environments.install import Site, install
from comfyd.environments.models import ModelFetcher
from comfyd.environments.record import STEPS, InstallRecord, load_record
from comfyd.environments.recover import recover
from comfyd.environments.tree import known_environments, observe, signature
from comfyd.errors import ComfydError
from comfyd.host.clock import wall
from comfyd.live import Live
from comfyd.logs import get_logger
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.observed import InstallStep, ObservedEnvironment
from comfyd.model.paths import Paths
from comfyd.model.process import DesiredEnvironment
from comfyd.settings import Settings
from comfyd.store.protocol import NodeStore

log = get_logger(__name__)
_Seen = dict[str, tuple[object, ...]]


class Installer:
    """Async context manager. Leaving it ends running installs as a group; they are tried again at the next boot."""

    def __init__(
        self, live: Live, node_store: NodeStore, settings: Settings, paths: Paths,
        environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._live = live
        self._store = node_store
        self._settings = settings
        self._paths = paths
        variables = dict(os.environ if environ is None else environ)
        self._site = Site(paths, settings, variables, ModelFetcher(paths, settings, variables))
        self._group: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._waiting: dict[str, DesiredEnvironment] = {}
        self._running: set[str] = set()
        self._settled = anyio.Event()
        self._signatures: _Seen = {}
        self._events, self._unwritten = anyio.create_memory_object_stream[ObservedEnvironment](math.inf)

    async def __aenter__(self) -> "Installer":
        await self._stack.enter_async_context(self._opened())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as writer:
            writer.start_soon(self._write_events)
            try:
                async with anyio.create_task_group() as group:
                    await self._look(await anyio.to_thread.run_sync(known_environments, self._paths))
                    group.start_soon(self._settle)
                    self._group = group
                    for action in self._waiting.values():
                        self.install(action)
                    try:
                        yield
                    finally:
                        self._group = None
                        group.cancel_scope.cancel()
            finally:
                self._events.close()
                with anyio.CancelScope(shield=True):
                    await self._site.fetcher.aclose()

    def install(self, action: DesiredEnvironment) -> None:
        """Start bringing an environment to `action.fingerprint` unless an install of it runs. Does not wait."""
        if self._group is None:
            self._waiting[action.name] = action
            return
        if action.name in self._running:
            return
        self._running.add(action.name)
        seen = self._seen(action.name)
        steps = tuple(InstallStep(name=name) for name in STEPS)
        changes = {"state": "installing", "installing_fingerprint": action.fingerprint, "steps": steps, "progress": 0.0}
        self._publish(seen.model_copy(update={**changes, "log": str(self._paths.install_log(action.name))}))
        self._group.start_soon(self._run, action)

    async def refresh(self, environments: Sequence[EnvironmentSpec]) -> None:
        """Look again at environments whose link or marker changed since we looked, and at new ones. Cheap."""
        names = [spec.name for spec in environments]
        await self._look(names)
        for spec in environments:
            seen = self._live.installs.get().get(spec.name)
            if seen is not None and seen.installed and seen.failures and spec.name not in self._running:
                await self._forgive(spec, seen)

    async def _forgive(self, spec: EnvironmentSpec, seen: ObservedEnvironment) -> None:
        """Other models than those that failed are tried at once."""
        record = await anyio.to_thread.run_sync(load_record, self._paths, spec.name)
        if record is not None and record.models_failed not in ("", spec.models_fingerprint):
            self._publish(seen.model_copy(update={"failures": 0, "failed_mono": None}))

    async def _look(self, names: Sequence[str]) -> None:
        idle = [name for name in names if name not in self._running]
        found = await anyio.to_thread.run_sync(self._changed, idle, dict(self._signatures))
        for name, (mark, seen) in found.items():
            if name not in self._running:
                self._signatures[name] = mark
                self._publish(seen)

    def _changed(self, names: Sequence[str], known: _Seen) -> dict[str, tuple[tuple[object, ...], ObservedEnvironment]]:
        changed: dict[str, tuple[tuple[object, ...], ObservedEnvironment]] = {}
        for name in names:
            mark = signature(self._paths, name)
            if known.get(name) != mark:
                changed[name] = (mark, observe(self._paths, name, skip_models=self._settings.skip_model_download))
        return changed

    async def _settle(self) -> None:
        """Clear up after a killed daemon before anything new is built."""
        try:
            for name in await anyio.to_thread.run_sync(known_environments, self._paths):
                try:
                    await recover(self._paths, name)
                except OSError as error:
                    log.error("leftovers of an install could not be cleared", environment=name, reason=str(error))
                self._signatures.pop(name, None)
            await self._look(sorted(self._live.installs.get()))
        finally:
            self._settled.set()
            self._live.wake.set()

    async def _run(self, action: DesiredEnvironment) -> None:
        name = action.name
        record: InstallRecord | None = None
        try:
            await self._settled.wait()
            report = partial(self._report, action.fingerprint)
            log.info("install started", environment=name, fingerprint=action.fingerprint)
            record = await install(self._site, action.spec, action.fingerprint, report, wait=True)
        except Exception:
            log.exception("install ended by a fault of comfyd", environment=name)
        finally:
            with anyio.CancelScope(shield=True):
                await self._finished(name, record)

    async def _finished(self, name: str, record: InstallRecord | None) -> None:
        self._signatures[name] = await anyio.to_thread.run_sync(signature, self._paths, name)
        look = partial(observe, self._paths, name, skip_models=self._settings.skip_model_download)
        seen = await anyio.to_thread.run_sync(look)
        if record is not None and record.state == "conflict" and not seen.installed:
            seen = seen.model_copy(update={"state": "conflict"})
        self._running.discard(name)
        self._publish(seen)
        reason = seen.condition.message if seen.condition else ""
        log.info("install ended", environment=name, state=seen.state, generation=seen.generation, reason=reason)
        self._live.wake.set()

    def _report(self, fingerprint: str, record: InstallRecord) -> None:
        changes: dict[str, object] = {"state": "installing", "installing_fingerprint": fingerprint}
        changes |= {"steps": record.steps, "progress": record.progress, "log": record.log}
        self._publish(self._seen(record.environment).model_copy(update=changes))
        self._live.wake.set()  # what people are shown is what the latest pass observed

    def _seen(self, name: str) -> ObservedEnvironment:
        return self._live.installs.get().get(name) or ObservedEnvironment(name=name)

    def _publish(self, seen: ObservedEnvironment) -> None:
        before = self._live.installs.get()
        self._live.installs.set({**before, seen.name: seen})
        if _headline(before.get(seen.name)) != _headline(seen):
            self._events.send_nowait(seen)

    async def _write_events(self) -> None:
        async with self._unwritten:
            async for seen in self._unwritten:
                step = next((s.name for s in seen.steps if s.state == "running"), None)
                data: dict[str, object] = {"state": seen.state, "generation": seen.generation, "step": step}
                data["progress"] = seen.progress
                if seen.condition is not None:
                    data["condition"] = seen.condition.as_dict()
                try:
                    await self._store.append_event("install", seen.name, data, wall())
                except ComfydError as error:
                    log.error("install event was not stored", environment=seen.name, reason=error.message)


def _headline(seen: ObservedEnvironment | None) -> tuple[object, ...]:
    """What makes an event: the state, the running step, the generation, the reason."""
    if seen is None:
        return ("absent", None, None, None)
    step = next((s.name for s in seen.steps if s.state == "running"), None)
    return (seen.state, step, seen.generation, seen.condition.reason if seen.condition else None)
