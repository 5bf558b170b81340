"""Putting tasks in, looking at them, their order."""

import asyncio
import random

import pytest

from comfyd.core.rank import rank_cost
from comfyd.errors import ComfydError
from comfyd.model.task import TaskFilter, TaskState
from tests.store.engines import BROKEN, DONE, LEASE_S, LOST, SqliteEngine, claim_one, enqueue, new, slot

pytestmark = pytest.mark.asyncio


async def test_a_task_reads_back_as_it_was_stored_also_after_a_reopen(engine: SqliteEngine) -> None:
    wanted = new(
        params={"a": [1, 2.5, None, True, "ü\n\u2028😀", {"deep": {}}], "big": 2**70}, user_id="u", priority="7"
    )
    async with engine.open() as stores:
        task, made = await stores.tasks.enqueue(wanted, engine.now())
        assert made
        assert await stores.tasks.get(task.task_id) == task
    async with engine.open() as stores:
        again = await stores.tasks.get(task.task_id)
    assert again == task
    assert again.params == wanted.params
    assert again.status is TaskState.PENDING
    assert again.created_at == int(engine.now().wall * 1000)
    assert again.task_id.startswith("task_")
    assert len(again.task_id) == len("task_") + 32


async def test_unknown_ids_are_not_found(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for call in (stores.tasks.get("task_x"), stores.tasks.cancel("task_x", engine.now())):
            with pytest.raises(ComfydError) as caught:
                await call
            assert caught.value.code == "task_not_found"
            assert caught.value.message == "Task not found"


async def test_the_same_idempotency_key_gives_the_same_task(engine: SqliteEngine) -> None:
    first = new(idempotency_key="k", body_digest="d1")
    async with engine.open() as stores:
        made = await asyncio.gather(*(stores.tasks.enqueue(first, engine.now()) for _ in range(20)))
        assert len({task.task_id for task, _ in made}) == 1
        assert sum(fresh for _, fresh in made) == 1
        await stores.tasks.claim([slot()], LEASE_S, engine.now())
        task, fresh = await stores.tasks.enqueue(first, engine.now())
        assert not fresh
        assert task.status is TaskState.PROCESSING
        with pytest.raises(ComfydError) as caught:
            await stores.tasks.enqueue(new(idempotency_key="k", body_digest="d2"), engine.now())
        assert caught.value.code == "idempotency_mismatch"
        assert (await stores.tasks.stats()).total == 1


async def test_pages_are_newest_first_and_complete(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        ids = [await enqueue(stores, engine, "draw" if n % 3 else "paint") for n in range(25)]
        seen: list[str] = []
        cursor = None
        while True:
            page = await stores.tasks.list(TaskFilter(limit=10, cursor=cursor))
            seen += [task.task_id for task in page.tasks]
            assert page.queue_length == 25
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == ids[::-1]
        page = await stores.tasks.list(TaskFilter(workflow_name="paint", status=TaskState.PENDING, limit=4))
        assert [task.task_id for task in page.tasks] == ids[::3][::-1][:4]
        claim = await claim_one(stores, engine)
        page = await stores.tasks.list(TaskFilter(status=TaskState.PROCESSING))
        assert [task.task_id for task in page.tasks] == [claim.task.task_id]
        assert page.queue_length == 24
        for bad in ("x", "-1", "1 OR 1=1", "9" * 40, "²"):
            with pytest.raises(ComfydError) as caught:
                await stores.tasks.list(TaskFilter(cursor=bad))
            assert caught.value.code == "bad_request"


async def test_a_page_of_large_tasks_ends_early_and_nothing_is_skipped(
    engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyd.store.task_read.PAGE_BYTES", 10_000)
    sizes = [100, 4000, 4000, 4000, 50_000, 100, 100, 9000, 20_000, 100]
    async with engine.open() as stores:
        ids = [(await stores.tasks.enqueue(new(params={"a": "é" * (n // 2)}), engine.now()))[0].task_id for n in sizes]
        pages: list[list[str]] = []
        cursor = None
        while cursor is not None or not pages:
            page = await stores.tasks.list(TaskFilter(limit=4, cursor=cursor))
            pages.append([task.task_id for task in page.tasks])
            cursor = page.next_cursor
        assert [task for page in pages for task in page] == ids[::-1]
        assert [len(page) for page in pages] == [1, 1, 3, 1, 2, 2]


@pytest.mark.parametrize("few", [0, 10_000])
async def test_every_state_is_listed_newest_first(
    engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr("comfyd.store.task_read.FEW", few)
    async with engine.open() as stores:
        ids = [await enqueue(stores, engine, f"w{n % 2}", priority=str(n % 3)) for n in range(24)]
        claims = await stores.tasks.claim([slot(n) for n in range(12)], LEASE_S, engine.now())
        for n, claim in enumerate(claims[:9]):
            await stores.tasks.finish(claim.lease, (DONE, BROKEN, LOST)[n % 3], engine.now())
        await stores.tasks.cancel((await enqueue(stores, engine, "w0")), engine.now())
        await stores.tasks.fetch("me", ["w1"], None, {}, LEASE_S, engine.now())
        everything = (await stores.tasks.list(TaskFilter(limit=100))).tasks
        assert {task.status for task in everything} == set(TaskState)
        assert [t.task_id for t in everything[1:]] == ids[::-1]
        for status in TaskState:
            for workflow in (None, "w0", "w1", "w2"):
                wanted = [
                    task for task in everything if task.status is status and workflow in (None, task.workflow_name)
                ]
                page = await stores.tasks.list(TaskFilter(status=status, workflow_name=workflow, limit=2))
                seen = [*page.tasks]
                while page.next_cursor is not None:
                    more = TaskFilter(status=status, workflow_name=workflow, limit=2, cursor=page.next_cursor)
                    page = await stores.tasks.list(more)
                    seen += page.tasks
                assert seen == wanted


async def test_counts_follow_every_transition_and_survive_a_reopen(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for n in range(6):
            await enqueue(stores, engine, f"w{n % 2}", "comm" if n else "other")
        done, failed, held = await stores.tasks.claim([slot(n) for n in range(3)], LEASE_S, engine.now())
        await stores.tasks.finish(done.lease, DONE, engine.now())
        await stores.tasks.finish(failed.lease, BROKEN, engine.now())
        fetched = await stores.tasks.fetch("me", None, ["other"], {"other": 3009}, LEASE_S, engine.now())
        assert fetched is not None
        assert await stores.tasks.load() == {held.task.target_port: 1, 3009: 1}
        assert await stores.tasks.pending(["comm"]) == 2
        assert await stores.tasks.pending(["other", "none"]) == 0
        assert await stores.tasks.pending([]) == 0
    async with engine.open() as stores:
        stats = await stores.tasks.stats()
        assert stats.model_dump() == {
            "total": 6,
            "pending": 2,
            "fetched": 1,
            "processing": 1,
            "completed": 1,
            "failed": 1,
            "cancelled": 0,
            "workflows": {"w0": 3, "w1": 3},
        }


async def test_clear_leaves_only_what_is_leased(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for _ in range(5):
            await enqueue(stores, engine, idempotency_key=None)
        running = await claim_one(stores, engine)
        finished = await claim_one(stores, engine, 1)
        await stores.tasks.finish(finished.lease, DONE, engine.now())
        assert await stores.tasks.clear() == 4
        stats = await stores.tasks.stats()
        assert (stats.total, stats.processing, stats.pending) == (1, 1, 0)
        task = await stores.tasks.finish(running.lease, DONE, engine.now())
        assert task.status is TaskState.COMPLETED
        assert await stores.tasks.clear() == 1
        assert (await stores.tasks.stats()).workflows == {}


async def _drain(engine: SqliteEngine, stores: object) -> list[str]:
    order = []
    while claims := await stores.tasks.claim([slot()], LEASE_S, engine.now()):  # type: ignore[attr-defined]
        order.append(claims[0].task.task_id)
        await stores.tasks.finish(claims[0].lease, DONE, engine.now())  # type: ignore[attr-defined]
    return order


async def test_higher_priority_first_then_creation(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        made = {
            name: await enqueue(stores, engine, priority=priority, user_id=name)
            for name, priority in (("g", "guest"), ("n1", "normal"), ("n2", "0"), ("v", "vip"), ("top", "9"))
        }
        assert await _drain(engine, stores) == [made[name] for name in ("top", "v", "n1", "n2", "g")]


async def test_a_guest_is_never_starved_by_a_stream_of_vips(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        guest = await enqueue(stores, engine, priority="guest")
        waited = 0.0
        while True:
            await enqueue(stores, engine, priority="vip", user_id=f"u{waited}")
            claim = await claim_one(stores, engine)
            await stores.tasks.finish(claim.lease, DONE, engine.now())
            if claim.task.task_id == guest:
                break
            await engine.pass_time(10)
            waited += 10
            assert waited < 1000
        assert waited == pytest.approx((rank_cost("guest") - rank_cost("vip")) / 1e6, abs=20)


async def test_users_of_one_priority_take_turns(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        many = [await enqueue(stores, engine, user_id="many") for _ in range(50)]
        few = [await enqueue(stores, engine, user_id="few") for _ in range(3)]
        order = await _drain(engine, stores)
        assert [order.index(task) for task in few] == [1, 3, 5]
        assert [task for task in order if task in many] == many
        # the debt of a lane ends with its backlog
        await enqueue(stores, engine, user_id="other")
        again = await enqueue(stores, engine, user_id="many")
        assert (await _drain(engine, stores)).index(again) == 1


async def test_slots_only_get_tasks_of_their_environment(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine, "draw", "a")
        swap = await enqueue(stores, engine, "swap", "b")
        claims = await stores.tasks.claim([slot(0, "b"), slot(1, "b"), slot(2, "c")], LEASE_S, engine.now())
        assert [claim.task.task_id for claim in claims] == [swap]
        assert claims[0].slot == slot(0, "b")


async def test_random_order_equals_the_formula(engine: SqliteEngine) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with engine.open() as stores:
        last: dict[tuple[str | None, str], int] = {}
        expected = []
        for n in range(120):
            lane = (rng.choice([None, "a", "b"]), rng.choice(["vip", "normal", "guest", "-2"]))
            task_id = await enqueue(stores, engine, user_id=lane[0], priority=lane[1])
            last[lane] = max(int(engine.now().wall * 1e6), last.get(lane, 0)) + rank_cost(lane[1])
            expected.append((last[lane], n, task_id))
            await engine.pass_time(rng.choice([0, 0, 5, 50]))
        assert await _drain(engine, stores) == [task_id for _, _, task_id in sorted(expected)]
