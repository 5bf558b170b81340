"""A queue on PostgreSQL, measured by its own interpreter: SYSTEM URL SECONDS TASKS PICKUPS. Prints JSON: `enqueue` and
`work` per second, `pickup` as a list of seconds."""

import asyncio
import datetime
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

BODY = json.dumps({str(n): {"class_type": "ImageScaleBy", "inputs": {"image": ["0", 0]}} for n in range(28)})
PAUSE_S = 0.05
CONCURRENCY = 10


class Pickups:
    """When each job began, in the order of their being stored: one is on its way at a time."""

    def __init__(self) -> None:
        self.done = 0
        self.began = asyncio.Event()
        self.at = 0.0

    def job(self) -> None:
        self.at = time.perf_counter()
        self.done += 1
        self.began.set()

    async def measure(self, enqueue: Callable[[], Awaitable[object]], many: int) -> list[float]:
        found = []
        for _ in range(many + 3):
            await asyncio.sleep(PAUSE_S)
            self.began.clear()
            started = time.perf_counter()
            await enqueue()
            await asyncio.wait_for(self.began.wait(), 30)
            found.append(self.at - started)
        return found[3:]


async def rate(enqueue: Callable[[], Awaitable[object]], seconds: float) -> float:
    until, done, started = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < until:
        await enqueue()
        done += 1
    return done / (time.perf_counter() - started)


async def pgqueuer(url: str, seconds: float, tasks: int, pickups: int) -> dict[str, Any]:
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode

    seen = Pickups()
    db, other = await asyncpg.connect(url), await asyncpg.connect(url)
    queries = Queries.from_asyncpg_connection(other)
    await queries.install()

    def manager() -> Any:
        made = PgQueuer.from_asyncpg_connection(db)

        @made.entrypoint("run")
        async def run(job: Any) -> None:
            seen.job()

        return made.qm

    async def enqueue() -> None:
        await queries.enqueue("run", BODY.encode())

    await queries.enqueue(["run"] * tasks, [BODY.encode()] * tasks, [0] * tasks)
    started = time.perf_counter()
    await manager().run(batch_size=CONCURRENCY, mode=QueueExecutionMode.drain)
    worked = checked(seen.done, tasks) / (time.perf_counter() - started)
    idle = manager()
    running = asyncio.create_task(idle.run(batch_size=CONCURRENCY, dequeue_timeout=datetime.timedelta(seconds=30)))
    await asyncio.sleep(0.5)
    picked = await seen.measure(enqueue, pickups)
    idle.shutdown.set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {"work": worked, "pickup": picked, "enqueue": await rate(enqueue, seconds)}


async def procrastinate(url: str, seconds: float, tasks: int, pickups: int) -> dict[str, Any]:
    from procrastinate import App, PsycopgConnector

    seen = Pickups()
    app = App(connector=PsycopgConnector(conninfo=url))

    @app.task(name="run")
    async def run(body: str) -> None:
        seen.job()

    async def enqueue() -> None:
        await run.defer_async(body=BODY)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, tasks, 500):
            await run.batch_defer_async(*[{"body": BODY}] * min(500, tasks - first))
        started = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=CONCURRENCY, install_signal_handlers=False)
        worked = checked(seen.done, tasks) / (time.perf_counter() - started)
        running = asyncio.create_task(app.run_worker_async(concurrency=1, install_signal_handlers=False))
        await asyncio.sleep(0.5)
        picked = await seen.measure(enqueue, pickups)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return {"work": worked, "pickup": picked, "enqueue": await rate(enqueue, seconds)}


def checked(done: int, tasks: int) -> int:
    if done != tasks:
        raise AssertionError(f"{done} of {tasks} tasks were done")
    return done


def main() -> None:
    system, url, seconds, tasks, pickups = sys.argv[1:]
    measured = {"pgqueuer": pgqueuer, "procrastinate": procrastinate}[system]
    found = asyncio.run(measured(url, float(seconds), int(tasks), int(pickups)))
    print(json.dumps({**found, "pickup": statistics.median(found["pickup"]) * 1000}))


if __name__ == "__main__":
    main()
