"""The engines that the behaviour suite runs against, and the few things it asks of one besides the protocols."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from comfyd.core.rank import rank_cost
from comfyd.model.base import Now
from comfyd.model.task import Claim, NewTask, Outcome, Slot, TaskState
from comfyd.store.open import Stores, open_stores

DONE = Outcome(state=TaskState.COMPLETED, output={"urls": ["/out/0"], "files": [], "text": []})
BROKEN = Outcome(state=TaskState.FAILED, message="node 3 raised")
TRY_AGAIN = Outcome(state=TaskState.PENDING, message="it crashed")
LOST = Outcome(state=TaskState.PENDING, message="instance lost", charged=False)
LEASE_S = 60.0


class SqliteEngine:
    """One database file that can be opened again; time passes only when told to."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "state" / "comfyd.db"
        self.boot_id = "boot-1"
        self._mono = 1000.0
        self._wall = 1_800_000_000.0

    @asynccontextmanager
    async def open(self, event_rows: int = 100_000) -> AsyncIterator[Stores]:
        async with open_stores(self.database, self.boot_id, event_rows) as stores:
            yield stores

    def now(self) -> Now:
        return Now(self._mono, self._wall)

    async def pass_time(self, seconds: float) -> None:
        """Leases age by `seconds`."""
        self._mono += seconds
        self._wall += seconds

    def jump_wall(self, seconds: float) -> None:
        """Someone set the clock of this machine."""
        self._wall += seconds

    def reboot(self) -> None:
        """The next open is in another boot, whose clock starts anew."""
        self.boot_id += "+"
        self._mono = 5.0


def slot(number: int = 0, environment: str = "comm") -> Slot:
    return Slot(
        key=f"comfyui/{number}",
        generation=f"g{number}",
        port=3001 + number,
        environment=environment,
        instance=f"instance-{number}",
    )


def new(workflow: str = "draw", environment: str = "comm", **fields: Any) -> NewTask:
    fields.setdefault("rank_cost", rank_cost(fields.get("priority", "normal")))
    fields.setdefault("params", {"input_data": {"wf_json": {"1": {"class_type": "EmptyImage", "inputs": {}}}}})
    return NewTask(workflow_name=workflow, environment=environment, **fields)


async def claim_one(stores: Stores, engine: SqliteEngine, number: int = 0) -> Claim:
    (claim,) = await stores.tasks.claim([slot(number)], LEASE_S, engine.now())
    return claim


async def enqueue(stores: Stores, engine: SqliteEngine, *args: Any, **fields: Any) -> str:
    task, made = await stores.tasks.enqueue(new(*args, **fields), engine.now())
    assert made
    return task.task_id
