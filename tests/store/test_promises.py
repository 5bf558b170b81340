"""What an acknowledged create is worth (Q14), and that an end is one end whoever races for it (Q12)."""

import asyncio
import random

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import TERMINAL, ExternalUpdate, Outcome, TaskState
from comfyd.store.open import Stores
from tests.store.engines import BROKEN, DONE, LEASE_S, TRY_AGAIN, SqliteEngine, claim_one, enqueue, new, slot

pytestmark = pytest.mark.asyncio
S = TaskState
CANCELLED = Outcome(state=S.CANCELLED, message="cancelled while it ran")


async def test_every_acknowledged_create_is_claimed_once_with_what_was_asked(engine: SqliteEngine) -> None:
    """Random creates from many callers, with waits, keys told twice, refusals in between and restarts; claimed by
    instances and outside workers."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    engine.max_queued = 60
    promised: dict[str, dict[str, object]] = {}
    refused = 0
    for round_ in range(3):
        async with engine.open() as stores:
            asked = []
            for n in range(35):
                params = {"mark": f"{round_}/{n}", "seed": rng.random(), "text": rng.choice(["ü😀", "a\u2028b", ""])}
                later = int((engine.now().wall + rng.uniform(1, 50)) * 1000) if rng.random() < 0.3 else None
                key = f"{round_}/{n // 2}" if rng.random() < 0.3 else None
                asked.append(
                    new(rng.choice(["draw", "paint"]), params=params, run_after=later, priority=str(rng.randrange(4)),
                        idempotency_key=key, body_digest=key or "")
                )  # fmt: skip
            answers = await asyncio.gather(
                *(stores.tasks.enqueue(one, engine.now()) for one in asked), return_exceptions=True
            )
            for one, answer in zip(asked, answers, strict=True):
                if isinstance(answer, ComfydError):
                    refused += answer.code == "queue_full"
                    continue
                assert not isinstance(answer, BaseException), answer
                task, made = answer
                if made:
                    promised[task.task_id] = one.params
    got: dict[str, dict[str, object]] = {}
    async with engine.open() as stores:
        await engine.pass_time(LEASE_S)
        while len(got) < len(promised):
            claims = list(await stores.tasks.claim([slot(n) for n in range(3)], LEASE_S, engine.now()))
            fetched = await stores.tasks.fetch("me", ["draw", "paint"], None, {}, LEASE_S, engine.now())
            claims += [fetched] if fetched else []
            assert claims, "promised and never handed out"
            for claim in claims:
                assert claim.task.task_id not in got
                got[claim.task.task_id] = claim.task.params
                await stores.tasks.finish(claim.lease, DONE, engine.now())
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()
    assert got == promised
    assert refused > 0, "the limit was never met"


async def races(stores: Stores, engine: SqliteEngine, rng: random.Random, number: int) -> None:
    """Cancels against one report of the holder, an instance or an old worker without token."""
    for _ in range(number):
        task_id = await enqueue(stores, engine)
        outcome = rng.choice([DONE, BROKEN, TRY_AGAIN, CANCELLED])
        if rng.random() < 0.5:
            claim = await claim_one(stores, engine)
            report = stores.tasks.finish(claim.lease, outcome, engine.now())
        else:
            assert await stores.tasks.fetch("me", None, None, {}, LEASE_S, engine.now())
            told = ExternalUpdate(task_id=task_id, status=outcome.state, caller="me", task_message=outcome.message)
            report = stores.tasks.update(told, LEASE_S, engine.now())
        calls = [report, stores.tasks.cancel(task_id, engine.now()), stores.tasks.cancel(task_id, engine.now())]
        rng.shuffle(calls)
        await asyncio.gather(*calls, return_exceptions=True)
        task = await stores.tasks.get(task_id)
        assert task.status in TERMINAL, (outcome.state, task)
        for again in (stores.tasks.cancel(task_id, engine.now()), stores.tasks.get(task_id)):
            try:
                assert await again == task
            except ComfydError as error:
                assert error.code == "illegal_transition"  # noqa: PT017


async def _run(engine: SqliteEngine, number: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with engine.open() as stores:
        await races(stores, engine, random.Random(seed), number)
        ends: dict[str, list[str]] = {}
        after = 0
        while events := await stores.node.events(after, 5000):
            after = events[-1].seq
            for event in events:
                if event.type == "task" and event.data["to"] in TERMINAL:
                    ends.setdefault(event.subject, []).append(event.data["to"])
        assert len(ends) == number
        assert all(len(one) == 1 for one in ends.values())
        stats = await stores.tasks.stats()
        assert (stats.total, stats.pending, stats.fetched, stats.processing) == (number, 0, 0, 0)


async def test_a_cancel_and_a_report_make_one_end(engine: SqliteEngine) -> None:
    await _run(engine, 60)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_thousand_cancels_and_reports_make_a_thousand_ends(engine: SqliteEngine) -> None:
    await _run(engine, 1000)
