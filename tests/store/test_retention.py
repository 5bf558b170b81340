"""What is removed after a while, what stays, and what is deleted by hand."""

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import ExternalUpdate, TaskFilter, TaskState
from tests.store.engines import BROKEN, DONE, LEASE_S, SqliteEngine, claim_one, enqueue, slot

pytestmark = pytest.mark.asyncio
S = TaskState
DAY_S = 24 * 3600.0


async def test_results_go_after_their_time_and_failures_stay(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        ids = [await enqueue(stores, engine, f"w{n % 2}", idempotency_key=f"k{n}") for n in range(6)]
        claims = await stores.tasks.claim([slot(n) for n in range(4)], LEASE_S, engine.now())
        await stores.tasks.finish(claims[0].lease, DONE, engine.now())
        await stores.tasks.finish(claims[1].lease, BROKEN, engine.now())
        assert await stores.tasks.expired(7 * DAY_S, engine.now(), 10) == ((), pytest.approx(7 * DAY_S))
        await engine.pass_time(50)
        await stores.tasks.finish(claims[2].lease, DONE, engine.now())
        await stores.tasks.cancel(ids[4], engine.now())
        await engine.pass_time(7 * DAY_S - 50)
        assert (await stores.tasks.expired(7 * DAY_S, engine.now(), 10))[0] == (ids[0],)
        await engine.pass_time(50)
        found, left_s = await stores.tasks.expired(7 * DAY_S, engine.now(), 2)
        assert (len(found), left_s) == (2, pytest.approx(-50))
        found, _ = await stores.tasks.expired(7 * DAY_S, engine.now(), 10)
        assert set(found) == {ids[0], ids[2], ids[4]}
        before = (await stores.tasks.stats()).total
        assert await stores.tasks.remove(found) >= (0 if engine.forgets else 3)
        stats = await stores.tasks.stats()
        assert (before, stats.total, stats.completed, stats.cancelled, stats.failed) == (6, 3, 0, 0, 1)
        assert await stores.tasks.expired(7 * DAY_S, engine.now(), 10) == ((), None)
        with pytest.raises(ComfydError, match="not found"):
            await stores.tasks.get(ids[0])
        fresh = await enqueue(stores, engine, "w0", idempotency_key="k0")
    async with engine.open() as stores:
        left = {task.task_id for task in (await stores.tasks.list(TaskFilter())).tasks}
        assert left == {ids[1], ids[3], ids[5], fresh}
        numbers = [event.seq for event in await stores.node.events(0, 1000)]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_what_was_retried_meanwhile_is_not_removed(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        await stores.tasks.cancel(task_id, engine.now())
        await engine.pass_time(10)
        assert (await stores.tasks.expired(5, engine.now(), 10))[0] == (task_id,)
        await stores.tasks.retry(task_id, engine.now())
        assert await stores.tasks.remove([task_id]) == 0
        await stores.tasks.cancel(task_id, engine.now())
        assert (await stores.tasks.expired(5, engine.now(), 10))[0] == (), "it ended anew"


@pytest.mark.parametrize("said", [9, 10**14])
async def test_what_a_worker_says_of_the_time_decides_nothing(engine: SqliteEngine, said: int) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        assert await stores.tasks.fetch("me", None, None, {}, LEASE_S, engine.now())
        report = ExternalUpdate(task_id=task_id, status=S.COMPLETED, caller="me", finished_at=said)
        assert (await stores.tasks.update(report, LEASE_S, engine.now())).finished_at == said
        assert await stores.tasks.expired(100, engine.now(), 10) == ((), pytest.approx(100))
        await engine.pass_time(100)
        assert (await stores.tasks.expired(100, engine.now(), 10))[0] == (task_id,)


async def test_what_has_ended_is_deleted_by_hand_and_nothing_else(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        dead, running, waiting = [await enqueue(stores, engine) for _ in range(3)]
        claim = await claim_one(stores, engine)
        await claim_one(stores, engine, 1)
        for task_id in (dead, running, waiting):
            with pytest.raises(ComfydError) as caught:
                await stores.tasks.delete(task_id, engine.now())
            assert caught.value.code == "illegal_transition"
        await stores.tasks.finish(claim.lease, BROKEN, engine.now())
        await stores.tasks.delete(dead, engine.now())
        for call in (stores.tasks.get(dead), stores.tasks.retry(dead, engine.now())):
            with pytest.raises(ComfydError) as caught:
                await call
            assert caught.value.code == "task_not_found"
        if not engine.forgets:
            with pytest.raises(ComfydError, match="not found"):
                await stores.tasks.delete(dead, engine.now())
        stats = await stores.tasks.stats()
        assert (stats.total, stats.failed, stats.processing, stats.pending) == (2, 0, 1, 1)
        last = (await stores.node.events(0, 1000))[-1]
        assert (last.subject, last.data["from"], last.data["to"]) == (dead, "FAILED", None)
