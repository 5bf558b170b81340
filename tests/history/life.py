"""One life of the store: opened on a database, used by many clients, ended by a kill.

A kill is what SIGKILL leaves: the files as they are at one instant of the writer thread (while it executes, before a
COMMIT, or after it and before anybody is told), copied away. The next life goes on with the copy.
"""

import asyncio
import random
import shutil
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from comfyd.model.base import Now
from comfyd.store.open import Stores, open_stores
from comfyd.store.protocol import TaskStore

LEASE_S = 60.0
HOPS = 30
"""Rounds of the loop within which an answer that was handed over has reached its client."""


@dataclass
class Clock:
    """Seconds that pass when told to, and a little at each look, so that no two instants are the same."""

    mono: float = 1000.0
    wall: float = 1_800_000_000.0

    def now(self) -> Now:
        self.mono += 1e-5
        self.wall += 1e-5
        return Now(self.mono, self.wall)

    def read(self) -> float:
        return self.now().mono


Wrap = Callable[[Stores, Clock], TaskStore]


class Life:
    """killed: nothing that is answered from now on reaches anybody. gone: set when clients need not wait any more."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.killed = False
        self.gone = asyncio.Event()
        self.stores: Stores
        self.tasks: TaskStore
        self._stack = AsyncExitStack()

    async def open(self, wrap: Wrap, clock: Clock) -> "Life":
        self.stores = await self._stack.enter_async_context(open_stores(self.database, "boot", 1_000_000))
        self.tasks = wrap(self.stores, clock)
        return self

    async def close(self) -> None:
        await self._stack.aclose()

    async def kill(self, dice: random.Random, copy: Path) -> None:
        """Die at some instant, with the calls of other clients in the same batch. Leaves the files in `copy`."""
        loop, writer, gate = asyncio.get_running_loop(), self.stores.writer, threading.Event()

        def die(*_: object) -> None:
            if not self.killed:
                settle(loop)
                self.killed = True
                save(self.database, copy)

        plug = writer.write(lambda tx: gate.wait(10))  # others gather behind it
        for _ in range(dice.randrange(1, 12)):
            await asyncio.sleep(0)
        point = dice.choice(["executing", "before", "before", "after"])
        hooks = {} if point == "executing" else {point: die}
        end = writer.write(lambda tx: None if hooks else die(), **hooks)
        for _ in range(dice.randrange(1, 12)):
            await asyncio.sleep(0)
        gate.set()
        await plug
        await end
        self.gone.set()
        await self.close()


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Wait on the writer thread until the loop has passed on what it was handed."""
    passed = threading.Event()

    def hop(left: int) -> None:
        if left:
            loop.call_soon(hop, left - 1)
        else:
            passed.set()

    loop.call_soon_threadsafe(hop, HOPS)
    passed.wait(10)


def save(database: Path, copy: Path) -> None:
    copy.parent.mkdir(mode=0o700)
    for suffix in ("", "-wal"):
        if (source := Path(f"{database}{suffix}")).exists():
            shutil.copyfile(source, f"{copy}{suffix}")
