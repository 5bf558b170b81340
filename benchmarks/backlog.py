"""D1-D4: the embedded queue with a backlog of 1,000, 10,000 and 100,000 tasks: one create, one claim, one page, memory.

Each call is alone in its commit, as the only caller on an otherwise idle daemon sees it; the disk is in the figures.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Goal, Options, Result, Samples, goal_below, rss_kib, temporary_root
from comfyd.host import clock
from comfyd.model.base import Now
from comfyd.model.task import Limit, NewTask, Outcome, Slot, TaskFilter, TaskState
from comfyd.store.open import Stores, open_stores

ROWS = ("D1", "D2", "D3", "D4")
SIZES, QUICK_SIZES = (1000, 10_000, 100_000), (100, 200, 1000)
PARAMS: dict[str, Any] = {"input_data": {"wf_json": {"1": {"class_type": "EmptyImage", "inputs": {"width": 64}}}}}
DONE = Outcome(state=TaskState.COMPLETED, output={"files": [], "urls": [], "text": []})
SLOT = Slot(key="comfyui/0", generation="g", port=1, environment="comm", instance="i")
FULL = {"comm": Limit(workflows={"w0": 1})}
"""w0 is most of the backlog, and stands in front."""


def now() -> Now:
    return Now(clock.mono(), clock.wall())


def _new(n: int) -> NewTask:
    return NewTask(workflow_name=f"w{max(0, n % 20 - 17)}", environment="comm", params=PARAMS, user_id=f"u{n % 50}",
                   rank_cost=60_000_000)  # fmt: skip


async def _fill(stores: Stores, size: int) -> None:
    have = (await stores.tasks.stats()).pending
    for start in range(have, size, 1000):
        await asyncio.gather(*(stores.tasks.enqueue(_new(n), now()) for n in range(start, min(size, start + 1000))))


async def _timed(call: Callable[[int], Awaitable[object]], times: int) -> tuple[float, float]:
    """(median, 99th percentile) in ms."""
    took = []
    for n in range(times):
        begun = time.perf_counter()
        await call(n)
        took.append((time.perf_counter() - begun) * 1000)
    took.sort()
    return took[len(took) // 2], took[min(len(took) - 1, int(len(took) * 0.99))]


async def _measure(folder: Path, samples: Samples, options: Options) -> None:
    times = 50 if options.quick else 500
    begun = rss_kib(os.getpid())
    async with open_stores(folder / "state/comfyd.db", clock.boot_id(), 100_000) as stores:
        tasks = stores.tasks

        async def claim(_: int) -> None:
            (got,) = await tasks.claim([SLOT], 60, now())
            held.append(got.lease)

        for size in QUICK_SIZES if options.quick else SIZES:
            held: list[Any] = []
            await _fill(stores, size)
            system = f"{size:,} queued"
            for row, name, call in (
                ("D1", "enqueue", lambda n: tasks.enqueue(_new(n), now())),
                ("D2", "claim", claim),
                ("D3", "a page of 100", lambda _: tasks.list(TaskFilter(status=TaskState.PENDING))),
            ):
                median, p99 = await _timed(call, times if row != "D3" else times // 5)
                samples.add(f"{row} {name}, median (ms)", system, median)
                samples.add(f"{row} {name}, p99 (ms)", system, p99)
            tasks.set_limits(FULL)
            _, p99 = await _timed(claim, times // 10)
            samples.add("D2 claim past a workflow at its limit, p99 (ms)", system, p99)
            tasks.set_limits({})
            await asyncio.gather(*(tasks.finish(lease, DONE, now()) for lease in held))
            samples.add("D4 memory since the start (MiB)", system, (rss_kib(os.getpid()) - begun) / 1024)


def run(options: Options) -> Result:
    samples = Samples("")
    for _ in range(1 if options.quick else options.rounds):
        with temporary_root("backlog") as folder:
            (folder / "state").mkdir()
            asyncio.run(_measure(folder, samples, options))
    return Result("D. Backlog", samples, list(_goals(samples)))


def _goals(s: Samples) -> Iterator[Goal]:
    systems = list(dict.fromkeys(system for _, system in s.values))
    least, most = systems[0], systems[-1]
    for row, name, limit in (("D1", "enqueue", 50), ("D2", "claim", 20)):
        yield goal_below(row, f"{name}, {most}, p99", s.median(f"{row} {name}, p99 (ms)", most), limit, "ms")
        growth = s.ratio(f"{row} {name}, median (ms)", most, least)
        yield goal_below(row, f"{name}, {most} to {least}, median", growth, 1.5, "x")
    full = s.median("D2 claim past a workflow at its limit, p99 (ms)", most)
    yield goal_below("D2", f"claim past a workflow at its limit, {most}, p99", full, 20, "ms")
    yield goal_below("D3", f"a page of 100, {most}, p99", s.median("D3 a page of 100, p99 (ms)", most), 50, "ms")
    yield goal_below("D4", f"memory, {most}", s.median("D4 memory since the start (MiB)", most), 50, "MiB")
