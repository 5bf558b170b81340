"""C7: how long a claim takes with 1,000, 100,000 and 1,000,000 queued tasks, embedded and in PostgreSQL.

The tasks are put there by bulk SQL. Each claim is followed by its finish and a new task, so the depth stays.
"""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from benchmarks.harness import Goal, Options, Result, Samples, goal_below, temporary_root
from benchmarks.queueing import DONE, now
from benchmarks.sharing import NEW, STOCK, Node, opened, slots
from tests.postgres import Server, running_server

ROWS = ("C7",)
DEPTHS = (1_000, 100_000, 1_000_000)
ENGINES = ("embedded", "PostgreSQL")
CLAIMS = 1_000
_COLUMNS = "task_id, workflow_name, environment, state, priority, rank, max_attempts, created_at"
_VALUES = "'task_' || n, 'w', 'comm', 'PENDING', 'normal', 1000000 + n, 3, 1"
_SQLITE = f"""
BEGIN;
WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {{depth}})
INSERT INTO task ({_COLUMNS}) SELECT {_VALUES} FROM s;
INSERT INTO task_params (seq, json) SELECT seq, '{{{{"input_data": {{{{}}}}}}}}' FROM task;
INSERT INTO tally VALUES ('comm', 'w', 'PENDING', {{depth}});
COMMIT;
"""
_POSTGRES = f"""
INSERT INTO comfyd_task ({_COLUMNS}, lane, params)
SELECT {_VALUES}, 'normal', '{{"input_data": {{}}}}' FROM generate_series(1, $1::bigint) AS s(n)"""


async def _latency(node: Node, claims: int) -> list[float]:
    found = []
    for _ in range(claims):
        started = time.perf_counter()
        (claim,) = await node.tasks.claim(slots(1), 60, now())
        found.append((time.perf_counter() - started) * 1000)
        await node.tasks.finish(claim.lease, DONE, now())
        await node.tasks.enqueue(NEW, now())
    return sorted(found)


async def _embedded(folder: Path, depth: int, claims: int) -> list[float]:
    async with opened(folder / str(depth), None):
        pass
    with sqlite3.connect(folder / str(depth) / "state/comfyd.db") as db:
        db.executescript(_SQLITE.format(depth=depth))
    db.close()
    async with opened(folder / f"{depth}", None) as node:
        return await _latency(node, claims)


async def _postgres(server: Server, folder: Path, depth: int, claims: int) -> list[float]:
    async with opened(folder / f"p{depth}", server.url()) as node:
        await node.tasks.stats()
        db = await asyncpg.connect(server.url())
        try:
            await db.execute(_POSTGRES, depth, timeout=300)
            await db.execute("VACUUM ANALYZE comfyd_task", timeout=300)  # as autovacuum does a minute later
        finally:
            await db.close()
        return await _latency(node, claims)


def run(options: Options) -> Result:
    samples = Samples("")
    depths, claims = ((100, 1_000, 10_000), 50) if options.quick else (DEPTHS, CLAIMS)
    for _ in range(1 if options.quick else options.rounds):
        for depth in depths:
            with temporary_root("depth") as folder, running_server(**STOCK) as server:
                _add(samples, "embedded", depth, asyncio.run(_embedded(folder, depth, claims)))
                _add(samples, "PostgreSQL", depth, asyncio.run(_postgres(server, folder, depth, claims)))
    return Result("C. Depth of the queue", samples, list(_goals(samples, depths)))


def _measure(depth: int, which: str = "p99") -> str:
    return f"C7 claim {which}, queued: {depth:,} (ms)"


def _add(samples: Samples, engine: str, depth: int, found: list[float]) -> None:
    samples.add(_measure(depth, "p50"), engine, found[len(found) // 2])
    samples.add(_measure(depth), engine, found[int(len(found) * 0.99)])


def _goals(s: Samples, depths: tuple[int, ...]) -> Iterator[Goal]:
    for engine in ENGINES:
        few = s.median(_measure(depths[0]), engine)
        for depth in depths[1:]:
            many = s.median(_measure(depth), engine)
            ratio = many / few if few and many else None
            yield goal_below("C7", f"claim p99, {engine}, {depth:,} to {depths[0]:,} queued", ratio, 1.5, "x")
