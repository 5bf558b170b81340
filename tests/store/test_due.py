"""Tasks that are not to run yet, and deadlines: what happens by itself once its time has come."""

import random

import pytest

from comfyd.model.task import TaskFilter, TaskState
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, TRY_AGAIN, SqliteEngine, claim_one, enqueue, slot

pytestmark = pytest.mark.asyncio
S = TaskState


def ms(engine: SqliteEngine, seconds: float) -> int:
    """An instant so far from now."""
    return int((engine.now().wall + seconds) * 1000)


async def claimed(stores: Stores, engine: SqliteEngine, slots: int = 1) -> list[str]:
    claims = await stores.tasks.claim([slot(n) for n in range(slots)], LEASE_S, engine.now())
    return [claim.task.task_id for claim in claims]


async def fetched(stores: Stores, engine: SqliteEngine, workflows: list[str] | None = None) -> str | None:
    claim = await stores.tasks.fetch("me", workflows, None, {}, LEASE_S, engine.now())
    return claim.task.task_id if claim else None


async def test_nobody_gets_a_task_before_its_time(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        later = await enqueue(stores, engine, run_after=ms(engine, 50), priority="vip")
        assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(50)
        other = await enqueue(stores, engine)
        assert await claimed(stores, engine, 2) == [other]
        assert await fetched(stores, engine) is None
        assert await fetched(stores, engine, ["draw"]) is None
        task = await stores.tasks.get(later)
        assert (task.status, task.run_after) == (S.PENDING, ms(engine, 50))
        page = await stores.tasks.list(TaskFilter(status=S.PENDING))
        assert ([one.task_id for one in page.tasks], page.queue_length) == ([later], 1)
        await engine.pass_time(49.9)
        assert await claimed(stores, engine) == []
    async with engine.open() as stores:
        await engine.pass_time(0.1)
        assert (await stores.tasks.next_expiry(engine.now()) or 0) <= 0
        assert await claimed(stores, engine) == [later]
        task = await stores.tasks.get(later)
        assert task.started_at == task.run_after == ms(engine, 0)


async def test_a_fetch_makes_ripe_as_well(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        later = await enqueue(stores, engine, run_after=ms(engine, 5))
        await engine.pass_time(5)
        assert await fetched(stores, engine, ["draw"]) == later


async def test_a_time_that_has_passed_is_no_wait(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        first = await enqueue(stores, engine)
        second = await enqueue(stores, engine, run_after=ms(engine, 0))
        third = await enqueue(stores, engine, run_after=ms(engine, -1000))
        assert await claimed(stores, engine, 3) == [first, second, third]
        assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(LEASE_S)


async def test_ripe_tasks_stand_where_arrivals_of_that_time_would(engine: SqliteEngine) -> None:
    """A random crowd, and the same crowd that comes only when its time has come: the same order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    crowd = sorted((rng.randrange(1, 600), n) for n in range(40))
    who = {n: (rng.choice("abc"), rng.choice(["vip", "guest", "2"])) for n in range(40)}
    async with engine.open() as stores:
        names: dict[str, int] = {}
        start = ms(engine, 0)
        for seconds, n in crowd:
            fields = {"user_id": f"early {who[n][0]}", "priority": who[n][1], "run_after": start + seconds * 1000}
            names[await enqueue(stores, engine, "w", "comm", **fields)] = n
        for seconds, n in crowd:
            await engine.pass_time(start / 1000 + seconds - engine.now().wall)
            await claimed(stores, engine, 0)
            fields = {"user_id": f"late {who[n][0]}", "priority": who[n][1]}
            names[await enqueue(stores, engine, "w", "other", **fields)] = n
        order: list[list[int]] = [[], []]
        for found, environment in zip(order, ("comm", "other"), strict=True):
            for _ in crowd:
                (claim,) = await stores.tasks.claim([slot(0, environment)], 1e6, engine.now())
                found.append(names[claim.task.task_id])
        assert order[0] == order[1]


async def test_a_task_that_waits_can_be_cancelled_and_waits_again_after_a_retry(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        later = await enqueue(stores, engine, run_after=ms(engine, 10), user_id="u")
        assert (await stores.tasks.cancel(later, engine.now())).status is S.CANCELLED
        assert await stores.tasks.next_expiry(engine.now()) is None
        await stores.tasks.retry(later, engine.now())
        assert await claimed(stores, engine) == []
        other = await enqueue(stores, engine, user_id="u")
        assert await claimed(stores, engine) == [other]
        await engine.pass_time(10)
        assert await claimed(stores, engine) == [later]


async def test_a_task_that_is_not_started_by_its_deadline_fails(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine, deadline=ms(engine, 10))
        later = await enqueue(stores, engine, run_after=ms(engine, 5), deadline=ms(engine, 20))
        assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(5)
        await engine.pass_time(9.9)
        assert await stores.tasks.next_expiry(engine.now()) is not None
        await claimed(stores, engine, 0)
        assert (await stores.tasks.get(task_id)).status is S.PENDING
        assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(0.1, abs=0.01)
    async with engine.open() as stores:
        await engine.pass_time(0.1)
        assert await claimed(stores, engine) == [later]
        task = await stores.tasks.get(task_id)
        assert (task.status, task.attempts, task.finished_at) == (S.FAILED, 0, ms(engine, 0))
        assert "deadline 2027-" in (task.task_message or "")
        assert (await stores.tasks.stats()).failed == 1
        last = (await stores.node.events(0, 1000))[-2:]
        assert (task_id, "FAILED") in [(event.subject, event.data["to"]) for event in last]


async def test_one_that_runs_goes_on_and_fails_only_if_it_has_to_wait_again(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        ids = [await enqueue(stores, engine, deadline=ms(engine, 10)) for _ in range(4)]
        claims = await stores.tasks.claim([slot(n) for n in range(3)], 25, engine.now())
        assert await fetched(stores, engine) == ids[3]
        await engine.pass_time(20)
        assert await claimed(stores, engine, 4) == []
        assert (await stores.tasks.finish(claims[0].lease, DONE, engine.now())).status is S.COMPLETED
        assert (await stores.tasks.finish(claims[1].lease, TRY_AGAIN, engine.now())).status is S.PENDING
        await engine.pass_time(5)
        assert await claimed(stores, engine, 4) == []
        states = [(await stores.tasks.get(task_id)).status for task_id in ids]
        assert states == [S.COMPLETED, S.FAILED, S.FAILED, S.FETCHED]
        assert "after 1 attempts" in ((await stores.tasks.get(ids[1])).task_message or "")


async def test_a_retry_by_hand_drops_a_deadline_that_has_passed(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        missed = await enqueue(stores, engine, deadline=ms(engine, 1))
        ahead = await enqueue(stores, engine, deadline=ms(engine, 100))
        await stores.tasks.cancel(ahead, engine.now())
        await engine.pass_time(2)
        assert await claimed(stores, engine) == []
        assert (await stores.tasks.retry(missed, engine.now())).deadline is None
        assert (await stores.tasks.retry(ahead, engine.now())).deadline == ms(engine, 98)
        assert await claimed(stores, engine, 2) == [missed, ahead]


async def test_more_than_one_round_can_take_are_all_dealt_with(
    engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And meanwhile nobody gets one whose deadline has passed."""
    async with engine.open() as stores:
        for n in range(520):
            await enqueue(stores, engine, deadline=ms(engine, 1), priority=str(n % 3))
        await engine.pass_time(1)
        assert await claimed(stores, engine) == []
        assert (await stores.tasks.stats()).failed in (500, 520)
        assert await claimed(stores, engine) == []
        assert (await stores.tasks.stats()).failed == 520


async def test_the_lease_of_a_task_past_its_deadline_belongs_to_nobody(engine: SqliteEngine) -> None:
    """It ran out, so the task had to wait, so it failed: what its holder brings is late evidence."""
    async with engine.open() as stores:
        await enqueue(stores, engine, deadline=ms(engine, 10))
        claim = await claim_one(stores, engine)
        await engine.pass_time(LEASE_S)
        assert await claimed(stores, engine) == []
        task = await stores.tasks.get(claim.task.task_id)
        assert task.status is S.FAILED
        with pytest.raises(Exception, match="no longer yours"):
            await stores.tasks.finish(claim.lease, DONE, engine.now())
        assert await stores.tasks.get(claim.task.task_id) == task
        assert (await stores.node.events(0, 1000))[-1].type == "task_late"
