"""The limit of the queue's depth, and the counts it rests on."""

import asyncio
import random

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import Task, TaskFilter, TaskState
from comfyd.store.open import Stores
from tests.store.engines import BROKEN, DONE, LEASE_S, LOST, SqliteEngine, claim_one, enqueue, new, slot

pytestmark = pytest.mark.asyncio


async def tried(stores: Stores, engine: SqliteEngine, **fields: object) -> Task | str:
    """The task, or the code of what refused it."""
    try:
        return (await stores.tasks.enqueue(new(**fields), engine.now()))[0]
    except ComfydError as error:
        return f"{error.http_status} {error.code}" if error.retryable else error.code


async def test_a_full_queue_refuses_until_there_is_room(engine: SqliteEngine) -> None:
    engine.max_queued = 5
    async with engine.open() as stores:
        first = await tried(stores, engine, idempotency_key="k", body_digest="d")
        for n in range(4):
            await enqueue(stores, engine, run_after=10**13 if n else None)
        assert await tried(stores, engine) == "429 queue_full"
        assert await tried(stores, engine, idempotency_key="new", body_digest="d") == "429 queue_full"
        assert await tried(stores, engine, idempotency_key="k", body_digest="d") == first, "it is there already"
        with pytest.raises(ComfydError, match="another body"):
            await stores.tasks.enqueue(new(idempotency_key="k", body_digest="e"), engine.now())
        assert (await stores.tasks.stats()).total == 5
    async with engine.open() as stores:
        assert await tried(stores, engine) == "429 queue_full"
        claim = await claim_one(stores, engine)
        await enqueue(stores, engine)
        assert await tried(stores, engine) == "429 queue_full"
        await stores.tasks.finish(claim.lease, LOST, engine.now())  # one too many for once: nothing is ever dropped
        assert (await stores.tasks.stats()).pending == 6
        assert await tried(stores, engine) == "429 queue_full"
        assert await stores.tasks.clear() == 6
        assert not isinstance(await tried(stores, engine), str)


async def test_of_many_at_once_exactly_as_many_as_fit_are_taken(engine: SqliteEngine) -> None:
    engine.max_queued = 37
    async with engine.open() as stores:
        answers = await asyncio.gather(*(tried(stores, engine) for _ in range(150)))
        taken = [answer for answer in answers if not isinstance(answer, str)]
        assert len(taken) == (await stores.tasks.stats()).pending == 37
        assert {answer for answer in answers if isinstance(answer, str)} == {"429 queue_full"}
        for task in taken:
            assert (await stores.tasks.get(task.task_id)).task_id == task.task_id


async def test_a_random_life_never_makes_the_count_wrong(engine: SqliteEngine) -> None:
    """Operations that share commits and some that fail: what is refused is refused at the limit, and only there."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    engine.max_queued = 12
    async with engine.open() as stores:
        leases = [(await claim_one(stores, engine)).lease for _ in range(1) if await enqueue(stores, engine)]
        for _ in range(60):
            calls = []
            for _ in range(rng.randint(1, 6)):
                lease = rng.choice(leases)
                calls.append(
                    rng.choice(
                        [
                            lambda: stores.tasks.enqueue(new(), engine.now()),
                            lambda: stores.tasks.enqueue(new(), engine.now()),
                            lambda: stores.tasks.claim([slot()], LEASE_S, engine.now()),
                            lambda lease=lease: stores.tasks.finish(
                                lease, rng.choice([DONE, BROKEN, LOST]), engine.now()
                            ),
                            lambda lease=lease: stores.tasks.cancel(lease.task_id, engine.now()),
                            lambda lease=lease: stores.tasks.retry(lease.task_id, engine.now()),
                        ]
                    )
                )
            if rng.random() < 0.05:
                calls.insert(rng.randrange(len(calls)), stores.tasks.clear)
            for answer in await asyncio.gather(*(call() for call in calls), return_exceptions=True):
                if isinstance(answer, tuple) and answer and not isinstance(answer[0], Task):
                    leases += [claim.lease for claim in answer]
                elif isinstance(answer, BaseException) and not isinstance(answer, ComfydError):
                    raise answer
            page = await stores.tasks.list(TaskFilter(status=TaskState.PENDING, limit=1000))
            assert len(page.tasks) == page.queue_length == (await stores.tasks.stats()).pending
            full = await tried(stores, engine) == "429 queue_full"
            assert full == (page.queue_length >= 12)
