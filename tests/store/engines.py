"""The engines that the behaviour suite runs against, and the few things it asks of one besides the protocols."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from comfyd.core.rank import rank_cost
from comfyd.model.base import Now
from comfyd.model.task import Claim, NewTask, Outcome, Slot, TaskState
from comfyd.store.open import Shared, Stores, open_stores
from comfyd.store.postgres_schema import migrate
from tests.postgres import Server

DONE = Outcome(state=TaskState.COMPLETED, output={"urls": ["/out/0"], "files": [], "text": []})
BROKEN = Outcome(state=TaskState.FAILED, message="node 3 raised")
TRY_AGAIN = Outcome(state=TaskState.PENDING, message="it crashed")
LOST = Outcome(state=TaskState.PENDING, message="instance lost", charged=False)
LEASE_S = 60.0


class SqliteEngine:
    """One database file that can be opened again; time passes only when told to.

    boot_ends_leases: whether those of another boot have run out.
    """

    boot_ends_leases = True

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


_SCHEMAS = itertools.count()
_TEST_CLOCK = """
CREATE TABLE test_clock (us bigint);
INSERT INTO test_clock VALUES (0);
CREATE OR REPLACE FUNCTION comfyd_now_us() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT us FROM test_clock $$;
"""


class PostgresEngine(SqliteEngine):
    """A schema of its own on a real server, whose clock stands still unless told to move. The node's clock is apart."""

    boot_ends_leases = False

    def __init__(self, folder: Path, server: Server) -> None:
        super().__init__(folder)
        self.schema = f"test_{os.getpid()}_{next(_SCHEMAS)}"
        self.url = server.url(self.schema)
        self._server_s = self._wall
        self._made = False
        self.wakes = 0
        self.troubles: list[str | None] = []

    def _woken(self) -> None:
        self.wakes += 1

    @asynccontextmanager
    async def open(self, event_rows: int = 100_000, database: Path | None = None) -> AsyncIterator[Stores]:
        if not self._made:
            await self.prepare()
        shared = Shared(self.url, self._woken, self.troubles.append)
        path = database or self.database
        async with open_stores(path, self.boot_id, event_rows, shared=shared) as stores:
            yield stores

    async def prepare(self, clock: str = _TEST_CLOCK) -> None:
        """The schema as a first daemon makes it, with another clock."""
        self._made = True
        async with self.connection() as db:
            await db.execute(f"CREATE SCHEMA {self.schema}")
            await migrate(db)
            await db.execute(clock)
        if clock:
            await self._set_clock()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        db = await asyncpg.connect(self.url, timeout=30)
        try:
            yield db
        finally:
            await db.close()

    async def _set_clock(self) -> None:
        async with self.connection() as db:
            await db.execute("UPDATE test_clock SET us = $1", int(self._server_s * 1e6))

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds)
        self._server_s += seconds
        await self._set_clock()


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
