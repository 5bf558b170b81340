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
from comfyd.store.postgres_tasks import PostgresTasks
from tests.postgres import Server

DONE = Outcome(state=TaskState.COMPLETED, output={"urls": ["/out/0"], "files": [], "text": []})
BROKEN = Outcome(state=TaskState.FAILED, message="node 3 raised")
TRY_AGAIN = Outcome(state=TaskState.PENDING, message="it crashed")
LOST = Outcome(state=TaskState.PENDING, message="instance lost", charged=False)
CRASHED = Outcome(state=TaskState.PENDING, message="it died", charged=False, crashed=True)
LEASE_S = 60.0


class SqliteEngine:
    """One database file that can be opened again; time passes only when told to.

    boot_ends_leases: whether those of another boot have run out. forgets: whether answers are lost on the way.
    """

    boot_ends_leases = True
    forgets = False

    def __init__(self, folder: Path) -> None:
        self.database = folder / "state" / "comfyd.db"
        self.boot_id = "boot-1"
        self.max_queued = 0
        self._mono = 1000.0
        self._wall = 1_800_000_000.0

    @asynccontextmanager
    async def open(self, event_rows: int = 100_000) -> AsyncIterator[Stores]:
        async with open_stores(self.database, self.boot_id, event_rows, max_queued=self.max_queued) as stores:
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
        self._admin: Any = None
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
        async with (
            self.connection() as self._admin,
            open_stores(path, self.boot_id, event_rows, shared=shared, max_queued=self.max_queued) as stores,
        ):
            yield stores

    async def prepare(self, still: bool = True) -> None:
        """The schema as a first daemon makes it, with a clock that stands still unless the server's own is wanted."""
        self._made = True
        async with self.connection() as db:
            await db.execute(f"CREATE SCHEMA {self.schema}")
            await migrate(db)
            if still:
                await db.execute(_TEST_CLOCK)
        if still:
            await self._set_clock()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        db = await asyncpg.connect(self.url, timeout=30)
        try:
            yield db
        finally:
            await db.close()

    def lose_answers(self, stores: Stores) -> None:
        """Whatever is committed is sent again, as if the connection had been lost just then."""
        tasks = stores.tasks
        assert isinstance(tasks, PostgresTasks)
        link = tasks._link
        call = link.call

        async def twice(work: Any, *more: Any) -> Any:
            if more:
                return await call(work, *more)

            async def run(db: Any, again: bool) -> Any:
                await work(db, False)
                return await work(db, True)

            return await call(run, *more)

        link.call = twice  # type: ignore[method-assign]

    async def _set_clock(self) -> None:
        if self._admin is not None and not self._admin.is_closed():
            await self._admin.execute("UPDATE test_clock SET us = $1", int(self._server_s * 1e6))
            return
        async with self.connection() as db:
            await db.execute("UPDATE test_clock SET us = $1", int(self._server_s * 1e6))

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds)
        self._server_s += seconds
        if seconds:
            await self._set_clock()


class ForgetfulEngine(PostgresEngine):
    """The answer to everything is lost once, after it was committed (but for `clear`: only it could count)."""

    forgets = True

    @asynccontextmanager
    async def open(self, event_rows: int = 100_000, database: Path | None = None) -> AsyncIterator[Stores]:
        async with super().open(event_rows, database) as stores:
            self.lose_answers(stores)
            yield stores


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
