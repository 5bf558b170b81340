"""How many tasks run at once: by environment and by workflow, over claims and fetches and over nodes."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from comfyd.model.task import Claim, ExternalUpdate, Limit, TaskState
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, LOST, PostgresEngine, SqliteEngine, enqueue, slot
from tests.store.test_postgres import two_nodes, until

pytestmark = pytest.mark.asyncio
S = TaskState


async def claimed(stores: Stores, engine: SqliteEngine, *environments: str) -> tuple[Claim, ...]:
    slots = [slot(n, environment) for n, environment in enumerate(environments)]
    return await stores.tasks.claim(slots, LEASE_S, engine.now())


def names(claims: tuple[Claim, ...]) -> list[str]:
    return [claim.task.workflow_name for claim in claims]


async def test_an_environment_has_no_more_running_than_its_limit(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        stores.tasks.set_limits({"comm": Limit(running=2)})
        for n in range(8):
            await enqueue(stores, engine, environment="comm" if n % 2 else "other")
        claims = await claimed(stores, engine, "comm", "other", "comm", "comm", "other")
        assert [claim.task.environment for claim in claims] == ["comm", "other", "comm", "other"]
        assert await claimed(stores, engine, "comm") == ()
        assert await stores.tasks.fetch("me", None, ["comm"], {}, LEASE_S, engine.now()) is None
        assert await stores.tasks.fetch("me", ["draw"], ["comm"], {}, LEASE_S, engine.now()) is None
        fetched = await stores.tasks.fetch("me", None, None, {}, LEASE_S, engine.now())
        assert fetched is not None
        assert fetched.task.environment == "other"
        _, following = await stores.tasks.finish_and_claim(
            claims[0].lease, DONE, [slot(0), slot(1)], LEASE_S, engine.now()
        )
        assert len(following) == 1, "its own place and no more"
        await engine.pass_time(LEASE_S)
        assert len(await claimed(stores, engine, *["comm"] * 3)) == 2, "leases that ran out do not count"
        stores.tasks.set_limits({})
        assert len(await claimed(stores, engine, *["comm"] * 3)) == 1


async def test_what_a_workflow_has_to_wait_for_is_overtaken_by_others(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        stores.tasks.set_limits({"comm": Limit(running=4, workflows={"draw": 1, "blur": 1})})
        for workflow in ("draw", "draw", "draw", "paint", "blur", "paint", "paint"):
            await enqueue(stores, engine, workflow)
        first = await claimed(stores, engine, "comm", "comm")
        assert names(first) == ["draw", "paint"]
        assert await stores.tasks.fetch("me", ["draw"], None, {}, LEASE_S, engine.now()) is None
        fetched = await stores.tasks.fetch("me", None, None, {}, LEASE_S, engine.now())
        assert fetched is not None
        assert fetched.task.workflow_name == "blur"
        assert names(await claimed(stores, engine, "comm", "comm")) == ["paint"], "four of the environment"
        report = ExternalUpdate(task_id=fetched.task.task_id, status=S.COMPLETED, caller="me")
        await stores.tasks.update(report, LEASE_S, engine.now())
        assert names(await claimed(stores, engine, "comm")) == ["paint"]
        _, following = await stores.tasks.finish_and_claim(first[0].lease, DONE, [slot(0)], LEASE_S, engine.now())
        assert names(following) == ["draw"]


async def test_the_order_of_the_queue_holds_among_those_that_may_run(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        stores.tasks.set_limits({"comm": Limit(workflows={"draw": 1})})
        await enqueue(stores, engine, "draw", priority="vip")
        for workflow, priority in (("b", "guest"), ("a", "normal"), ("draw", "vip"), ("c", "vip"), ("b", "vip")):
            await enqueue(stores, engine, workflow, priority=priority, user_id=workflow)
        assert names(await claimed(stores, engine, *["comm"] * 6)) == ["draw", "c", "b", "a", "b"]


async def test_a_random_life_never_exceeds_a_limit_and_leaves_no_place_unused(engine: SqliteEngine) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    limits = {"comm": Limit(running=4, workflows={"a": 1, "b": 2}), "other": Limit(workflows={"d": 2})}
    homes = {"a": "comm", "b": "comm", "c": "comm", "d": "other", "e": "other"}
    async with engine.open() as stores:
        stores.tasks.set_limits(limits)
        held: list[Claim] = []
        for _ in range(70):
            match rng.randrange(5):
                case 0 | 1:
                    workflow = rng.choice(list(homes))
                    await enqueue(stores, engine, workflow, homes[workflow], priority=str(rng.randrange(3)))
                case 2:
                    held += await claimed(stores, engine, *rng.choices(["comm", "other"], k=rng.randrange(1, 5)))
                case 3:
                    claim = await stores.tasks.fetch("me", None, None, {}, LEASE_S, engine.now())
                    held += [claim] if claim else []
                case 4 if held:
                    done = held.pop(rng.randrange(len(held)))
                    await stores.tasks.finish(done.lease, rng.choice([DONE, LOST]), engine.now())
            running = Counter(claim.task.workflow_name for claim in held)
            assert sum(running[name] for name in "abc") <= 4
            assert (running["a"] <= 1, running["b"] <= 2, running["d"] <= 2) == (True, True, True), running
        held += await claimed(stores, engine, *["comm", "other"] * 30)
        running = Counter(claim.task.workflow_name for claim in held)
        for workflow, home in homes.items():
            total = sum(running[name] for name in homes if homes[name] == home)
            most = limits[home].workflows.get(workflow, 99)
            if running[workflow] < most and total < (limits[home].running or 99):
                assert await stores.tasks.fetch("x", [workflow], None, {}, LEASE_S, engine.now()) is None, (
                    "none is left"
                )


@pytest.mark.postgres
async def test_two_nodes_together_keep_to_a_limit(postgres: PostgresEngine) -> None:
    """Both claim and finish as fast as they can; at no moment is there one lease too many, and none is given twice."""
    async with AsyncExitStack() as stack, postgres.connection() as db:
        nodes = await two_nodes(postgres, stack)
        limit = {"comm": Limit(running=5, workflows={"draw": 2})}
        ids = [await enqueue(nodes[n % 2], postgres, ("draw", "paint")[n % 2]) for n in range(120)]
        got: Counter[str] = Counter()
        worst: Counter[str] = Counter()
        over = asyncio.Event()

        async def work(node: Stores, number: int) -> None:
            node.tasks.set_limits(limit)
            while sum(got.values()) < len(ids):
                claims = await node.tasks.claim([slot(number), slot(number + 1)], LEASE_S, postgres.now())
                fetched = await node.tasks.fetch(f"w{number}", None, None, {}, LEASE_S, postgres.now())
                for claim in [*claims, *([fetched] if fetched else [])]:
                    got[claim.task.task_id] += 1
                    await node.tasks.finish(claim.lease, DONE, postgres.now())

        async def watch() -> None:
            while not over.is_set():
                rows = await db.fetch(
                    "SELECT workflow_name, count(*) AS n FROM comfyd_task WHERE token IS NOT NULL GROUP BY 1"
                )
                for record in rows:
                    worst[record["workflow_name"]] = max(worst[record["workflow_name"]], record["n"])
                worst["all"] = max(worst["all"], sum(record["n"] for record in rows))

        watching = asyncio.ensure_future(watch())
        async with asyncio.timeout(50):
            await asyncio.gather(*(work(nodes[n % 2], n) for n in range(6)))
        over.set()
        await watching
        assert set(got.values()) == {1}
        assert set(got) == set(ids)
        assert (worst["draw"] <= 2, worst["all"] <= 5) == (True, True), worst
        assert worst["all"] > 2, "or nothing was seen"


@pytest.mark.postgres
async def test_a_place_that_becomes_free_wakes_the_other_node(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyd.store.postgres_link.POLL_S", 60)
    async with AsyncExitStack() as stack:
        nodes = await two_nodes(postgres, stack)
        for node in nodes:
            node.tasks.set_limits({"comm": Limit(running=1)})
            await enqueue(node, postgres)
        (claim,) = await claimed(nodes[0], postgres, "comm")
        assert await claimed(nodes[1], postgres, "comm") == ()
        before = postgres.wakes
        await nodes[0].tasks.finish(claim.lease, DONE, postgres.now())
        await until(lambda: postgres.wakes >= before + 2, 3)
        assert len(await claimed(nodes[1], postgres, "comm")) == 1
