"""C4-C6: the queue in PostgreSQL; comfyd's store, procrastinate, pgqueuer and bare asyncpg on one server with its stock
durability. C6 also embedded. The idle worker of comfyd is another node: it hears of a task from the server alone."""

import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.harness import (
    PEERS,
    REPOSITORY,
    Goal,
    Options,
    Result,
    Samples,
    goal_above,
    goal_below,
    temporary_root,
)
from benchmarks.postgres_side import BODY, Pickups, checked, rate
from benchmarks.queueing import DONE, PARAMS, now
from comfyd.host import clock
from comfyd.model.task import NewTask, Slot
from comfyd.store.open import Shared, Stores, open_stores
from tests.postgres import Server, running_server

ROWS = ("C4", "C5", "C6")
STOCK = {"fsync": "on", "synchronous_commit": "on", "shared_buffers": "128MB", "max_connections": "100"}
SLOTS = 10
"""As many as pgqueuer takes at once."""
ENQUEUE, PICKUP = "C4 enqueue, callers: 1 (1/s)", "C6 enqueue to start, idle worker (ms)"
WORK = "C5 claim + complete, at once: {} (1/s)"
NEW = NewTask(workflow_name="w", environment="comm", params=PARAMS)
_FLOOR = "CREATE TABLE task (seq bigserial PRIMARY KEY, state int NOT NULL DEFAULT 0, body text NOT NULL)"
_QUEUE = "CREATE INDEX waiting ON task (seq) WHERE state = 0"
_CLAIM = """UPDATE task SET state = 1 WHERE seq = (
    SELECT seq FROM task WHERE state = 0 ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING seq, body"""


def slots(many: int) -> list[Slot]:
    return [Slot(key=f"comfyui/{n}", generation=f"g{n}", port=1, environment="comm", instance="i") for n in range(many)]


class Node:
    """A node without instances: its worker claims when it is woken, as dispatch does."""

    def __init__(self, stores: Stores, kick: asyncio.Event) -> None:
        self.tasks = stores.tasks
        self.kick = kick
        self.pickups = Pickups()

    async def enqueue(self) -> None:
        await self.tasks.enqueue(NEW, now())

    async def work(self, many: int) -> int:
        """Claim for all free slots, then a slot finishes and claims in one commit, until nothing is left."""
        done = 0

        async def go_on(claim: Any) -> None:
            nonlocal done
            following = [claim]
            while following:
                lease, slot = following[0].lease, following[0].slot
                _, following = await self.tasks.finish_and_claim(lease, DONE, [slot], 60, now())
                done += 1

        await asyncio.gather(*(go_on(claim) for claim in await self.tasks.claim(slots(many), 60, now())))
        return done

    async def idle(self) -> None:
        """Each task is finished as soon as its start is noted."""
        while True:
            self.kick.clear()
            claims = await self.tasks.claim(slots(1), 60, now())
            if claims:
                self.pickups.job()
                await self.tasks.finish(claims[0].lease, DONE, now())
            else:
                await self.kick.wait()


@asynccontextmanager
async def opened(folder: Path, url: str | None) -> AsyncIterator[Node]:
    kick = asyncio.Event()
    shared = None if url is None else Shared(url, kick.set, lambda reason: None)
    (folder / "state").mkdir(parents=True, exist_ok=True)
    async with open_stores(folder / "state/comfyd.db", clock.boot_id(), 100_000, shared=shared) as stores:
        yield Node(stores, kick)


async def pickup(enqueue: Callable[[], Awaitable[object]], node: Node, many: int) -> float:
    """Median ms from the call until the idle worker of `node` has the task in its hands."""
    worker = asyncio.create_task(node.idle())
    found = await node.pickups.measure(enqueue, many)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return statistics.median(found) * 1000


@dataclass(frozen=True)
class Scale:
    """rows: only these are measured."""

    seconds: float
    tasks: int
    pickups: int
    rows: frozenset[str]


async def _comfyd(server: Server, folder: Path, samples: Samples, scale: Scale) -> None:
    async with opened(folder / "a", server.url()) as one, opened(folder / "b", server.url()) as other:
        for many in (1, SLOTS) if "C5" in scale.rows else ():
            await asyncio.gather(*(one.enqueue() for _ in range(scale.tasks)))
            started = time.perf_counter()
            done = checked(await one.work(many), scale.tasks)
            samples.add(WORK.format(many), "comfyd", done / (time.perf_counter() - started))
        if "C6" in scale.rows:
            samples.add(PICKUP, "comfyd", await pickup(one.enqueue, other, scale.pickups))
        if "C4" in scale.rows:
            samples.add(ENQUEUE, "comfyd", await rate(one.enqueue, scale.seconds))


async def _embedded(folder: Path, samples: Samples, scale: Scale) -> None:
    async with opened(folder / "c", None) as node:

        async def enqueue() -> None:
            await node.enqueue()
            node.kick.set()

        samples.add(PICKUP, "comfyd, embedded", await pickup(enqueue, node, scale.pickups))


async def _floor(server: Server, samples: Samples, scale: Scale) -> None:
    """One connection, one statement per step; what is measured against it is what everything else costs."""
    db = await asyncpg.connect(server.url())
    try:
        await db.execute(f"{_FLOOR}; {_QUEUE}")
        insert = await db.prepare("INSERT INTO task (body) VALUES ($1)")
        await insert.executemany([(BODY,)] * scale.tasks)
        claim, finish = await db.prepare(_CLAIM), await db.prepare("UPDATE task SET state = 2 WHERE seq = $1")
        started, done = time.perf_counter(), 0
        while (row := await claim.fetchrow()) is not None:
            await finish.fetch(row["seq"])
            done += 1
        samples.add(WORK.format(1), "floor", checked(done, scale.tasks) / (time.perf_counter() - started))
        samples.add(ENQUEUE, "floor", await rate(lambda: insert.fetch(BODY), scale.seconds))
    finally:
        await db.close()


def _peer(system: str, server: Server, samples: Samples, scale: Scale) -> None:
    program = REPOSITORY / "benchmarks/postgres_side.py"
    if not (PEERS / "python").exists():
        samples.remarks.append(f"{system} is not installed here: run benchmarks/setup.sh")
        return
    argv = [
        str(PEERS / "python"),
        str(program),
        system,
        server.url(),
        str(scale.seconds),
        str(scale.tasks),
        str(scale.pickups),
    ]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if told.returncode:
        samples.remarks.append(f"{system}: {told.stderr.strip().splitlines()[-1]} (run benchmarks/setup.sh)")
        return
    found = json.loads(told.stdout)
    samples.add(WORK.format(SLOTS), system, found["work"])
    samples.add(PICKUP, system, found["pickup"])
    samples.add(ENQUEUE, system, found["enqueue"])


def run(options: Options) -> Result:
    """Each system gets a server of its own, so that none meets what another left behind."""
    samples = Samples("")
    rows = options.rows or frozenset(ROWS)
    scale = Scale(0.5, 200, 10, rows) if options.quick else Scale(3.0, 3000, 100, rows)
    for _ in range(1 if options.quick else options.rounds):
        for system in ("comfyd", "floor", "pgqueuer", "procrastinate"):
            if options.wants(system):
                with running_server(**STOCK) as server, temporary_root("sharing") as folder:
                    if system == "comfyd":
                        asyncio.run(_comfyd(server, folder, samples, scale))
                        if "C6" in rows:
                            asyncio.run(_embedded(folder, samples, scale))
                    elif system == "floor":
                        asyncio.run(_floor(server, samples, scale))
                    else:
                        _peer(system, server, samples, scale)
    return Result("C. Queue in PostgreSQL", samples, list(_goals(samples)))


def _goals(s: Samples) -> Iterator[Goal]:
    one, ten = WORK.format(1), WORK.format(SLOTS)
    yield goal_above("C4", "enqueue, to the floor", s.ratio(ENQUEUE, "comfyd", "floor"), 0.45, "x", _shown(s, ENQUEUE))
    yield goal_above("C4", "enqueue, to pgqueuer", s.ratio(ENQUEUE, "comfyd", "pgqueuer"), 1.2, "x")
    yield goal_above("C5", "claim + complete, to pgqueuer", s.ratio(ten, "comfyd", "pgqueuer"), 1, "x", _shown(s, ten))
    yield goal_above("C5", "claim + complete, to procrastinate", s.ratio(ten, "comfyd", "procrastinate"), 1, "x")
    yield goal_above("C5", "one at a time, to the floor", s.ratio(one, "comfyd", "floor"), 0.45, "x", _shown(s, one))
    yield goal_below("C6", "start, embedded", s.median(PICKUP, "comfyd, embedded"), 2, "ms", _shown(s, PICKUP))
    yield goal_below("C6", "start, PostgreSQL", s.median(PICKUP, "comfyd"), 5, "ms")


def _shown(s: Samples, measure: str) -> str:
    found = (f"{system} {s.median(m, system):,.1f}" for m, system in s.values if m == measure)
    return f" ({', '.join(found)})"
