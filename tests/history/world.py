"""A queue, the clients around it and the accidents that befall it, at random from one seed.

Owns: what happens. Must not: judge it (checker.py does).
"""

import asyncio
import random
from pathlib import Path

from tests.history import final, record
from tests.history.case import Violation
from tests.history.checker import check
from tests.history.clients import Creator, Inside, Operator, Outside, Reader, Receiver
from tests.history.life import LEASE_S, Clock, Life
from tests.history.mutants import Mutant
from tests.history.record import Recorder

KINDS = (Creator, Creator, Inside, Inside, Outside, Outside, Operator, Reader, Receiver)


class World:
    """One run: `await World(folder, seed, mutant).run()` gives what the checker objects to."""

    def __init__(self, folder: Path, seed: int, mutant: Mutant, steps: int = 30) -> None:
        self.folder, self.mutant, self.steps = folder, mutant, steps
        self.dice = random.Random(seed)
        self.clock = Clock()
        self.comfy, self.post = mutant.comfy(), mutant.post()
        self.tasks: list[str] = []
        self.busy = 0
        self.life: Life
        self.up = asyncio.Event()
        (folder / "history").mkdir(parents=True)
        self._lives = 0

    def recorder(self, client: str) -> Recorder:
        return Recorder(self.folder / "history", client, self.clock.read)

    async def run(self) -> list[Violation]:
        await self._live(self.folder / "life0/comfyd.db")
        async with asyncio.TaskGroup() as group:
            for number, kind in enumerate(KINDS):
                client = kind(self, f"{kind.__name__.lower()}{number}")
                self.busy += 1
                group.create_task(client.run(self.steps))
            group.create_task(self._run_accidents())
        await self._dry()
        await self.life.close()
        return check(record.read(self.folder / "history"), final.read(self.life.database), self.comfy.log)

    async def _live(self, database: Path) -> None:
        self.life = await Life(database).open(self.mutant.wrap, self.clock)
        self.up.set()

    async def _run_accidents(self) -> None:
        """Time passes, clocks are set, ComfyUI crashes, and three times the daemon is killed."""
        node, looks = Inside(self, "node"), 0
        while self.busy:
            looks += 1
            for _ in range(self.dice.randrange(1, 12)):
                await asyncio.sleep(0.0005)
            self.pass_time(self.dice.choice([0.5, 0.5, 5, 5, 20, LEASE_S * 1.01]))
            if self.dice.random() < 0.5:
                self.clock.wall += self.dice.choice([-7200, 3600, 3600, 86400])
            if self.dice.random() < 0.1:
                self.comfy.crash()
            if looks % 4 == 0 and self._lives < 3:
                await self._kill(node)

    def pass_time(self, seconds: float) -> None:
        self.clock.mono += seconds
        self.clock.wall += seconds

    async def _kill(self, node: "Inside") -> None:
        self._lives += 1
        database = self.folder / f"life{self._lives}/comfyd.db"
        self.up.clear()
        await self.life.kill(self.dice, database)
        self.post.killed()
        await self._live(database)
        await node.recover()

    async def _dry(self) -> None:
        """Whatever is left is run by a worker that never fails."""
        last, reader, receiver = Inside(self, "last"), Reader(self, "audit"), Receiver(self, "postman")
        for _ in range(200):
            self.pass_time(LEASE_S * 1.01)
            await last.run_dry()
            stats = await self.life.tasks.stats()
            if not stats.pending + stats.fetched + stats.processing:
                break
        await receiver.step()
        for task in self.tasks:
            await reader.look(task)
