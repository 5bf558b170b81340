"""What only a shared queue has: several nodes, the server's clock, notifications, schemas, odd names."""

import asyncio
import re
import shutil
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from comfyd.errors import ComfydError, SettingsError, StoreError
from comfyd.model.base import Now
from comfyd.model.task import Lease, TaskFilter, TaskState
from comfyd.store import postgres_enqueue, postgres_link
from comfyd.store.open import Shared, Stores, open_stores
from comfyd.store.postgres_schema import migrate, schemas
from tests.postgres import of_wheel, running_server
from tests.store.engines import DONE, LEASE_S, LOST, PostgresEngine, claim_one, enqueue, new, slot

pytestmark = [pytest.mark.asyncio, pytest.mark.postgres]


async def two_nodes(postgres: PostgresEngine, stack: AsyncExitStack) -> tuple[Stores, Stores]:
    paths = [postgres.database.with_name(name) / "comfyd.db" for name in ("a", "b")]
    first, second = [await stack.enter_async_context(postgres.open(database=path)) for path in paths]
    assert first.node.node_id != second.node.node_id
    return first, second


async def until(condition: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_two_nodes_never_get_the_same_task(postgres: PostgresEngine) -> None:
    async with AsyncExitStack() as stack:
        nodes = await two_nodes(postgres, stack)
        ids = [task.task_id for task, _ in await asyncio.gather(*(add(node, postgres) for node in nodes * 250))]

        async def drain(node: Stores, caller: int) -> list[str]:
            got: list[str] = []
            idle = 0
            while idle < 3:  # rows that another is just locking are passed over
                claims = await node.tasks.claim([slot(n) for n in range(7)], LEASE_S, postgres.now())
                fetched = await node.tasks.fetch(f"w{caller}", None, None, {}, LEASE_S, postgres.now())
                some = [c.task.task_id for c in claims] + ([fetched.task.task_id] if fetched else [])
                idle = 0 if some else idle + 1
                got += some
            return got

        got = await asyncio.gather(*(drain(node, n) for n, node in enumerate(nodes * 3)))
        assert sorted(task for some in got for task in some) == sorted(ids)
        assert all(sum(map(len, got[n::2])) > 0 for n in range(2))


async def add(node: Stores, postgres: PostgresEngine, **fields: Any) -> tuple[Any, bool]:
    return await node.tasks.enqueue(new(**fields), postgres.now())


async def test_one_key_makes_one_task_on_whatever_node(postgres: PostgresEngine) -> None:
    async with AsyncExitStack() as stack:
        nodes = await two_nodes(postgres, stack)
        for key in range(10):
            made = await asyncio.gather(
                *(add(node, postgres, idempotency_key=f"k{key}", body_digest="d") for node in nodes * 5)
            )
            assert len({task.task_id for task, _ in made}) == 1
            assert sum(fresh for _, fresh in made) == 1
        with pytest.raises(ComfydError) as caught:
            await add(nodes[1], postgres, idempotency_key="k0", body_digest="other")
        assert caught.value.code == "idempotency_mismatch"
        assert (await nodes[0].tasks.stats()).total == 10


async def test_a_node_sees_its_own_leases_and_ports_only(postgres: PostgresEngine) -> None:
    async with AsyncExitStack() as stack:
        a, b = await two_nodes(postgres, stack)
        for environment in ("comm", "comm", "other"):
            await add(a, postgres, environment=environment)
        mine, theirs = await claim_one(a, postgres), await claim_one(b, postgres)
        fetched = await b.tasks.fetch("me", None, ["other"], {"other": 3009}, LEASE_S, postgres.now())
        assert fetched is not None
        assert await a.tasks.load() == {3001: 1}
        assert await b.tasks.load() == {3001: 1, 3009: 1}
        assert (await a.tasks.get(theirs.task.task_id)).node_id == b.node.node_id
        found = await a.tasks.recover(a.node.node_id, LEASE_S, postgres.now())
        assert [claim.task.task_id for claim in found] == [mine.task.task_id]
        assert (await b.tasks.finish(theirs.lease, DONE, postgres.now())).status is TaskState.COMPLETED
        # a cancel asked of the one node is seen by the other, which holds the task
        await b.tasks.cancel(mine.task.task_id, postgres.now())
        assert (await a.tasks.get(mine.task.task_id)).cancel_requested
        assert (await a.tasks.finish(found[0].lease, LOST, postgres.now())).status is TaskState.CANCELLED


async def test_the_lease_of_a_dead_node_goes_to_another(postgres: PostgresEngine) -> None:
    async with AsyncExitStack() as stack:
        a, b = await two_nodes(postgres, stack)
        await add(a, postgres)
        lost = await claim_one(a, postgres)
        assert await b.tasks.next_expiry(postgres.now()) == pytest.approx(LEASE_S)
        await postgres.pass_time(LEASE_S)
        again = await claim_one(b, postgres)
        assert (again.task.task_id, again.task.attempts) == (lost.task.task_id, 2)
        with pytest.raises(ComfydError) as caught:
            await a.tasks.finish(lost.lease, DONE, postgres.now())
        assert caught.value.code == "stale_lease"
        assert [e.subject for e in await a.node.events(0) if e.type == "task_late"] == [lost.task.task_id]


@pytest.mark.parametrize("skew", [-3600.0, 3600.0, -1.7e9, 1e12])
async def test_no_lease_and_no_instant_follows_the_clock_of_a_node(postgres: PostgresEngine, skew: float) -> None:
    """By the server's own clock, which nobody holds still here."""
    await postgres.prepare(still=False)
    wrong = Now(-1e9 if skew > 0 else 1e12, max(0.0, time.time() + skew))
    lease_s = 0.6
    async with AsyncExitStack() as stack:
        a, b = await two_nodes(postgres, stack)
        task, _ = await a.tasks.enqueue(new(), wrong)
        (claim,) = await a.tasks.claim([slot()], 60, wrong)
        lease = await a.tasks.renew(claim.lease, lease_s, wrong)
        begun = time.monotonic()
        left = await b.tasks.next_expiry(wrong)
        assert left is not None
        assert left <= lease_s
        seen: tuple[Any, ...] = ()
        while not seen:
            seen = await b.tasks.claim([slot(1)], 60, wrong)
            waited = time.monotonic() - begun
            assert waited < 15
        assert waited >= lease_s - 0.3
        done = await b.tasks.finish(seen[0].lease, DONE, wrong)
        async with postgres.connection() as db:
            server = (await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")) * 1000
        instants = (task.created_at, done.started_at, done.finished_at, lease.expires_at, seen[0].lease.expires_at)
        assert all(abs(server - instant) < 90_000 for instant in instants if instant is not None)
        assert task.rank == pytest.approx(server * 1000 + 60e6, abs=90e6)


async def test_no_statement_knows_another_clock() -> None:
    """Of all that is sent, only the one function of the schema reads a clock, and leases are compared to it alone."""
    folder = Path(postgres_link.__file__).parent
    python = {path.name: path.read_text() for path in folder.glob("postgres_*.py")}
    assert len(python) >= 7
    clocks = re.compile(
        r"\bnow\(\)|current_time|current_date|localtime|_timestamp\(\)|timeofday|time\.time|monotonic\(", re.I
    )
    assert {name for name, text in python.items() if clocks.search(text)} == set()
    schema = "\n".join(schemas())
    assert len(clocks.findall(schema)) == 1
    assert re.search(r"FUNCTION comfyd_now_us\(\)[^;]*clock_timestamp\(\)", schema)
    compared = [
        right
        for text in [*python.values(), schema]
        for right in re.findall(r"(?:lease_expires_at|run_after|deadline)\s*(?:[<>]=?|<>)\s*(\S+?)[,)\"]*\s", text)
    ]
    assert compared
    assert set(compared) == {"{SERVER_MS}", "clock.us"}, "what a caller says, and the server's clock"
    assert not any(re.search(r"now\.mono|\.mono\b", text) for text in python.values())
    assert all(use.endswith("wall") for text in python.values() for use in re.findall(r"\bnow\.\w+", text))


async def test_the_other_node_is_told_at_once(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "POLL_S", 600.0)
    async with AsyncExitStack() as stack:
        a, b = await two_nodes(postgres, stack)
        await b.tasks.stats()
        for act in ("enqueue", "put back", "cancel"):
            before = postgres.wakes
            if act == "enqueue":
                await enqueue(a, postgres)
            else:
                claim = await claim_one(a, postgres)
                if act == "put back":
                    await a.tasks.finish(claim.lease, LOST, postgres.now())
                else:
                    await a.tasks.cancel(claim.task.task_id, postgres.now())
            await until(lambda before=before: postgres.wakes >= before + 2)  # both listen


async def test_lost_notifications_are_made_up_for(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert postgres_link.POLL_S <= 5
    monkeypatch.setattr(postgres_link, "POLL_S", 0.05)
    monkeypatch.setattr(postgres_link, "CHANNEL", "nobody_speaks_here")
    async with postgres.open() as stores:
        await enqueue(stores, postgres)
        before = postgres.wakes
        await until(lambda: postgres.wakes >= before + 3)


async def test_counts_are_folded_and_stay_true(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "POLL_S", 0.02)
    async with postgres.open() as stores:
        await enqueue(stores, postgres)
        async with postgres.connection() as db:
            await db.execute(
                "INSERT INTO comfyd_tally SELECT 'comm', 'draw', 'FAILED', CASE n % 2 WHEN 0 THEN 1 ELSE -1 END "
                "FROM generate_series(1, 2000) AS n"
            )

            async def rows() -> int:
                return int(await db.fetchval("SELECT count(*) FROM comfyd_tally"))

            deadline = time.monotonic() + 15
            while await rows() > 10:
                assert time.monotonic() < deadline
                assert (await stores.tasks.stats()).total == 1
        assert (await stores.tasks.stats()).model_dump(include={"total", "pending", "failed"}) == {
            "total": 1, "pending": 1, "failed": 0,
        }  # fmt: skip


async def test_names_that_no_text_can_be(postgres: PostgresEngine) -> None:
    async with postgres.open() as stores:
        await enqueue(stores, postgres)
        for name in ("task_\0", "\ud800", "a\0b"):
            forged = Lease(task_id=name, token="t", expires_at=0)
            for call in (
                stores.tasks.get(name),
                stores.tasks.cancel(name, postgres.now()),
                stores.tasks.retry(name, postgres.now()),
                stores.tasks.renew(forged, 1, postgres.now()),
                stores.tasks.finish(forged, DONE, postgres.now()),
            ):
                with pytest.raises(ComfydError) as caught:
                    await call
                assert caught.value.code == "task_not_found"
            assert await stores.tasks.fetch("me", [name], None, {}, 1, postgres.now()) is None
            assert (await stores.tasks.list(TaskFilter(workflow_name=name))).tasks == ()
        # one that cannot be stored harms no other that is stored at the same time
        many = [new(user_id="\0") if n == 3 else new() for n in range(6)]
        results = await asyncio.gather(
            *(stores.tasks.enqueue(one, postgres.now()) for one in many), return_exceptions=True
        )
        assert [n for n, result in enumerate(results) if isinstance(result, BaseException)] == [3]
        assert (await stores.tasks.stats()).total == 6


async def test_large_tasks_do_not_travel_together(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_enqueue, "MAX_CHARACTERS", 1000)
    async with postgres.open() as stores:
        sizes = [10, 3000, 10, 10, 900, 900, 5000, 10]
        made = await asyncio.gather(*(add(stores, postgres, params={"a": "x" * size}) for size in sizes))
        for (task, fresh), size in zip(made, sizes, strict=True):
            assert fresh
            assert (await stores.tasks.get(task.task_id)).params == {"a": "x" * size}


async def test_many_nodes_make_the_schema_once(postgres: PostgresEngine) -> None:
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(postgres.connection()) for _ in range(5)]
        await connections[0].execute(f"CREATE SCHEMA {postgres.schema}")
        await asyncio.gather(*(migrate(db) for db in connections))
        assert await connections[1].fetchval("SELECT version FROM comfyd_schema") == len(schemas())
        assert await connections[1].fetchval("SELECT count(*) FROM comfyd_schema") == 1


async def test_a_newer_schema_is_left_alone(postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "LAST_DELAY_S", 0.2)
    await postgres.prepare()
    async with postgres.connection() as db:
        await db.execute("UPDATE comfyd_schema SET version = version + 1")
        version = await db.fetchval("SELECT xmin::text FROM comfyd_schema")
        async with postgres.open() as stores:
            for call in (stores.tasks.stats(), enqueue(stores, postgres), claim_one(stores, postgres)):
                with pytest.raises(StoreError, match="install the newer comfyd") as caught:
                    await call
                assert (caught.value.code, caught.value.retryable) == ("store_corrupt", False)
            assert stores.node.node_id  # everything else goes on
            assert await db.fetchval("SELECT xmin::text FROM comfyd_schema") == version
            assert await db.fetchval("SELECT count(*) FROM comfyd_task") == 0
            await db.execute("UPDATE comfyd_schema SET version = version - 1")
            await until(lambda: postgres.troubles[-1:] == [None])
            await enqueue(stores, postgres)


@pytest.mark.parametrize("hidden", [False, True])
async def test_the_server_of_the_wheel_will_do(tmp_path: Path, hidden: bool) -> None:
    """Also where a checkout lies below a folder that only its owner may enter."""
    programs = of_wheel()
    if hidden:
        package = programs.parents[1]
        for name in (package.name, f"{package.name}.libs"):
            shutil.copytree(package.parent / name, tmp_path / "closed" / name, symlinks=True)
        (tmp_path / "closed").chmod(0o700)
        programs = tmp_path / "closed" / package.name / "pginstall/bin"
    with running_server(programs) as server:
        engine = PostgresEngine(tmp_path, server)
        async with engine.open() as stores:
            task_id = await enqueue(stores, engine)
            claim = await claim_one(stores, engine)
            assert (await stores.tasks.finish(claim.lease, DONE, engine.now())).task_id == task_id


async def test_without_asyncpg_the_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for name in [name for name in sys.modules if name.startswith("comfyd.store.postgres_")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingsError, match=r"pip install 'comfyd\[postgres\]'"):
        async with open_stores(
            tmp_path / "s/comfyd.db", "boot", 100, shared=Shared("postgresql:///x", lambda: None, lambda _: None)
        ):
            pass
