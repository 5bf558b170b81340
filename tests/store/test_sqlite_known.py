"""What the writer remembers of the queue is what the database says, whatever happened in between."""

import asyncio
import random
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import Claim, TaskState
from comfyd.store.ledger import Transaction
from comfyd.store.open import Stores
from tests.store.engines import BROKEN, DONE, LEASE_S, LOST, SqliteEngine, new, slot

pytestmark = pytest.mark.asyncio
USERS = (None, "a", "b")


def half(tx: Transaction) -> None:
    """Fails with its work half done, so that its whole batch is run again."""
    tx.db.execute("INSERT INTO fact (key, value) VALUES ('half', '{}')")
    raise ValueError("no")


async def next_ranks(stores: Stores, sqlite: SqliteEngine, user: str | None, number: int, cost: int) -> list[int]:
    """What as many new tasks of that user have to be given, by a look at the whole table."""

    def read(db: sqlite3.Connection) -> int:
        found = db.execute("SELECT max(rank) FROM task WHERE finished_at IS NULL AND user_id IS ?", (user,)).fetchone()
        return int(found[0] or 0)

    top = max(int(sqlite.now().wall * 1_000_000), await stores.writer.read(read))
    return [top + cost * (n + 1) for n in range(number)]


class Story:
    """Random calls one after another, or failing ones beside good ones."""

    def __init__(self, stores: Stores, sqlite: SqliteEngine, rng: random.Random) -> None:
        self.stores, self.sqlite, self.rng = stores, sqlite, rng
        self.claims: list[Claim] = []
        self.ended: list[str] = []

    async def create(self) -> None:
        user, number = self.rng.choice(USERS), self.rng.choice([1, 1, 3])
        many = [new(user_id=user) for _ in range(number)]
        expected = await next_ranks(self.stores, self.sqlite, user, number, many[0].rank_cost)
        calls = [asyncio.ensure_future(self.stores.tasks.enqueue(one, self.sqlite.now())) for one in many]
        if self.rng.random() < 0.3:
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match="no"):
                await self.stores.writer.write(half)
        made = await asyncio.gather(*calls)
        assert [task.rank for task, _ in made] == expected

    async def claim(self) -> None:
        room = [slot(n) for n in range(self.rng.randrange(1, 4))]
        now = self.sqlite.now()
        self.claims += await self.stores.tasks.claim(room, self.rng.choice([LEASE_S, 5.0]), now)
        held = await self.stores.writer.read(
            lambda db: db.execute("SELECT count(*) FROM task WHERE lease_mono <= ?", (now.mono,)).fetchone()[0]
        )
        assert held == 0, "every lease that ran out was taken back"

    async def finish(self) -> None:
        if not self.claims:
            return
        claim = self.claims.pop(self.rng.randrange(len(self.claims)))
        outcome = self.rng.choice([DONE, BROKEN, LOST])
        with suppress(ComfydError):  # somebody else has it by now, or it was cleared
            task = await self.stores.tasks.finish(claim.lease, outcome, self.sqlite.now())
            if task.status is TaskState.FAILED:
                self.ended.append(task.task_id)

    async def renew(self) -> None:
        if self.claims:
            lease = self.rng.choice(self.claims).lease
            await asyncio.gather(self.stores.tasks.renew(lease, 3.0, self.sqlite.now()), return_exceptions=True)

    async def cancel(self) -> None:
        page = await self.stores.writer.read(
            lambda db: [row[0] for row in db.execute("SELECT task_id FROM task WHERE state = 'PENDING'")]
        )
        if page:
            task = await self.stores.tasks.cancel(self.rng.choice(page), self.sqlite.now())
            self.ended.append(task.task_id)

    async def retry(self) -> None:
        if self.ended:
            await self.stores.tasks.retry(self.ended.pop(self.rng.randrange(len(self.ended))), self.sqlite.now())

    async def clear(self) -> None:
        if self.rng.random() < 0.1:
            await self.stores.tasks.clear()
            self.ended.clear()

    async def pass_time(self) -> None:
        await self.sqlite.pass_time(self.rng.choice([0.001, 2.0, 100.0]))


@pytest.mark.parametrize("_", range(2))
async def test_ranks_and_leases_are_those_of_the_table(tmp_path: Path, _: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    sqlite = SqliteEngine(tmp_path)
    async with sqlite.open() as stores:
        story = Story(stores, sqlite, rng)
        steps = [story.create, story.create, story.create, story.claim, story.claim, story.finish, story.finish]
        steps += [story.renew, story.cancel, story.retry, story.clear, story.pass_time]
        for _step in range(80):
            await rng.choice(steps)()


async def test_what_one_round_asks_for_shares_a_commit(tmp_path: Path) -> None:
    sqlite = SqliteEngine(tmp_path)
    async with sqlite.open() as stores:
        before = stores.writer.commits
        await asyncio.gather(*(stores.tasks.enqueue(new(), sqlite.now()) for _ in range(7)))
        assert stores.writer.commits - before == 1
