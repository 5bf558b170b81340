"""Overrides, facts, the event log."""

import asyncio
import sqlite3

import pytest

from comfyd.errors import ComfydError
from comfyd.model.desired import Override, Want
from tests.store.engines import SqliteEngine, claim_one, enqueue

pytestmark = pytest.mark.asyncio


async def test_overrides_are_one_per_kind_and_key(engine: SqliteEngine) -> None:
    down = Override(kind="run", key="comfyui/0", want="down", created_at=1.5, by="api")
    spec = Override(kind="spec", key="comfyui/0", fields={"port": 3009, "extra_args": ["--a", "ü"]}, created_at=2)
    other = Override(kind="install", key="comm", token="t", created_at=3, expires_at=9, scope="c")
    async with engine.open() as stores:
        await stores.node.put_overrides([down, spec, other])
        up = down.model_copy(update={"want": Want.UP})
        await stores.node.put_overrides([up])
    async with engine.open() as stores:
        assert await stores.node.overrides() == (other, up, spec)
        assert await stores.node.delete_overrides(key="comfyui/0", kinds=["spec"]) == 1
        assert await stores.node.delete_overrides(key="nothing") == 0
        assert await stores.node.overrides() == (other, up)
        assert await stores.node.delete_overrides(kinds=["install", "restart"]) == 1
        assert await stores.node.delete_overrides() == 1
        assert await stores.node.overrides() == ()


async def test_overrides_are_replaced_whole_or_not_at_all(engine: SqliteEngine) -> None:
    down = Override(kind="run", key="comfyui/0", want="down", created_at=1.5, by="api")
    spec = Override(kind="spec", key="comfyui/0", fields={"port": 3009}, created_at=2)
    up = down.model_copy(update={"want": Want.UP})
    async with engine.open() as stores:
        await stores.node.put_overrides([down, spec])
        with pytest.raises(sqlite3.IntegrityError):
            await stores.node.put_overrides([up, spec.model_copy(update={"key": None})], [("spec", "comfyui/0")])
        assert await stores.node.overrides() == (down, spec)
        await stores.node.put_overrides([up], [("spec", "comfyui/0"), ("run", "comfyui/0"), ("run", "other")])
        assert await stores.node.overrides() == (up,)


async def test_facts(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await stores.node.put_fact("output/comfyui/1", {"path": "1"})
        await stores.node.put_fact("output/comfyui/0", {"path": ""})
        await stores.node.put_fact("crash/%", {"n": 1})
        await stores.node.put_fact("crash/%", {"n": 2})
    async with engine.open() as stores:
        assert await stores.node.facts("output/") == {
            "output/comfyui/0": {"path": ""},
            "output/comfyui/1": {"path": "1"},
        }
        assert await stores.node.facts("crash/%") == {"crash/%": {"n": 2}}
        assert await stores.node.facts("%") == {}
        await stores.node.delete_fact("crash/%")
        assert len(await stores.node.facts()) == 2


async def test_facts_and_events_are_noted_together(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        before = await stores.node.last_event()
        await stores.node.put_fact("a", {"n": 1})
        await stores.node.note({"a": {"n": 2}, "b": {}}, [("instance", "k", {"to": str(n)}, 5.0) for n in range(3)])
        assert await stores.node.facts() == {"a": {"n": 2}, "b": {}}
        events = await stores.node.events(before)
        assert [(e.seq - before, e.subject, e.data, e.at) for e in events] == [
            (n + 1, "k", {"to": str(n)}, 5.0) for n in range(3)
        ]


async def test_event_numbers_have_no_gaps_whatever_fails_and_restarts(engine: SqliteEngine) -> None:
    for _ in range(3):
        async with engine.open() as stores:
            task_id = await enqueue(stores, engine)
            calls = [stores.node.append_event("instance", "comfyui/0", {"n": n}, float(n)) for n in range(20)]
            calls += [stores.tasks.get("task_none"), stores.tasks.cancel("task_none", engine.now())] * 5
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(result, ComfydError) for result in results) == 10
            await stores.tasks.cancel(task_id, engine.now())
    async with engine.open() as stores:
        events = await stores.node.events(0, 1000)
        assert [event.seq for event in events] == list(range(1, 3 * 22 + 1))
        assert await stores.node.last_event() == 66
        assert [event.seq for event in await stores.node.events(60, 3)] == [61, 62, 63]
        assert await stores.node.events(66) == ()


async def test_a_transition_is_told_with_its_task(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        task_id = await enqueue(stores, engine)
        await claim_one(stores, engine)
        made, leased = await stores.node.events(0)
        assert (made.type, made.subject, made.at) == ("task", task_id, engine.now().wall)
        assert made.data == {"from": None, "to": "PENDING", "workflow": "draw", "instance": None, "message": None}
        assert (leased.data["from"], leased.data["to"], leased.data["instance"]) == (
            "PENDING",
            "PROCESSING",
            "instance-0",
        )


async def test_the_log_is_trimmed_and_its_numbers_go_on(engine: SqliteEngine) -> None:
    async with engine.open(event_rows=10) as stores:
        for n in range(35):
            await stores.node.append_event("x", "", {"n": n}, 0.0)
        assert [e.seq for e in await stores.node.events(0)] == list(range(26, 36))
    async with engine.open(event_rows=3) as stores:
        await stores.node.append_event("x", "", {}, 0.0)
        assert [e.seq for e in await stores.node.events(0)] == [34, 35, 36]


async def test_waiters_wake_once_it_is_committed(engine: SqliteEngine) -> None:
    async with engine.open() as stores:
        await stores.node.append_event("x", "", {}, 0.0)
        await asyncio.wait_for(stores.node.wait_events(0), 5)
        waiting = [asyncio.create_task(stores.node.wait_events(1)) for _ in range(3)]
        later = asyncio.create_task(stores.node.wait_events(2))
        abandoned = asyncio.create_task(stores.node.wait_events(1))
        await asyncio.sleep(0)
        abandoned.cancel()
        await enqueue(stores, engine)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert not later.done()
        await stores.node.append_event("x", "", {}, 0.0)
        await asyncio.wait_for(later, 5)
    async with engine.open() as stores:
        await asyncio.wait_for(stores.node.wait_events(2), 5)
