"""C1-C3: the embedded queue by itself; comfyd's store, huey (SQLite, durable) and a bare group commit."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.creating import graph
from benchmarks.group_commit import GroupCommit
from benchmarks.harness import PEERS, REPOSITORY, Goal, Options, Result, Samples, goal_above, temporary_root
from comfyd.host import clock
from comfyd.model.base import Now
from comfyd.model.task import Claim, NewTask, Outcome, Slot, TaskState
from comfyd.store.open import open_stores
from comfyd.store.protocol import TaskStore

ROWS = ("C1", "C2", "C3")
CALLERS = (1, 4, 16, 64)
WORKERS = (1, 4)
PARAMS: dict[str, Any] = {"input_data": {"wf_json": graph()}}
DONE = Outcome(state=TaskState.COMPLETED, output={"files": ["a.png"], "urls": [], "text": []})


def now() -> Now:
    return Now(clock.mono(), clock.wall())


class Comfyd:
    """A worker finishes its task and claims the next one in one commit, as dispatch does."""

    def __init__(self, tasks: TaskStore) -> None:
        self.tasks = tasks
        self.new = NewTask(workflow_name="w", environment="comm", params=PARAMS)

    async def enqueue(self) -> None:
        await self.tasks.enqueue(self.new, now())

    async def work(self, worker: int) -> int:
        slot = Slot(key=f"comfyui/{worker}", generation=f"g{worker}", port=1, environment="comm", instance="i")
        claims = await self.tasks.claim([slot], 60, now())
        done = 0
        while claims:
            claim: Claim = claims[0]
            _, claims = await self.tasks.finish_and_claim(claim.lease, DONE, [slot], 60, now())
            done += 1
        return done


class Floor:
    def __init__(self, store: GroupCommit) -> None:
        self.store = store
        self.body = json.dumps(PARAMS).encode()

    async def enqueue(self) -> None:
        await self.store.enqueue(self.body)

    async def work(self, worker: int) -> int:
        task = await self.store.finish_and_claim(None)
        done = 0
        while task is not None:
            task = await self.store.finish_and_claim(task)
            done += 1
        return done


Engine = Comfyd | Floor


async def _enqueue(engine: Engine, callers: int, seconds: float) -> float:
    until = time.perf_counter() + seconds

    async def call() -> int:
        done = 0
        while time.perf_counter() < until:
            await engine.enqueue()
            done += 1
        return done

    started = time.perf_counter()
    total = sum(await asyncio.gather(*(call() for _ in range(callers))))
    return total / (time.perf_counter() - started)


async def _drain(engine: Engine, workers: int, tasks: int) -> float:
    """Tasks claimed and completed per second, until none is left."""
    await asyncio.gather(*(engine.enqueue() for _ in range(tasks)))
    started = time.perf_counter()
    done = sum(await asyncio.gather(*(engine.work(n) for n in range(workers))))
    if done != tasks:
        raise AssertionError(f"{done} of {tasks} tasks were done")
    return done / (time.perf_counter() - started)


async def _measure(engine: Engine, name: str, samples: Samples, options: Options) -> None:
    seconds, tasks = (0.5, 300) if options.quick else (3.0, 5000)
    for workers in WORKERS:
        samples.add(f"C3 claim + complete, workers: {workers} (1/s)", name, await _drain(engine, workers, tasks))
    for callers in CALLERS:
        row = "C1" if callers == 1 else "C2"
        samples.add(f"{row} enqueue, callers: {callers} (1/s)", name, await _enqueue(engine, callers, seconds))


async def _comfyd(folder: Path, samples: Samples, options: Options) -> None:
    async with open_stores(folder / "state/comfyd.db", clock.boot_id(), 100_000) as stores:
        await _measure(Comfyd(stores.tasks), "comfyd", samples, options)


async def _floor(folder: Path, samples: Samples, options: Options) -> None:
    store = GroupCommit(folder / "floor.db")
    try:
        await _measure(Floor(store), "floor", samples, options)
    finally:
        store.close()


def _huey(folder: Path, samples: Samples, options: Options) -> None:
    """In its own interpreter; several callers are several processes, as it blocks each of them."""
    program = REPOSITORY / "benchmarks/huey_side.py"
    seconds, tasks = ("0.5", "300") if options.quick else ("3", "5000")
    argv = [str(PEERS / "python"), str(program), str(folder), seconds, tasks]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    for measure, value in json.loads(told.stdout).items():
        samples.add(measure, "huey", value)


def run(options: Options) -> Result:
    samples = Samples("")
    for _ in range(1 if options.quick else options.rounds):
        for name, measured in (("comfyd", _comfyd), ("floor", _floor)):
            if options.wants(name):
                with temporary_root("queue") as folder:
                    (folder / "state").mkdir()
                    asyncio.run(measured(folder, samples, options))
        if not (PEERS / "huey_consumer").exists():
            samples.remarks.append("huey is not installed here: run benchmarks/setup.sh")
        elif options.wants("huey"):
            with temporary_root("huey") as folder:
                _huey(folder, samples, options)
    return Result("C. Embedded queue", samples, list(_goals(samples)))


def _goals(s: Samples) -> Iterator[Goal]:
    for callers, limit, to_huey in ((1, 0.85, 0.75), (4, 0.6, 1.4), (16, 0.6, 4), (64, 0.6, 7)):
        row = "C1" if callers == 1 else "C2"
        measure = f"{row} enqueue, callers: {callers} (1/s)"
        to_floor = s.ratio(measure, "comfyd", "floor")
        yield goal_above(row, f"enqueue, {callers} callers, to the floor", to_floor, limit, "x", _shown(s, measure))
        other = measure if (measure, "huey") in s.values else "C2 enqueue, callers: 4 (1/s)"
        ours, theirs = s.median(measure, "comfyd"), s.median(other, "huey")
        yield goal_above(
            row, f"enqueue, {callers} callers, to huey", ours / theirs if ours and theirs else None, to_huey, "x"
        )
    one, four = (f"C3 claim + complete, workers: {n} (1/s)" for n in WORKERS)
    yield goal_above(
        "C3", "claim + complete, 1 worker, to the floor", s.ratio(one, "comfyd", "floor"), 0.6, "x", _shown(s, one)
    )
    yield goal_above("C3", "claim + complete, 1 worker, to huey", s.ratio(one, "comfyd", "huey"), 1.6, "x")
    single, several = s.median(one, "comfyd"), s.median(four, "comfyd")
    growth = several / single if single and several else None
    yield goal_above("C3", "claim + complete, 4 workers, to 1 worker", growth, 2, "x", _shown(s, four))


def _shown(s: Samples, measure: str) -> str:
    found = (f"{system} {s.median(m, system):,.0f}" for m, system in s.values if m == measure)
    return f" ({', '.join(found)} per s)"
