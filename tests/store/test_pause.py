"""Pausing the queue: nothing is handed out, what runs goes on, and a restart changes nothing of it."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from comfyd.model.task import TaskState
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, TRY_AGAIN, PostgresEngine, SqliteEngine, enqueue, slot
from tests.store.test_postgres import two_nodes, until

pytestmark = pytest.mark.asyncio
S = TaskState


async def handed_out(stores: Stores, engine: SqliteEngine, environment: str = "comm") -> list[str]:
    """By every way in which a task may leave the queue."""
    found = list(await stores.tasks.claim([slot(0, environment)], LEASE_S, engine.now()))
    for workflows in (None, ["draw", "paint"]):
        for environments in (None, [environment, "none"]):
            claim = await stores.tasks.fetch("me", workflows, environments, {}, LEASE_S, engine.now())
            found += [claim] if claim else []
    return [claim.task.environment for claim in found]


async def test_a_paused_queue_hands_nothing_out_also_after_a_restart(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for _ in range(12):
            await enqueue(stores, engine)
        running, other = await stores.tasks.claim([slot(0), slot(1)], LEASE_S, engine.now())
        (pause,) = await stores.tasks.pause(None, "10.0.0.7", engine.now())
        assert (pause.environment, pause.by, pause.since) == (None, "10.0.0.7", int(engine.now().wall * 1000))
        assert await handed_out(stores, engine) == []
        await engine.pass_time(1)
        await stores.tasks.renew(running.lease, LEASE_S, engine.now())
        task, claims = await stores.tasks.finish_and_claim(running.lease, DONE, [slot()], LEASE_S, engine.now())
        assert (task.status, claims) == (S.COMPLETED, ())
        assert (await stores.tasks.finish(other.lease, TRY_AGAIN, engine.now())).status is S.PENDING
        assert await stores.tasks.pause(None, "somebody else", engine.now()) == (pause,)
        await enqueue(stores, engine)
    async with engine.open() as stores:
        assert await stores.tasks.pauses() == (pause,)
        assert await handed_out(stores, engine) == []
        assert await stores.tasks.resume(None, "me", engine.now()) == ()
        assert len(await handed_out(stores, engine)) == 5
    async with engine.open() as stores:
        assert await stores.tasks.pauses() == ()
        told = [event.data for event in await stores.node.events(0, 1000) if event.type == "queue"]
        assert [(one["to"], one["by"]) for one in told] == [("paused", "10.0.0.7"), ("running", "me")]


async def test_one_environment_can_be_paused_alone(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        for n in range(12):
            await enqueue(stores, engine, "draw" if n % 2 else "paint", "comm" if n % 4 < 2 else "other")
        await stores.tasks.pause("comm", "me", engine.now())
        assert await handed_out(stores, engine, "comm") == ["other", "other"], "only fetches that name no environment"
        assert await handed_out(stores, engine, "other") == ["other"] * 4
        await stores.tasks.pause(None, "me", engine.now())
        assert [one.environment for one in await stores.tasks.pauses()] == [None, "comm"]
        await stores.tasks.resume("comm", "me", engine.now())
        assert await handed_out(stores, engine, "comm") == [], "it is still a part of the whole"
        await stores.tasks.pause("comm", "me", engine.now())
        assert await stores.tasks.resume(None, "me", engine.now()) == (), "everything goes on"
        assert await handed_out(stores, engine, "comm") == ["comm"] * 5


async def test_leases_and_deadlines_end_in_a_paused_queue(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        held = await enqueue(stores, engine)
        await stores.tasks.claim([slot()], LEASE_S, engine.now())
        missed = await enqueue(stores, engine, deadline=int(engine.now().wall * 1000) + 5000)
        await stores.tasks.pause(None, "me", engine.now())
        await engine.pass_time(LEASE_S)
        assert await handed_out(stores, engine) == []
        assert [(await stores.tasks.get(one)).status for one in (held, missed)] == [S.PENDING, S.FAILED]


async def test_of_claims_that_race_a_pause_none_that_begins_after_its_answer_gets_anything(
    engine: SqliteEngine,
) -> None:
    async with engine.open() as stores:
        for _ in range(30):
            await enqueue(stores, engine)
        paused = False

        async def claims(number: int) -> None:
            for _ in range(8):
                before = paused
                got = await stores.tasks.claim([slot(number)], LEASE_S, engine.now())
                assert not (before and got)

        async def pause() -> None:
            nonlocal paused
            await stores.tasks.pause("comm", "me", engine.now())
            paused = True

        await asyncio.gather(claims(0), claims(1), pause(), claims(2), claims(3))
        assert await stores.tasks.claim([slot()], LEASE_S, engine.now()) == ()


@pytest.mark.postgres
async def test_a_pause_holds_for_every_node_and_its_end_wakes_them(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyd.store.postgres_link.POLL_S", 60)
    async with AsyncExitStack() as stack:
        a, b = await two_nodes(postgres, stack)
        await enqueue(a, postgres)
        await b.tasks.pause("comm", "me", postgres.now())
        assert await handed_out(a, postgres) == []
        assert [one.environment for one in await a.tasks.pauses()] == ["comm"]
        before = postgres.wakes
        await b.tasks.resume(None, "me", postgres.now())
        await until(lambda: postgres.wakes >= before + 2, 3)  # both nodes
        assert await handed_out(a, postgres) == ["comm"]
