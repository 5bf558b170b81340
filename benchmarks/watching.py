"""G1: from a file renamed into place until the watching program hears of it."""

import asyncio
import ctypes
import os
import statistics
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import watchfiles

from benchmarks.harness import Options, Result, Samples, goal_below, temporary_root
from comfyd.control.watch import Watcher
from comfyd.settings import Settings

ROWS = ("G1",)
IN_MOVED_TO = 0x80
Watch = Callable[[Path, Callable[[], None]], Coroutine[Any, Any, None]]
"""Calls back at each delivery, until it is cancelled."""


async def comfyd(folder: Path, heard: Callable[[], None]) -> None:
    watcher = Watcher(heard, Settings.model_fields["debounce_s"].default, force_polling=False)
    watcher.watch((folder,))
    try:
        await watcher.run_watching()
    finally:
        watcher.close()


async def awatch_default(folder: Path, heard: Callable[[], None]) -> None:
    async for _ in watchfiles.awatch(folder, recursive=False, stop_event=_Stop.event):
        heard()


class _Stop:
    event = asyncio.Event()


async def inotify(folder: Path, heard: Callable[[], None]) -> None:
    """The floor. Only our file counts, so noise beside it does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    libc.inotify_add_watch(fd, os.fsencode(folder), IN_MOVED_TO)

    def read() -> None:
        if b"watched" in os.read(fd, 65536):
            heard()

    asyncio.get_running_loop().add_reader(fd, read)
    try:
        await asyncio.Event().wait()
    finally:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)


async def poll_1s(folder: Path, heard: Callable[[], None]) -> None:
    seen = 0
    while True:
        info = (folder / "watched").stat().st_ino
        if info != seen:
            seen = info
            heard()
        await asyncio.sleep(1)


WATCHERS: dict[str, Watch] = {
    "comfyd": comfyd, "floor": inotify, "watchfiles defaults": awatch_default, "poll 1 s": poll_1s,
}  # fmt: skip


async def _measure(watch: Watch, folder: Path, events: int) -> list[float]:
    """Milliseconds of each delivery."""
    heard = asyncio.Event()
    _Stop.event = asyncio.Event()
    (folder / "watched").write_text("0")
    watching = asyncio.create_task(watch(folder, heard.set))
    await asyncio.sleep(0.5)
    times: list[float] = []
    for turn in range(events):
        await asyncio.sleep(0.15 + (turn * 37 % 100) / 1000)
        temporary = folder / ".next"
        temporary.write_text(str(turn))
        await asyncio.sleep(0.25)
        heard.clear()
        started = time.monotonic()
        os.replace(temporary, folder / "watched")
        await asyncio.wait_for(heard.wait(), 5)
        times.append((time.monotonic() - started) * 1000)
    _Stop.event.set()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return times


def _noise(folder: Path, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        (folder / "noise").write_bytes(struct.pack("d", time.monotonic()))


def run(options: Options) -> Result:
    samples = Samples("ms")
    events = 4 if options.quick else 25
    for _ in range(1 if options.quick else options.rounds):
        for name, watch in WATCHERS.items():
            if not options.wants(name):
                continue
            for noisy in (False, True):
                with temporary_root("watch") as folder:
                    stop = threading.Event()
                    noise = threading.Thread(target=_noise, args=(folder, stop))
                    if noisy:
                        noise.start()
                    times = asyncio.run(_measure(watch, folder, events))
                    stop.set()
                    if noisy:
                        noise.join()
                under = ", noise beside it" if noisy else ""
                samples.add(f"G1 delivered, p50 (ms){under}", name, statistics.median(times))
                samples.add(f"G1 delivered, p95 (ms){under}", name, sorted(times)[int(len(times) * 0.95)])
    goals = [
        goal_below("G1", f"rename to delivery, p95{under}", samples.median(f"G1 delivered, p95 (ms){under}", "comfyd"),
                   limit, "ms")
        for under, limit in (("", 40), (", noise beside it", 150))
    ]  # fmt: skip
    return Result("G. File watch", samples, goals)
