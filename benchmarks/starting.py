"""H1, H2: from spawn to the first 200, memory at that time, with instances and tasks there. H3: a verb."""

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import (
    PEERS,
    REPOSITORY,
    Goal,
    Options,
    Result,
    Samples,
    comfyd_argv,
    end,
    free_port,
    goal_below,
    rss_kib,
    spawn,
    temporary_root,
    until,
)  # fmt: skip
from comfyd.host import clock
from comfyd.model.base import Now
from comfyd.model.paths import Paths
from comfyd.model.task import NewTask
from comfyd.store.open import open_stores

ROWS = ("H1", "H2", "H3")
INSTANCES, TASKS = 100, 1000
ORIGINAL_TO_AIOHTTP = 391 / 180
"""Of the setup that existing users run (performance.md): measured once, it is not part of this repository."""
Prepare = Callable[[Path, int], tuple[list[str], dict[str, str], str]]


def comfyd(root: Path, port: int) -> tuple[list[str], dict[str, str], str]:
    """100 instances that are declared and off, 1,000 tasks that wait."""
    if not (root / "instances.json").exists():
        folder = root / "config/environments/comm"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        entries = [{"id": n, "port": 20000 + n, "name": f"i{n}", "enabled": False} for n in range(INSTANCES)]
        (root / "instances.json").write_text(json.dumps({"instances": entries}))
        asyncio.run(_fill(Paths.under(root)))
    return comfyd_argv(root), {"COMFYD_PORT": str(port)}, "/health"


async def _fill(paths: Paths) -> None:
    paths.state_dir.mkdir(parents=True)
    new = NewTask(workflow_name="w", environment="comm", params={"input_data": {"wf_json": {"1": {"inputs": {}}}}})
    async with open_stores(paths.database, clock.boot_id(), 1000) as stores:
        now = Now(clock.mono(), clock.wall())
        await asyncio.gather(*(stores.tasks.enqueue(new, now) for _ in range(TASKS)))


def aiohttp(root: Path, port: int) -> tuple[list[str], dict[str, str], str]:
    return [sys.executable, str(REPOSITORY / "benchmarks/hello.py"), str(port)], {}, "/health"


def supervisor(root: Path, port: int) -> tuple[list[str], dict[str, str], str]:
    conf = root / "supervisord.conf"
    conf.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={root}/log\npidfile={root}/pid\n"
        f"[inet_http_server]\nport=127.0.0.1:{port}\n"
    )
    return [str(PEERS / "supervisord"), "-n", "-c", str(conf)], {}, "/"


SYSTEMS: dict[str, Prepare] = {"comfyd": comfyd, "floor (aiohttp)": aiohttp, "supervisor": supervisor}


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _once(prepare: Prepare, root: Path) -> tuple[float, float, float]:
    """Milliseconds to the first 200, MiB a second later, milliseconds to the end after SIGTERM."""
    port = free_port()
    argv, environ, path = prepare(root, port)
    started = time.monotonic()
    process = spawn(argv, root.with_name(root.name + ".out"), **environ)
    try:
        if not until(lambda: _answers(port, path), 30, 0.001):
            raise AssertionError(f"{argv}: no answer")
        answered = time.monotonic()
        time.sleep(1)
        mib = rss_kib(process.pid) / 1024
        asked = time.monotonic()
        end(process)
        return (answered - started) * 1000, mib, (time.monotonic() - asked) * 1000
    finally:
        end(process)
        root.with_name(root.name + ".out").unlink()


def _verb(root: Path, *words: str) -> float:
    """Milliseconds of one command line, to its end, whatever it answers."""
    started = time.monotonic()
    process = spawn([sys.executable, *words], root / "verb.out")
    process.wait(30)
    return (time.monotonic() - started) * 1000


def run(options: Options) -> Result:
    samples = Samples("")
    systems = {name: one for name, one in SYSTEMS.items() if options.wants(name)}
    if not (PEERS / "supervisord").exists():
        systems.pop("supervisor", None)
        samples.remarks.append("supervisor is not installed here: run benchmarks/setup.sh")
    with temporary_root("start") as folder:
        for name in systems:
            (folder / name).mkdir()
        for turn in range(2 if options.quick else 8):
            for name, prepare in systems.items():
                first, mib, gone = _once(prepare, folder / name)
                if turn:  # the first one warms caches and bytecode
                    samples.add("H1 spawn to the first 200 (ms)", name, first)
                    samples.add("H2 RSS (MiB)", name, mib)
                    samples.add("H1 SIGTERM to gone (ms)", name, gone)
        for turn in range(3 if options.quick else 16):
            bare = _verb(folder, "-c", "pass")
            verb = _verb(folder, "-m", "comfyd", "status", "--url", "http://127.0.0.1:1")
            if turn and options.wants("comfyd"):
                samples.add("H3 `comfyd status` (ms)", "comfyd", verb)
                samples.add("H3 `comfyd status` (ms)", "bare Python", bare)
    return Result("H. Cold start", samples, _goals(samples))


def _goals(samples: Samples) -> list[Goal]:
    start = "H1 spawn to the first 200 (ms)"
    ratio = samples.ratio(start, "comfyd", "floor (aiohttp)")
    return [
        goal_below("H1", "spawn to the first 200, to aiohttp", ratio, 2.0, "x", _shown(samples, start)),
        goal_below("H1", "the same, below the original", ratio, round(ORIGINAL_TO_AIOHTTP, 2), "x"),
        goal_below("H2", f"RSS, {INSTANCES} instances declared, {TASKS} tasks queued",
                   samples.median("H2 RSS (MiB)", "comfyd"), 75, "MiB"),
        goal_below("H3", "a verb that only talks to the daemon, to bare Python",
                   samples.ratio("H3 `comfyd status` (ms)", "comfyd", "bare Python"), 8, "x"),
    ]  # fmt: skip


def _shown(samples: Samples, measure: str) -> str:
    return "".join(f"; {s} {samples.median(m, s):.0f} ms" for m, s in samples.values if m == measure)
