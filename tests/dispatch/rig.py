"""The dispatcher with real stores and stand-ins; the test plays control by publishing what should and does run."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyd.dispatch.pace import Pace
from comfyd.dispatch.worker import Dispatcher
from comfyd.host import clock
from comfyd.live import Live
from comfyd.model.base import Now
from comfyd.model.desired import EnvironmentSpec, InstanceSpec
from comfyd.model.observed import ExitInfo, ObservedProcess, ObservedState, Phase
from comfyd.model.paths import Paths
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ProcessSpec, ResolvedState
from comfyd.model.task import NewTask, Task, TaskState
from comfyd.settings import Settings
from comfyd.store.open import Stores, open_stores
from tests import fake
from tests.fake import Fake, eventually
from tests.graphs import Graph

PACE = Pace(
    poll_s=0.1,
    request_s=1,
    submit_s=1,
    connect_s=0.5,
    reconnect_s=0.1,
    quiet_s=0.5,
    quiet_max_s=2,
    ask_s=0.1,
    unreachable_s=1,
    first_pass_s=2,
    look_s=0.05,
    release_s=3,
    forget_s=0.05,
    cancels_s=0.01,
    device_rest_s=0.05,
    full_disk_rest_s=0.05,
)


COMM = EnvironmentSpec(name="comm", workflows=("w",))


def now() -> Now:
    return Now(clock.mono(), clock.wall())


class Fakes:
    """Makes stand-ins below `root`'s data folder, each with a journal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Fake] = []

    def __call__(self, name: str = "one", **quirks: str) -> Fake:
        folder = self.root / "workspace/data/comm" / name
        folder.mkdir(parents=True)
        made = fake.spawn(folder, JOURNAL=str(folder / "journal"), **quirks)
        self.made.append(made)
        return made.wait_ready()


@dataclass
class Instance:
    """What control would know about one stand-in."""

    number: int
    fake: Fake
    generation: str = "g1"
    phase: Phase = Phase.READY
    run: bool = True
    argv: tuple[str, ...] = ()
    last_exit: ExitInfo | None = None

    @property
    def key(self) -> str:
        return f"comfyui/{self.number}"

    def desired(self) -> DesiredProcess:
        folder = self.fake.folder
        argv = self.argv or ("--output-directory", str(folder / "output"), "--temp-directory", str(folder / "instance"))
        spec = ProcessSpec(key=self.key, argv=("python", "main.py", *argv), cwd="/", port=self.fake.port, log="/log")
        wanted = InstanceSpec(id=self.number, port=self.fake.port, name=f"i{self.number}")
        return DesiredProcess(
            key=self.key, spec=spec, fingerprint="f", run=self.run, environment="comm", instance=wanted
        )

    def observed(self) -> ObservedProcess:
        return ObservedProcess(
            key=self.key, phase=self.phase, generation=self.generation, pid=1, port=self.fake.port,
            last_exit=self.last_exit,
        )  # fmt: skip


@dataclass
class Rig:
    """live is the dispatcher's; `publish` is control's reconcile pass."""

    root: Path
    stores: Stores
    live: Live
    settings: Settings
    instances: list[Instance] = field(default_factory=list)
    environment: EnvironmentSpec = COMM

    @property
    def paths(self) -> Paths:
        return Paths.under(self.root)

    def publish(self) -> None:
        environment = DesiredEnvironment(name="comm", spec=self.environment, fingerprint="")
        processes = tuple(i.desired() for i in self.instances)
        self.live.resolved.set(ResolvedState(processes=processes, environments=(environment,)))
        self.live.observed.set(ObservedState(processes=tuple(i.observed() for i in self.instances)))
        self.live.passes.set(self.live.passes.get() + 1)

    def add(self, fake: Fake, **fields: Any) -> Instance:
        self.instances.append(Instance(len(self.instances), fake, **fields))
        return self.instances[-1]

    def dispatcher(self, **fields: Any) -> Dispatcher:
        node = self.stores.node.node_id
        return Dispatcher(
            self.live, self.stores.tasks, self.settings, self.paths, now, node, **{"pace": PACE, **fields}
        )

    async def enqueue(self, graph: Graph | None, **fields: Any) -> str:
        params = {"input_data": {"wf_json": graph}} if graph is not None else {}
        new = NewTask(workflow_name="w", environment="comm", params=params, **fields)
        task, _ = await self.stores.tasks.enqueue(new, now())
        self.live.task_wake.set()
        return task.task_id

    async def cancel(self, task_id: str) -> None:
        await self.stores.tasks.cancel(task_id, now())
        self.live.task_wake.set()

    async def task(self, task_id: str) -> Task:
        return await self.stores.tasks.get(task_id)

    async def until(self, task_id: str, check: Callable[[Task], bool], timeout_s: float = 15) -> Task:
        async def met() -> bool:
            return check(await self.task(task_id))

        try:
            await eventually(met, timeout_s, "the expected state")
        except AssertionError as error:
            raise AssertionError(f"{error}: {await self.task(task_id)!r}") from None
        return await self.task(task_id)

    async def until_state(self, task_id: str, *states: TaskState, timeout_s: float = 15) -> Task:
        return await self.until(task_id, lambda task: task.status in states, timeout_s)

    async def done(self, task_id: str, timeout_s: float = 15) -> Task:
        task = await self.until_state(
            task_id, TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, timeout_s=timeout_s
        )
        assert task.finished_at is not None
        return task

    async def until_running(self, task_id: str, fake: Fake) -> Task:
        """Until the stand-in has begun the task's prompt."""
        task = await self.until_state(task_id, TaskState.PROCESSING)
        await eventually(lambda: (task.prompt_id, "executed") in journal(fake), 15, "the prompt runs")
        return task

    def stored(self, task: Task) -> list[Path]:
        """The result files, as the task names them."""
        assert task.output_data is not None
        return [self.paths.outputs / task.task_id / file["path_name"] for file in task.output_data["files"]]


def journal(fake: Fake) -> list[tuple[str, str]]:
    """(prompt id, event) of everything the stand-in took and ran; needs JOURNAL."""
    path = Path(fake.environ["JOURNAL"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["prompt_id"], entry["event"]) for entry in map(json.loads, lines)]


@asynccontextmanager
async def rig(root: Path, **settings: Any) -> AsyncIterator[Rig]:
    given = {"lease_s": 30, "shutdown_drain_s": 0, **settings}
    database = root / "workspace/.comfyd/comfyd.db"
    database.parent.mkdir(parents=True)
    async with open_stores(database, clock.boot_id(), 1000) as stores:
        yield Rig(root, stores, Live(), Settings(root=root, **given))
