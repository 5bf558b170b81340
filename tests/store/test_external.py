"""What outside workers may do: fetch, update with and without their token."""

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import Claim, ExternalUpdate, Task, TaskState
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, SqliteEngine, claim_one, enqueue, slot

pytestmark = pytest.mark.asyncio
S = TaskState


async def fetch(stores: Stores, engine: SqliteEngine, caller: str = "me", **only: list[str]) -> Claim | None:
    return await stores.tasks.fetch(
        caller, only.get("workflows"), only.get("environments"), {"comm": 3001, "swap": 3005}, LEASE_S, engine.now()
    )


async def update(stores: Stores, engine: SqliteEngine, task: Task, status: TaskState, **fields: object) -> Task:
    fields.setdefault("caller", "me")
    change = ExternalUpdate(task_id=task.task_id, status=status, **fields)  # type: ignore[arg-type]
    return await stores.tasks.update(change, LEASE_S, engine.now())


async def refused(call: object, code: str) -> None:
    with pytest.raises(ComfydError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code


async def test_fetch_takes_the_best_of_what_is_asked_for(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        assert await fetch(stores, engine) is None
        a = await enqueue(stores, engine, "a", "comm")
        b = await enqueue(stores, engine, "b", "swap", priority="vip")
        c = await enqueue(stores, engine, "a", "other")
        d = await enqueue(stores, engine, "b", "swap")
        assert await fetch(stores, engine, workflows=["none"]) is None
        assert await fetch(stores, engine, workflows=[]) is None
        assert await fetch(stores, engine, environments=["none"]) is None
        assert await fetch(stores, engine, workflows=["b"], environments=["comm"]) is None
        got = await fetch(stores, engine)
        assert got is not None
        assert (got.task.task_id, got.task.status, got.task.target_port) == (b, S.FETCHED, 3005)
        assert (got.prompt_id, got.slot, got.task.prompt_id, got.task.attempts) == ("", None, None, 1)
        got = await fetch(stores, engine, workflows=["a"], environments=["other"])
        assert got is not None
        assert (got.task.task_id, got.task.target_port) == (c, None)
        assert [(await fetch(stores, engine)).task.task_id for _ in range(2)] == [a, d]  # type: ignore[union-attr]
        assert await fetch(stores, engine) is None


@pytest.mark.parametrize("with_token", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("status", list(S))
async def test_every_update_of_a_fetched_task(
    engine: SqliteEngine, status: TaskState, begun: bool, with_token: bool
) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        token = {"lease_token": claim.lease.token, "caller": "someone else"} if with_token else {}
        if begun:
            task = await update(stores, engine, claim.task, S.PROCESSING, started_at=77, **token)
            assert (task.status, task.started_at) == (S.PROCESSING, 77)
        await engine.pass_time(LEASE_S - 1)
        call = update(stores, engine, claim.task, status, task_message="m", output_data={"urls": ["u"]}, **token)
        if begun and status is S.FETCHED:
            await refused(call, "illegal_transition")
            return
        task = await call
        assert task.status is status
        assert task.task_message == "m"
        if status in {S.FETCHED, S.PROCESSING}:
            assert task.lease_expires_at == int((engine.now().wall + LEASE_S) * 1000)
            await engine.pass_time(LEASE_S - 1)
            assert await fetch(stores, engine) is None
        elif status is S.PENDING:
            assert (task.attempts, task.infra_losses) == ((1, 0) if begun else (0, 1))
            assert await fetch(stores, engine) is not None
        else:
            assert task.output_data == {"urls": ["u"]}
            assert task.finished_at == int(engine.now().wall * 1000)
            assert await fetch(stores, engine) is None


async def test_reported_instants_are_kept(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        task = await update(stores, engine, claim.task, S.COMPLETED, started_at=5, finished_at=9)
        assert (task.started_at, task.finished_at) == (5, 9)


async def test_without_a_token_only_the_fetcher_may_speak(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        for status in S:
            await refused(update(stores, engine, claim.task, status, caller="other"), "stale_lease")
            await refused(update(stores, engine, claim.task, status, lease_token="0" * 32), "stale_lease")
        assert await stores.tasks.get(claim.task.task_id) == claim.task


async def test_the_daemons_own_claims_are_out_of_reach(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        fetched = await fetch(stores, engine)
        assert fetched is not None
        await update(stores, engine, fetched.task, S.PENDING)
        claim = await claim_one(stores, engine)
        await refused(update(stores, engine, claim.task, S.COMPLETED), "stale_lease")
        assert (await stores.tasks.get(claim.task.task_id)).status is S.PROCESSING


async def test_unknown_and_queued_tasks(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        task = await stores.tasks.get(task_id)
        for status in S:
            await refused(update(stores, engine, task, status), "stale_lease")
        ghost = task.model_copy(update={"task_id": "task_ghost"})
        with pytest.raises(ComfydError) as caught:
            await update(stores, engine, ghost, S.COMPLETED)
        assert (caught.value.code, caught.value.message) == ("task_not_found", "Task not found")


@pytest.mark.parametrize("with_token", [False, True])
async def test_the_same_completion_twice(engine: SqliteEngine, with_token: bool) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        token = {"lease_token": claim.lease.token} if with_token else {}
        first = await update(stores, engine, claim.task, S.COMPLETED, output_data={"urls": ["u"]}, **token)
        for _ in range(3):
            again = await update(stores, engine, claim.task, S.COMPLETED, output_data={"urls": ["u"]}, **token)
            assert again == first
        expected = "stale_lease" if with_token else "illegal_transition"
        await refused(update(stores, engine, claim.task, S.COMPLETED, output_data={"urls": []}, **token), expected)
        await refused(update(stores, engine, claim.task, S.PROCESSING, **token), expected)
        await refused(
            update(stores, engine, claim.task, S.COMPLETED, output_data={"urls": ["u"]}, caller="x"), "stale_lease"
        )
        assert await stores.tasks.get(first.task_id) == first


async def test_a_slow_worker_may_go_on_until_another_has_the_task(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        await engine.pass_time(LEASE_S * 2)
        await stores.tasks.claim([], LEASE_S, engine.now())
        assert (await update(stores, engine, claim.task, S.PROCESSING)).status is S.PROCESSING
        await engine.pass_time(LEASE_S * 2)
        other = await fetch(stores, engine, "other")
        assert other is not None
        await refused(update(stores, engine, claim.task, S.COMPLETED), "stale_lease")
        await refused(update(stores, engine, claim.task, S.COMPLETED, lease_token=claim.lease.token), "stale_lease")
        assert (await stores.tasks.finish(other.lease, DONE, engine.now())).status is S.COMPLETED


async def test_outside_and_inside_share_the_queue(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        first, second = await enqueue(stores, engine), await enqueue(stores, engine)
        claim = await fetch(stores, engine)
        assert claim is not None
        assert claim.task.task_id == first
        assert (await claim_one(stores, engine)).task.task_id == second
        assert await stores.tasks.load() == {3001: 2}
        await engine.pass_time(LEASE_S)
        again = await stores.tasks.claim([slot(3)], LEASE_S, engine.now())
        assert [c.task.task_id for c in again] == [first]
