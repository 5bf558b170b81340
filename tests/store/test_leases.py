"""Claiming, renewing, finishing; what a lease that ran out means; cancel, retry, recovery."""

import asyncio
from uuid import UUID

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import Lease, NewTask, Outcome, TaskState
from comfyd.store.open import Stores
from tests.store.engines import (
    BROKEN,
    CRASHED,
    DONE,
    LEASE_S,
    LOST,
    TRY_AGAIN,
    SqliteEngine,
    claim_one,
    enqueue,
    new,
    slot,
)

pytestmark = pytest.mark.asyncio
CANCELLED = Outcome(state=TaskState.CANCELLED, message="interrupted")


async def refused(call: object, code: str) -> None:
    with pytest.raises(ComfydError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code


async def transitions(stores: Stores, task_id: str) -> list[str]:
    return [e.data["to"] for e in await stores.node.events(0, 10_000) if e.type == "task" and e.subject == task_id]


async def test_a_claim_says_who_runs_what_where(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        task = await stores.tasks.get(task_id)
        assert claim.task == task
        assert task.status is TaskState.PROCESSING
        assert (task.attempts, task.instance, task.target_port, task.generation) == (1, "instance-0", 3001, "g0")
        assert task.node_id == stores.node.node_id
        assert task.prompt_id == claim.prompt_id == str(UUID(claim.prompt_id, version=4))
        assert len(claim.lease.token) == 32
        assert claim.lease.expires_at == task.lease_expires_at == int((engine.now().wall + LEASE_S) * 1000)
        assert task.started_at == int(engine.now().wall * 1000)


async def test_racing_claims_never_share_a_task(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        ids = await asyncio.gather(*(enqueue(stores, engine) for _ in range(200)))
        claims = await asyncio.gather(
            *(stores.tasks.claim([slot(n), slot(n + 1)], LEASE_S, engine.now()) for n in range(80)),
            *(stores.tasks.fetch(f"w{n}", None, None, {}, LEASE_S, engine.now()) for n in range(80)),
        )
        granted = [c for some in claims[:80] for c in some] + [c for c in claims[80:] if c]  # type: ignore[union-attr]
        assert sorted(c.task.task_id for c in granted) == sorted(ids)
        assert len({c.lease.token for c in granted}) == 200


async def test_a_lease_that_ran_out_returns_the_task_and_fences_its_holder(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        first = await claim_one(stores, engine)
        await engine.pass_time(LEASE_S - 1)
        assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(1)
        assert await stores.tasks.claim([slot(1)], LEASE_S, engine.now()) == ()
        await engine.pass_time(1)
        second = await claim_one(stores, engine, 1)
        assert second.task.task_id == task_id
        assert second.task.attempts == 2
        assert second.prompt_id != first.prompt_id
        assert second.task.instance == "instance-1"
        await refused(stores.tasks.renew(first.lease, LEASE_S, engine.now()), "stale_lease")
        await refused(stores.tasks.finish(first.lease, BROKEN, engine.now()), "stale_lease")
        done = await stores.tasks.finish(second.lease, DONE, engine.now())
        assert done.status is TaskState.COMPLETED
        assert done.output_data == DONE.output
        await refused(stores.tasks.finish(first.lease, DONE, engine.now()), "stale_lease")
        assert (await stores.tasks.get(task_id)) == done
        late = [e for e in await stores.node.events(0) if e.type == "task_late"]
        assert [(e.subject, e.data["state"]) for e in late] == [(task_id, "FAILED")]


async def test_an_expired_task_is_shown_as_queued_even_without_a_slot(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        await claim_one(stores, engine)
        await engine.pass_time(LEASE_S + 5)
        assert (await stores.tasks.next_expiry(engine.now())) == pytest.approx(-5)
        assert await stores.tasks.claim([], LEASE_S, engine.now()) == ()
        task = await stores.tasks.get(task_id)
        assert task.status is TaskState.PENDING
        assert (task.instance, task.prompt_id, task.started_at, task.lease_expires_at) == (None,) * 4
        assert await stores.tasks.next_expiry(engine.now()) is None
        assert await stores.tasks.load() == {}


@pytest.mark.parametrize("swept", [False, True])
async def test_a_late_result_counts_until_someone_else_has_the_task(engine: SqliteEngine, swept: bool) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        await engine.pass_time(LEASE_S * 10)
        if swept:
            await stores.tasks.claim([], LEASE_S, engine.now())
        task = await stores.tasks.finish(claim.lease, DONE, engine.now())
        assert task.status is TaskState.COMPLETED
        assert task.instance == "instance-0"
        assert task.attempts == 1
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()
        stats = await stores.tasks.stats()
        assert (stats.total, stats.completed) == (1, 1)


@pytest.mark.parametrize("swept", [False, True])
async def test_a_late_renewal_takes_the_task_up_again(engine: SqliteEngine, swept: bool) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        await engine.pass_time(LEASE_S * 2)
        if swept:
            await stores.tasks.claim([], LEASE_S, engine.now())
        lease = await stores.tasks.renew(claim.lease, LEASE_S, engine.now())
        assert lease.token == claim.lease.token
        assert lease.expires_at == int((engine.now().wall + LEASE_S) * 1000)
        task = await stores.tasks.get(task_id)
        assert (task.status, task.attempts, task.prompt_id) == (TaskState.PROCESSING, 1, claim.prompt_id)
        assert await stores.tasks.claim([slot(1)], LEASE_S, engine.now()) == ()


async def test_renewing_keeps_a_long_task(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        lease = (await claim_one(stores, engine)).lease
        for _ in range(20):
            await engine.pass_time(LEASE_S / 3)
            lease = await stores.tasks.renew(lease, LEASE_S, engine.now())
            assert await stores.tasks.claim([slot(1)], LEASE_S, engine.now()) == ()
        assert (await stores.tasks.finish(lease, DONE, engine.now())).attempts == 1


async def test_leases_do_not_follow_the_wall_clock(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        for jump in (-7200, 86_400 * 2, -1_700_000_000):
            engine.jump_wall(jump)
            assert await stores.tasks.claim([slot(1)], LEASE_S, engine.now()) == ()
        assert (await stores.tasks.finish(claim.lease, DONE, engine.now())).status is TaskState.COMPLETED


@pytest.mark.parametrize("outcome", [DONE, BROKEN, TRY_AGAIN, LOST])
async def test_the_same_report_twice_is_answered_twice(engine: SqliteEngine, outcome: Outcome) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        first = await stores.tasks.finish(claim.lease, outcome, engine.now())
        for _ in range(10):
            assert await stores.tasks.finish(claim.lease, outcome, engine.now()) == first
        other = BROKEN if outcome is DONE else DONE
        await refused(stores.tasks.finish(claim.lease, other, engine.now()), "stale_lease")
        assert await stores.tasks.get(first.task_id) == first
        assert len(await transitions(stores, first.task_id)) == 3


async def test_a_token_is_needed_and_must_be_the_tasks_own(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        queued = await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        for task_id, token in ((claim.task.task_id, "f" * 32), (claim.task.task_id, ""), (queued, claim.lease.token)):
            forged = Lease(task_id=task_id, token=token, expires_at=0)
            await refused(stores.tasks.finish(forged, DONE, engine.now()), "stale_lease")
            await refused(stores.tasks.renew(forged, LEASE_S, engine.now()), "stale_lease")
        unknown = Lease(task_id="task_0", token=claim.lease.token, expires_at=0)
        await refused(stores.tasks.finish(unknown, DONE, engine.now()), "task_not_found")
        assert (await stores.tasks.stats()).completed == 0


async def test_charged_returns_end_at_max_attempts(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine, max_attempts=2)
        claim = await claim_one(stores, engine)
        assert (await stores.tasks.finish(claim.lease, TRY_AGAIN, engine.now())).status is TaskState.PENDING
        claim = await claim_one(stores, engine)
        task = await stores.tasks.finish(claim.lease, TRY_AGAIN, engine.now())
        assert task.status is TaskState.FAILED
        assert task.task_message == "Gave up after attempt 2 of 2. Last: it crashed"
        assert task.finished_at == int(engine.now().wall * 1000)
        assert await transitions(stores, task_id) == ["PENDING", "PROCESSING"] * 2 + ["FAILED"]


async def test_expired_leases_end_at_max_attempts(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine, max_attempts=3)
        for attempt in range(1, 4):
            claim = await claim_one(stores, engine)
            assert claim.task.attempts == attempt
            await engine.pass_time(LEASE_S)
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()
        task = await stores.tasks.get(task_id)
        assert task.status is TaskState.FAILED
        assert "attempt 3 of 3" in (task.task_message or "")
        await refused(stores.tasks.finish(claim.lease, DONE, engine.now()), "stale_lease")
        assert [e.data["output"] for e in await stores.node.events(0) if e.type == "task_late"] == [DONE.output]


async def test_losses_are_not_charged_but_have_a_budget(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine, max_attempts=1)
        for loss in range(1, 11):
            claim = await claim_one(stores, engine)
            task = await stores.tasks.finish(claim.lease, LOST, engine.now())
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.PENDING, 0, loss)
        claim = await claim_one(stores, engine)
        task = await stores.tasks.finish(claim.lease, LOST, engine.now())
        assert task.status is TaskState.FAILED
        assert "losing its instance 11 times" in (task.task_message or "")


async def test_a_task_that_kills_its_instances_is_poison_and_no_other_is(engine: SqliteEngine) -> None:
    """Three deaths while it ran, whatever else was lost in between; by hand it gets another chance."""
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine, max_attempts=1)
        for outcome in (CRASHED, LOST, CRASHED, LOST):
            claim = await claim_one(stores, engine)
            assert (await stores.tasks.finish(claim.lease, outcome, engine.now())).status is TaskState.PENDING
        claim = await claim_one(stores, engine)
        task = await stores.tasks.finish(claim.lease, CRASHED, engine.now())
        assert (task.status, task.attempts, task.crashes, task.infra_losses) == (TaskState.FAILED, 0, 3, 2)
        assert (task.task_message or "").startswith("poison: its instance died 3 times")
        assert await stores.tasks.finish(claim.lease, CRASHED, engine.now()) == task, "told twice, counted once"
        task = await stores.tasks.retry(task_id, engine.now())
        assert (task.status, task.crashes, task.infra_losses) == (TaskState.PENDING, 0, 0)


async def test_finish_and_claim_is_one_step(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        ids = [await enqueue(stores, engine) for _ in range(3)]
        claim = await claim_one(stores, engine)
        task, (follower,) = await stores.tasks.finish_and_claim(claim.lease, DONE, [slot()], LEASE_S, engine.now())
        assert (task.task_id, task.status) == (ids[0], TaskState.COMPLETED)
        assert follower.task.task_id == ids[1]
        await refused(
            stores.tasks.finish_and_claim(claim.lease, BROKEN, [slot(1)], LEASE_S, engine.now()), "stale_lease"
        )
        assert (await stores.tasks.get(ids[2])).status is TaskState.PENDING
        task, again = await stores.tasks.finish_and_claim(
            follower.lease, TRY_AGAIN, [slot(), slot(1)], LEASE_S, engine.now()
        )
        assert task.status is (TaskState.PROCESSING if engine.forgets else TaskState.PENDING)  # it was claimed again
        assert [c.task.task_id for c in again] == ids[1:]


async def test_cancel(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        queued, running, fetched = [await enqueue(stores, engine, f"w{n}") for n in range(3)]
        claim = await stores.tasks.fetch("me", ["w2"], None, {}, LEASE_S, engine.now())
        assert claim is not None
        assert (await stores.tasks.cancel(fetched, engine.now())).status is TaskState.CANCELLED
        await refused(stores.tasks.finish(claim.lease, DONE, engine.now()), "stale_lease")
        assert (await stores.tasks.cancel(queued, engine.now())).status is TaskState.CANCELLED
        await refused(stores.tasks.cancel(queued, engine.now()), "illegal_transition")
        held = await claim_one(stores, engine)
        assert held.task.task_id == running
        for _ in range(2):
            task = await stores.tasks.cancel(running, engine.now())
            assert (task.status, task.cancel_requested) == (TaskState.PROCESSING, True)
        requests = [e for e in await stores.node.events(0) if e.data.get("message") == "cancel requested"]
        assert len(requests) == 1
        task = await stores.tasks.finish(held.lease, LOST, engine.now())
        assert task.status is TaskState.CANCELLED
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()


async def test_a_cancelled_task_whose_holder_died_ends_cancelled(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        await claim_one(stores, engine)
        await stores.tasks.cancel(task_id, engine.now())
        await engine.pass_time(LEASE_S)
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()
        assert (await stores.tasks.get(task_id)).status is TaskState.CANCELLED


async def test_cancel_races_completion_to_exactly_one_end(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for outcome in (DONE, TRY_AGAIN, CANCELLED) * 20:
            task_id = await enqueue(stores, engine)
            claim = await claim_one(stores, engine)
            await asyncio.gather(
                stores.tasks.cancel(task_id, engine.now()),
                stores.tasks.finish(claim.lease, outcome, engine.now()),
                stores.tasks.cancel(task_id, engine.now()),
                return_exceptions=True,
            )
            ends = [to for to in await transitions(stores, task_id) if to in {"COMPLETED", "CANCELLED", "FAILED"}]
            assert len(ends) == 1
            assert (await stores.tasks.get(task_id)).status == ends[0]


async def test_retry_by_hand_gives_fresh_budgets(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine, max_attempts=1)
        await refused(stores.tasks.retry(task_id, engine.now()), "illegal_transition")
        claim = await claim_one(stores, engine)
        await stores.tasks.finish(claim.lease, BROKEN, engine.now())
        task = await stores.tasks.retry(task_id, engine.now())
        assert (task.status, task.attempts, task.finished_at, task.task_message) == (TaskState.PENDING, 0, None, None)
        await refused(stores.tasks.finish(claim.lease, BROKEN, engine.now()), "stale_lease")
        claim = await claim_one(stores, engine)
        await stores.tasks.cancel(task_id, engine.now())
        assert (await stores.tasks.finish(claim.lease, LOST, engine.now())).status is TaskState.CANCELLED
        assert not (await stores.tasks.retry(task_id, engine.now())).cancel_requested
        claim = await claim_one(stores, engine)
        await stores.tasks.finish(claim.lease, DONE, engine.now())
        await refused(stores.tasks.retry(task_id, engine.now()), "illegal_transition")


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("expired", [False, True])
async def test_recover_hands_this_nodes_prompts_over_with_new_tokens(
    engine: SqliteEngine, reboot: bool, expired: bool
) -> None:
    async with engine.open() as stores:
        for _ in range(4):
            await enqueue(stores, engine)
        held = await stores.tasks.claim([slot(0), slot(1)], LEASE_S, engine.now())
        fetched = await stores.tasks.fetch("outside", None, None, {}, LEASE_S, engine.now())
        node_id = stores.node.node_id
    if reboot:
        engine.reboot()
    if expired:
        await engine.pass_time(LEASE_S * 5)
    async with engine.open() as stores:
        assert stores.node.node_id == node_id
        assert await stores.tasks.recover("another node", LEASE_S, engine.now()) == ()
        found = await stores.tasks.recover(node_id, LEASE_S, engine.now())
        assert [c.task.task_id for c in found] == [c.task.task_id for c in held]
        for old, claim in zip(held, found, strict=True):
            assert claim.slot is None
            assert claim.lease.token != old.lease.token
            assert (claim.prompt_id, claim.task.generation) == (old.prompt_id, old.task.generation)
            assert (claim.task.instance, claim.task.attempts) == (old.task.instance, 1)
            await refused(stores.tasks.finish(old.lease, DONE, engine.now()), "stale_lease")
        done, lost = found
        await stores.tasks.finish(done.lease, DONE, engine.now())
        await stores.tasks.finish(lost.lease, LOST, engine.now())
        queued = {c.task.task_id for c in await stores.tasks.claim([slot(n) for n in range(9)], LEASE_S, engine.now())}
        assert lost.task.task_id in queued
        assert fetched is not None
        assert (fetched.task.task_id in queued) is (expired or (reboot and engine.boot_ends_leases))


async def test_another_boot_means_expired_unless_the_clock_is_that_of_a_server(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        await claim_one(stores, engine)
    engine.reboot()
    async with engine.open() as stores:
        if not engine.boot_ends_leases:
            assert await stores.tasks.next_expiry(engine.now()) == pytest.approx(LEASE_S)
            assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()
            await engine.pass_time(LEASE_S)
        assert (await stores.tasks.next_expiry(engine.now()) or 0) <= 0
        assert (await claim_one(stores, engine)).task.task_id == task_id


async def test_outcomes_must_end_the_attempt(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await enqueue(stores, engine)
        claim = await claim_one(stores, engine)
        await refused(
            stores.tasks.finish(claim.lease, Outcome(state=TaskState.PROCESSING), engine.now()), "illegal_transition"
        )


async def test_a_task_lost_by_one_environment_is_not_taken_for_another(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        wanted: NewTask = new("swap", "other")
        task, _ = await stores.tasks.enqueue(wanted, engine.now())
        await stores.tasks.claim([slot(0, "other")], LEASE_S, engine.now())
        await engine.pass_time(LEASE_S)
        assert await stores.tasks.claim([slot(0, "comm")], LEASE_S, engine.now()) == ()
        assert (await stores.tasks.get(task.task_id)).status is TaskState.PENDING


async def test_a_result_is_kept_whatever_its_texts_hold(engine: SqliteEngine) -> None:
    odd = "\udce9 caf\u00e9 \x00 \u2028"
    async with engine.open() as stores:
        for state in (TaskState.FAILED, TaskState.COMPLETED):
            await enqueue(stores, engine)
            claim = await claim_one(stores, engine)
            outcome = Outcome(state=state, message=odd, output={"text": [odd, float("inf")]})
            task = await stores.tasks.finish(claim.lease, outcome, engine.now())
            assert task.task_message == odd.replace("\udce9", "?")
            assert task.output_data == {"text": [odd.replace("\udce9", "?"), float("inf")]}
            assert await stores.tasks.finish(claim.lease, outcome, engine.now()) == task
