"""The API over real stores and real decisions, with a control loop that starts no process but says it did."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from comfyd.api.app import serve
from comfyd.api.context import ApiContext
from comfyd.core.config import fallback_state, parse
from comfyd.core.plan import plan
from comfyd.core.resolve import resolve
from comfyd.environments.scan import read_config_files
from comfyd.host import clock
from comfyd.live import ConfigView, Live
from comfyd.metrics import Metrics
from comfyd.model.base import Now
from comfyd.model.observed import ExitInfo, InstallStep, ObservedEnvironment, ObservedProcess, ObservedState, Phase
from comfyd.model.paths import Paths
from comfyd.model.plan import InstallEnvironment, StartProcess, StopProcess
from comfyd.model.process import DesiredEnvironment
from comfyd.model.sources import MachineFacts
from comfyd.settings import Settings
from comfyd.store.open import open_stores
from comfyd.wiring import variables_from

JSON = {"Content-Type": "application/json"}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}
MAIN = {"id": 0, "port": 3001, "name": "main", "extra_args": "--lowvram"}
SPARE = {"id": 1, "port": 3002, "name": "spare", "enabled": False}


def now() -> Now:
    return Now(clock.mono(), clock.wall())


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code; fails unless the body is exactly the error shape."""
        assert set(self.json) == {"error", "detail"}, self.body
        assert set(self.json["error"]) == {"code", "message", "details"}
        assert self.json["detail"] == self.json["error"]["message"] != ""
        assert self.headers["Content-Type"].startswith("application/json")
        return str(self.json["error"]["code"])


@dataclass
class World:
    """crashing, stuck: keys that end at once, or never become ready. deaf: keys that do not stop.
    prepared: environments whose install is done at once; installs: what was asked of the installer."""

    root: Path
    context: ApiContext
    port: int = 0
    crashing: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    prepared: set[str] = field(default_factory=lambda: {"comm"})
    installs: list[tuple[str, str]] = field(default_factory=list)
    processes: dict[str, ObservedProcess] = field(default_factory=dict)
    session: aiohttp.ClientSession | None = None

    @property
    def live(self) -> Live:
        return self.context.live

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def call(self, method: str, path: str, json: Any = None, **more: Any) -> Answer:
        assert self.session is not None
        async with self.session.request(method, self.url + path, json=json, **more) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.call("GET", path, **more)

    async def post(self, path: str, json: Any = None, **more: Any) -> Answer:
        return await self.call("POST", path, json, **more)

    def write_instances(self, *instances: dict[str, Any]) -> None:
        (self.root / "instances.json").write_text(json.dumps({"instances": instances}))

    def phase(self, key: str) -> Phase | None:
        return self.processes[key].phase if key in self.processes else None

    async def settle(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`, looking again after every pass."""
        async with asyncio.timeout(10):
            while not reached():
                await self.live.passes.wait_changed(self.live.passes.seq)

    async def run_control(self) -> None:
        while True:
            self.live.wake.clear()
            if await self.reconcile_once():
                self.live.wake.set()
            await self.live.wake.wait()

    async def reconcile_once(self) -> bool:
        """One pass as control makes it. Returns whether the world moved."""
        context, live = self.context, self.live
        variables = variables_from(context.settings)
        files = read_config_files(context.paths)
        before = live.config.get()
        parsed = parse(files, variables, before.desired)
        desired = parsed.desired or (before.desired if before.desired.instances else fallback_state(files, variables))
        state = "ok" if parsed.desired else "stale"
        live.config.set(
            ConfigView(desired=desired, issues=parsed.issues, state=state, path=str(files.instances.path), files=files)
        )
        overrides = await context.node.overrides()
        assert context.facts is not None
        resolved = resolve(desired, overrides, variables, context.facts, now())
        observed = self.observed()
        decided = plan(resolved, observed, now())
        live.resolved.set(resolved)
        live.observed.set(observed)
        live.plan.set(decided)
        live.overrides.set(overrides)
        moved = self._apply(decided.actions)
        moved = self._age() or moved
        live.observed.set(self.observed())
        live.passes.set(live.passes.get() + 1)
        return moved

    def observed(self) -> ObservedState:
        environments = tuple(self.live.installs.get().values())
        return ObservedState(processes=tuple(self.processes.values()), environments=environments)

    def _apply(self, actions: Any) -> bool:
        for action in actions:
            if isinstance(action, StartProcess):
                self._start(action)
            elif isinstance(action, StopProcess) and action.key not in self.deaf:
                self._end(action.key, asked=True)
            elif isinstance(action, InstallEnvironment):
                self._install(action.environment)
        return bool(actions)

    def _install(self, wish: DesiredEnvironment) -> None:
        """Done at once for the prepared ones; the others stay in their first step."""
        prepared = wish.name in self.prepared
        found = ObservedEnvironment(
            name=wish.name,
            state="installed" if prepared else "installing",
            installed=prepared,
            generation=1 if prepared else None,
            fingerprint=wish.fingerprint if prepared else "",
            models_fingerprint=wish.spec.models_fingerprint if prepared else "",
            installing_fingerprint=wish.fingerprint,
            steps=(InstallStep(name="clone", state="running"),),
        )
        self.installs.append((wish.name, wish.fingerprint))
        self.live.installs.set({**self.live.installs.get(), wish.name: found})

    def _start(self, action: StartProcess) -> None:
        wish, before = action.process, self.processes.get(action.key)
        self.processes[action.key] = ObservedProcess(
            key=action.key,
            phase=Phase.STARTING,
            pid=1,
            generation=uuid.uuid4().hex,
            fingerprint=wish.fingerprint,
            port=wish.spec.port,
            gpus=wish.gpus,
            started_mono=now().mono,
            crashes=before.crashes if before else 0,
        )

    def _end(self, key: str, asked: bool) -> None:
        run, at = self.processes[key], now()
        end = ExitInfo(code=1, asked=asked, at=at.mono, wall=at.wall, fingerprint=run.fingerprint)
        crashes = run.crashes if asked else run.crashes + 1
        self.processes[key] = ObservedProcess(key=key, phase=Phase.GONE, last_exit=end, crashes=crashes)

    def _age(self) -> bool:
        """Starting ones become ready, or crash."""
        moved = False
        for key, run in list(self.processes.items()):
            if run.phase is not Phase.STARTING or key in self.stuck:
                continue
            moved = True
            if key in self.crashing:
                self._end(key, asked=False)
            else:
                self.processes[key] = run.model_copy(update={"phase": Phase.READY, "ready_since_mono": now().mono})
        return moved


def lay_out(root: Path) -> None:
    """Two environments, the second without instances, and a stored workflow."""
    for name, workflows in (("comm", ["paint", "sketch"]), ("aua-sp", ["swap"])):
        folder = root / "config/environments" / name
        (folder / "workflows").mkdir(parents=True)
        config = {"name": name, "description": f"the {name} one", "port": 3009, "workflows": workflows}
        config["models"] = [{"url": "https://user:secret@example.org/m.safetensors?token=secret", "type": "vae"}]
        (folder / "config.json").write_text(json.dumps(config))
        (root / "build" / name).mkdir(parents=True)
        (root / "build" / name / "install.sh").write_text("#!/bin/sh\n")
    (root / "config/environments/comm/workflows/paint.json").write_text(json.dumps(GRAPH))
    (root / "workspace/logs").mkdir(parents=True)
    (root / "workspace/.comfyd").mkdir(mode=0o700)


@contextlib.asynccontextmanager
async def world(root: Path, *instances: dict[str, Any], control: bool = True, **given: Any) -> AsyncIterator[World]:
    """A served API in `root`. instances: of instances.json (default MAIN and SPARE). given: settings."""
    settings = Settings().model_copy(update={"root": root, "port": 0, **given})
    paths = Paths.under(root)
    lay_out(root)
    facts = MachineFacts(paths, container=clock.container_id())
    async with open_stores(
        paths.database, clock.boot_id(), settings.event_log_rows, max_queued=settings.max_queued
    ) as stores:
        context = ApiContext(Live(), stores.node, stores.tasks, settings, paths, now, Metrics(), facts)
        made = World(root, context)
        made.write_instances(*(instances or (MAIN, SPARE)))
        async with serve(context) as listeners, aiohttp.ClientSession() as session:
            made.port, made.session = listeners.port, session
            loop = asyncio.create_task(made.run_control()) if control else None
            try:
                if loop:
                    await made.settle(lambda: context.live.passes.get() > 0)
                yield made
            finally:
                if loop:
                    loop.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await loop
