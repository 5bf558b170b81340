"""B1-B3: creating a task over HTTP so that it is on disk when the answer comes; what a SIGKILL leaves of it."""

import asyncio
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    REPOSITORY,
    Goal,
    Options,
    Result,
    Samples,
    comfyd_argv,
    end,
    free_port,
    goal_above,
    goal_below,
    spawn,
    temporary_root,
    until,
)  # fmt: skip
from benchmarks.load import Load, run_load

ROWS = ("B1", "B2", "B3")
PATH = "/tasks/create/w"
Prepare = Callable[[Path, int], tuple[list[str], dict[str, str]]]


def graph() -> dict[str, Any]:
    """A workflow of ordinary size: 2.3 KB."""
    node = {"class_type": "ImageScaleBy", "inputs": {"upscale_method": "lanczos", "scale_by": 1.5, "image": ["0", 0]}}
    return {str(n): {**node, "_meta": {"title": f"Upscale step {n}"}} for n in range(14)}


BODY = json.dumps({"wf_json": graph()}).encode()


def plain(_: int) -> tuple[str, bytes, dict[str, str]]:
    return PATH, BODY, {}


def comfyd(root: Path, port: int) -> tuple[list[str], dict[str, str]]:
    folder = root / "config/environments/comm"
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"workflows": ["w"]}))
        entry = {"id": 0, "port": 20000, "name": "off", "enabled": False}
        (root / "instances.json").write_text(json.dumps({"instances": [entry]}))
    return comfyd_argv(root), {"COMFYD_PORT": str(port), "COMFYD_LOG_FORMAT": "json"}


def floor(root: Path, port: int) -> tuple[list[str], dict[str, str]]:
    program = [sys.executable, "-m", "benchmarks.floor_create", str(port), str(root / "floor.db")]
    return program, {"PYTHONPATH": str(REPOSITORY)}


SYSTEMS: dict[str, Prepare] = {"comfyd": comfyd, "floor": floor}


@contextmanager
def serving(prepare: Prepare, root: Path) -> Iterator[tuple[int, Any]]:
    """The server on CPU 0 (the load comes from CPU 1, where there is one)."""
    port = free_port()
    argv, environ = prepare(root, port)
    if shutil.which("taskset") and (os.cpu_count() or 1) > 1:
        argv = ["taskset", "-c", "0", *argv]
    process = spawn(argv, root.with_name(root.name + ".out"), **environ)
    try:
        if not until(lambda: _health(port), 30, 0.01):
            raise AssertionError(root.with_name(root.name + ".out").read_text()[-3000:])
        yield port, process
    finally:
        end(process)


def _health(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _rate(port: int, connections: int, seconds: float) -> tuple[float, Load]:
    asyncio.run(run_load(Load(plain), port, connections, 0.5))
    load = Load(plain)
    rate = asyncio.run(run_load(load, port, connections, seconds))
    if load.failed:
        raise AssertionError(f"{load.failed} requests refused: {next(iter(load.answers.values()))}")
    return rate, load


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] * 1000


def measure(samples: Samples, name: str, prepare: Prepare, seconds: float) -> None:
    with temporary_root("create") as folder:
        (folder / "r").mkdir()
        with serving(prepare, folder / "r") as (port, _):
            _, load = _rate(port, 1, seconds)
            samples.add("B2 1 connection, p50 (ms)", name, _percentile(load.latencies, 0.5))
            samples.add("B2 1 connection, p99 (ms)", name, _percentile(load.latencies, 0.99))
            for connections in (16, 32):
                rate, load = _rate(port, connections, seconds)
                samples.add(f"B1 {connections} connections (1/s)", name, rate)
                samples.add(f"B1 {connections} connections, p99 (ms)", name, _percentile(load.latencies, 0.99))


def survive(samples: Samples, seconds: float) -> None:
    """SIGKILL under load, start again, send again whatever was not acknowledged; then count."""
    with temporary_root("create") as folder:
        (folder / "r").mkdir()
        with serving(comfyd, folder / "r") as (port, process):
            load = Load(_keyed, keep=True)
            asyncio.run(_killed(load, port, process.kill, seconds))
        acknowledged = {n: json.loads(body)["taskId"] for n, (status, body) in load.answers.items() if status == 200}
        with serving(comfyd, folder / "r") as (port, _):
            found = _all_tasks(port)
            again = [n for n in range(load.sent) if n not in acknowledged]
            twice = list(acknowledged)[-50:]
            repeated = Load(lambda n: _keyed((again + twice)[n]), keep=True, last=len(again) + len(twice))
            asyncio.run(run_load(repeated, port, 4, 60))
            final = _all_tasks(port)
    lost = sum(task not in found for task in acknowledged.values())
    samples.add("B3 acknowledged before SIGKILL", "comfyd", len(acknowledged))
    samples.add("B3 lost", "comfyd", lost)
    samples.add("B3 duplicates after sending again", "comfyd", len(final) - len(set(final.values())))
    samples.add("B3 phantoms", "comfyd", len(set(final.values()) - {f"user-{n}" for n in range(load.sent)}))
    samples.add("B3 missing after sending again", "comfyd", load.sent - len(set(final.values())))


def _keyed(number: int) -> tuple[str, bytes, dict[str, str]]:
    body = json.dumps({"user_id": f"user-{number}", "wf_json": graph()}).encode()
    return PATH, body, {"Idempotency-Key": f"key-{number}"}


async def _killed(load: Load, port: int, kill: Callable[[], None], seconds: float) -> None:
    asyncio.get_running_loop().call_later(seconds, kill)
    await run_load(load, port, 32, seconds * 4)


def _all_tasks(port: int) -> dict[str, str]:
    """task id -> user id."""
    found: dict[str, str] = {}
    cursor = ""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/tasks?limit=1000{cursor}", timeout=30) as answer:
            page = json.load(answer)
        found |= {task["taskId"]: task["user_id"] for task in page["tasks"]}
        if not page["next_cursor"]:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def run(options: Options) -> Result:
    samples = Samples("")
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    seconds = 0.7 if options.quick else 4.0
    try:
        for _ in range(1 if options.quick else options.rounds):
            for name, prepare in SYSTEMS.items():
                if options.wants(name):
                    measure(samples, name, prepare, seconds)
        survive(samples, seconds / 2)
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return Result("B. Creating a task over HTTP", samples, list(_goals(samples)))


def _goals(s: Samples) -> Iterator[Goal]:
    for connections in (16, 32):
        rate, p99 = f"B1 {connections} connections (1/s)", f"B1 {connections} connections, p99 (ms)"
        ours, floor_rate = s.median(rate, "comfyd"), s.median(rate, "floor")
        more = f" ({ours:,.0f}/s; floor {floor_rate:,.0f}/s)" if ours and floor_rate else ""
        yield goal_above("B1", f"create, {connections} connections", ours, 5500, "/s")
        yield goal_above("B1", "the same, to the floor", s.ratio(rate, "comfyd", "floor"), 0.75, "x", more)
        yield goal_below("B1", "the same, p99", s.median(p99, "comfyd"), 15, "ms")
    alone = "B2 1 connection, p50 (ms)"
    yield goal_below("B2", "create, 1 connection, p50", s.median(alone, "comfyd"), 0.7, "ms")
    yield goal_below("B2", "the same, to the floor", s.ratio(alone, "comfyd", "floor"), 1.25, "x")
    for what in ("lost", "duplicates after sending again", "phantoms", "missing after sending again"):
        yield goal_below("B3", what, s.median(f"B3 {what}", "comfyd"), 0, "")
