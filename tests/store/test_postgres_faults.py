"""The server goes away, comes back, cuts connections: nothing is lost, nothing is done twice, calls fail quickly."""

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from comfyd.errors import ComfydError, StoreError
from comfyd.model.task import Claim, TaskState
from comfyd.store import postgres_link
from comfyd.store.open import Stores
from comfyd.store.postgres_tasks import PostgresTasks
from tests.postgres import Server, running_server
from tests.store.engines import DONE, LEASE_S, PostgresEngine, claim_one, enqueue, new, slot

pytestmark = [pytest.mark.asyncio, pytest.mark.postgres, pytest.mark.timeout(300)]
HEAL_S = 5.0
BUSY_S = 10.0
"""On top of what is promised: the machine may be busy."""


@pytest.fixture
def own_server() -> Iterator[Server]:
    """One that a test may stop."""
    with running_server() as server:
        yield server


async def healed(stores: Stores) -> float:
    """Seconds until calls succeed again."""
    begun = time.monotonic()
    while True:
        with contextlib.suppress(StoreError):
            await stores.tasks.stats()
            return time.monotonic() - begun
        assert time.monotonic() - begun < HEAL_S + BUSY_S
        await asyncio.sleep(0.02)


async def refused(stores: Stores, postgres: PostgresEngine) -> None:
    """Every kind of call says that the queue is out of reach, and says it soon."""
    for call in (enqueue(stores, postgres), claim_one(stores, postgres), stores.tasks.stats()):
        begun = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await call
        assert (caught.value.code, caught.value.retryable) == ("store_unavailable", True)
        assert time.monotonic() - begun < 8 + BUSY_S


async def test_a_server_that_is_not_there_yet(own_server: Server, tmp_path: Path) -> None:
    postgres = PostgresEngine(tmp_path, own_server)
    await postgres.prepare()
    own_server.stop()
    postgres.connection = _nothing  # type: ignore[method-assign]
    async with postgres.open() as stores:
        await refused(stores, postgres)
        assert postgres.troubles
        assert all(postgres.troubles)
        wakes = postgres.wakes
        assert await stores.node.overrides() == ()
        own_server.start()
        assert await healed(stores) < HEAL_S + BUSY_S
        assert postgres.troubles[-1] is None
        assert postgres.wakes > wakes
        await enqueue(stores, postgres)


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield None


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_restarts(own_server: Server, tmp_path: Path, how: int) -> None:
    own_server.stop()
    own_server.start(fsync="on", synchronous_commit="on")
    postgres = PostgresEngine(tmp_path, own_server)
    async with postgres.open() as stores:
        ids = [await enqueue(stores, postgres) for _ in range(5)]
        claim = await claim_one(stores, postgres)
        own_server.stop(how)
        await refused(stores, postgres)
        assert postgres.troubles[-1]
        assert "ConnectionRefused" in postgres.troubles[-1] or "FileNotFound" in postgres.troubles[-1]
        own_server.start(fsync="on", synchronous_commit="on")
        assert await healed(stores) < HEAL_S + BUSY_S
        assert (await stores.tasks.finish(claim.lease, DONE, postgres.now())).status is TaskState.COMPLETED
        left = await stores.tasks.claim([slot(n) for n in range(9)], LEASE_S, postgres.now())
        assert [one.task.task_id for one in left] == ids[1:]


@dataclass
class Ledger:
    """What callers were told. claims: token -> task, of claims that were handed out."""

    stores: Stores
    postgres: PostgresEngine
    created: list[str] = field(default_factory=list)
    doubtful: int = 0
    claimed: Counter[str] = field(default_factory=Counter)
    finished: set[str] = field(default_factory=set)
    closed: bool = False
    all_there: bool = False

    @property
    def progress(self) -> int:
        return len(self.created) + len(self.finished)

    async def create(self, number: int) -> None:
        for n in itertools.count():
            if self.closed:
                break
            key = f"{number}-{n}" if n % 2 else None
            while True:
                try:
                    wanted = new(idempotency_key=key, body_digest="d", user_id=f"u{number}")
                    task, _ = await self.stores.tasks.enqueue(wanted, self.postgres.now())
                    self.created.append(task.task_id)
                    break
                except StoreError:
                    await asyncio.sleep(0.02)
                    if key is None:  # its own retries gave up: it may be there or not
                        self.doubtful += 1
                        break
            await asyncio.sleep(0.01)

    async def work(self, number: int) -> None:
        while not self.all_there or await self._left():
            try:
                claims = await self.stores.tasks.claim([slot(number)], LEASE_S, self.postgres.now())
            except StoreError:
                await asyncio.sleep(0.02)
                continue
            for claim in claims:
                await self._carry_out(claim, number)
            if not claims:
                await asyncio.sleep(0.02)

    async def _carry_out(self, first: Claim, number: int) -> None:
        claim: Claim | None = first
        while claim is not None:
            self.claimed[claim.task.task_id] += 1
            try:
                _, following = await self.stores.tasks.finish_and_claim(
                    claim.lease, DONE, [slot(number)], LEASE_S, self.postgres.now()
                )
            except StoreError:
                self.claimed[claim.task.task_id] -= 1  # reported again, with the same lease
                await asyncio.sleep(0.02)
                continue
            self.finished.add(claim.task.task_id)
            claim = following[0] if following else None

    async def _left(self) -> bool:
        with contextlib.suppress(StoreError):
            return (await self.stores.tasks.stats()).pending > 0
        return True


async def test_a_hundred_cut_connections_lose_and_double_nothing(postgres: PostgresEngine) -> None:
    """No lease runs out here (the server's clock stands still): a task that is claimed twice was claimed wrongly, one
    whose claim was stored but not handed out stays open for ever."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with postgres.open() as stores, postgres.connection() as db:
        ledger = Ledger(stores, postgres)
        producers = [asyncio.ensure_future(ledger.create(n)) for n in range(4)]
        workers = [asyncio.ensure_future(ledger.work(n)) for n in range(4)]
        own, cuts = await db.fetchval("SELECT pg_backend_pid()"), 0
        while cuts < 100:
            pids = await db.fetch(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'comfyd' AND pid <> $1 "
                "AND usename IS NOT NULL AND query NOT LIKE 'CREATE%'", own,
            )  # fmt: skip
            for pid in rng.sample([record["pid"] for record in pids], k=min(len(pids), rng.randint(1, 3))):
                cuts += await db.fetchval("SELECT pg_terminate_backend($1)", pid)
            before, begun = ledger.progress, time.monotonic()
            while ledger.progress == before:  # calls must succeed between any two cuts
                assert time.monotonic() - begun < HEAL_S + BUSY_S
                await asyncio.sleep(rng.uniform(0, 0.02))
        ledger.closed = True
        await asyncio.gather(*producers)
        ledger.all_there = True  # a create that was on its way when it was closed is to be worked off, too
        await asyncio.gather(*workers)
        rows = await db.fetch("SELECT task_id, state, idempotency_key, attempts FROM comfyd_task")
        by_id = {row["task_id"]: row for row in rows}
        assert set(ledger.created) <= set(by_id)
        assert len(ledger.created) == len(set(ledger.created))
        assert len(rows) - len(ledger.created) <= ledger.doubtful
        assert {row["state"] for row in rows} == {"COMPLETED"}
        assert {row["attempts"] for row in rows} == {1}
        assert set(ledger.claimed.values()) == {1}
        assert ledger.finished == set(by_id)
        stats = await stores.tasks.stats()
        assert (stats.total, stats.completed) == (len(rows), len(rows))
        ends = Counter(e.subject for e in await stores.node.events(0, 100_000) if e.data.get("to") == "COMPLETED")
        assert set(ends.values()) == {1}


async def test_a_cut_listener_is_no_trouble(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "POLL_S", 600.0)
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' "
        "AND application_name = 'comfyd' AND state = 'idle'"
    )
    async with postgres.open() as stores, postgres.connection() as db:
        await enqueue(stores, postgres)
        assert postgres.troubles == [None]
        deadline = time.monotonic() + 4 * (HEAL_S + BUSY_S)
        for _ in range(4):
            while not await db.fetch(cut):  # it listens again
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert (await stores.tasks.stats()).total == 1
        while postgres.troubles.count(None) < 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert postgres.wakes >= 5
        assert set(postgres.troubles) == {None}


async def test_a_call_that_takes_too_long_is_given_up(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with postgres.open() as stores, postgres.connection() as db:
        tasks = stores.tasks
        assert isinstance(tasks, PostgresTasks)
        await tasks.stats()
        monkeypatch.setattr(postgres_link, "PATIENCE_S", 0.0)
        begun = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await tasks._link.call(lambda db, again: db.fetchval("SELECT pg_sleep(100)"), 0.3)
        assert caught.value.code == "store_unavailable"
        assert time.monotonic() - begun < 5 + BUSY_S
        assert (await tasks.stats()).total == 0
        assert await db.fetchval("SELECT 1") == 1


async def test_calls_that_were_refused_for_a_reason_are_not_sent_again(postgres: PostgresEngine) -> None:
    async with postgres.open() as stores:
        with pytest.raises(ComfydError) as caught:
            await stores.tasks.get("task_none")
        assert caught.value.code == "task_not_found"
        async with postgres.connection() as db:
            await db.execute("ALTER TABLE comfyd_task RENAME TO away")
            begun = time.monotonic()
            with pytest.raises(StoreError, match="UndefinedTable"):
                await stores.tasks.get("task_none")
            assert time.monotonic() - begun < BUSY_S
            await db.execute("ALTER TABLE away RENAME TO comfyd_task")
