"""The embedded engine's writer: group commit, savepoints, and that nothing is acknowledged before it is on disk."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from comfyd import failpoint
from comfyd.errors import StoreError
from comfyd.model.base import Now
from comfyd.model.task import Limit, TaskFilter, TaskState
from comfyd.store.ledger import Transaction
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, SqliteEngine, claim_one, enqueue, new, slot

pytestmark = pytest.mark.asyncio


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoint.arm("")


def put(key: str) -> "object":
    def run(tx: Transaction) -> str:
        tx.db.execute("INSERT INTO fact (key, value) VALUES (?, '{}')", (key,))
        return key

    return run


@asynccontextmanager
async def busy(stores: Stores) -> AsyncIterator[None]:
    """Keep the writer in one operation, so that what is queued meanwhile becomes one batch."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        entered.set()
        leave.wait(20)

    holding = stores.writer.read(hold)
    assert await asyncio.to_thread(entered.wait, 20)
    yield
    for _ in range(3):  # tasks begin, what they ask for is handed over
        await asyncio.sleep(0)
    leave.set()
    await holding


def break_the_commit(tx: Transaction) -> None:
    """Something that only COMMIT notices."""
    tx.db.execute("PRAGMA defer_foreign_keys = ON")
    tx.db.execute("INSERT INTO task_params (seq, json) VALUES (999999, '{}')")


async def test_what_gathers_shares_a_commit(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        before = stores.writer.commits
        async with busy(stores):
            creates = [asyncio.ensure_future(stores.tasks.enqueue(new(), sqlite.now())) for _ in range(300)]
        await asyncio.gather(*creates)
        assert stores.writer.commits - before == 1
        assert (await stores.tasks.stats()).pending == 300


async def test_the_database_is_as_durable_as_promised(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [await stores.writer.read(lambda db, p=p: db.execute(f"PRAGMA {p}").fetchone()[0]) for p in pragmas]
        assert values == ["wal", 2, 1, 5000]


async def test_an_operation_that_fails_takes_only_itself_back(sqlite: SqliteEngine) -> None:
    def half(tx: Transaction) -> None:
        put("half")(tx)  # type: ignore[operator]
        tx.event("x", "half", {}, 0.0)
        raise ValueError("no")

    async with sqlite.open() as stores:
        before = stores.writer.commits
        async with busy(stores):
            runs = (put("a"), half, put("b"), put("a"), put("c"))
            calls = [stores.writer.write(run) for run in runs]  # type: ignore[arg-type]
        a, failed, b, twice, c = await asyncio.gather(*calls, return_exceptions=True)
        assert (a, b, c) == ("a", "b", "c")
        assert isinstance(failed, ValueError)
        assert isinstance(twice, sqlite3.IntegrityError)
        assert stores.writer.commits - before == 1
        assert list(await stores.node.facts()) == ["a", "b", "c"]
        assert await stores.node.events(0) == ()


async def test_a_failed_commit_fails_everyone_and_the_next_goes_through(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        await enqueue(stores, sqlite)
        async with busy(stores):
            calls = [stores.writer.write(run) for run in (put("a"), break_the_commit, put("b"))]  # type: ignore[arg-type]
            create = asyncio.ensure_future(stores.tasks.enqueue(new(), sqlite.now()))
        results = await asyncio.gather(*calls, create, return_exceptions=True)
        assert [type(result) for result in results] == [StoreError] * 4
        assert all(result.code == "store_unavailable" and result.retryable for result in results)  # type: ignore[union-attr]
        assert await stores.node.facts() == {}
        assert (await stores.tasks.stats()).total == 1
        await stores.writer.write(put("a"))  # type: ignore[arg-type]
        await enqueue(stores, sqlite)
        assert [e.seq for e in await stores.node.events(0)] == [1, 2]
        assert (await stores.tasks.stats()).pending == 2


async def test_a_full_database_is_named_and_recovers(sqlite: SqliteEngine) -> None:
    def limit(pages: int) -> object:
        return lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0]

    async with sqlite.open() as stores:
        first = await enqueue(stores, sqlite)
        await stores.writer.read(limit(1))  # type: ignore[arg-type]
        big = new(params={"x": "y" * 200_000})
        with pytest.raises(StoreError) as caught:
            await stores.tasks.enqueue(big, sqlite.now())
        assert (caught.value.code, caught.value.retryable, caught.value.http_status) == ("storage_full", True, 503)
        assert [t.task_id for t in (await stores.tasks.list(TaskFilter())).tasks] == [first]
        await stores.tasks.enqueue(big, sqlite.now())
        assert (await stores.tasks.stats()).pending == 2


async def test_a_cancelled_callers_operation_is_still_stored(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        async with busy(stores):
            caller = asyncio.create_task(stores.node.put_fact("kept", {}))
            await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        assert list(await stores.node.facts()) == ["kept"]


async def test_closing_executes_what_is_queued_and_then_refuses(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        calls = [asyncio.ensure_future(stores.node.put_fact(f"k{n}", {})) for n in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    with pytest.raises(StoreError):
        await stores.node.put_fact("late", {})
    assert not sqlite.database.with_name("comfyd.db-wal").exists()
    async with sqlite.open() as again:
        assert len(await again.node.facts()) == 50
    assert not [thread for thread in threading.enumerate() if thread.name == "comfyd-store"]


async def test_a_long_log_is_written_back_while_idle(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        for _ in range(4):
            await asyncio.gather(*(stores.tasks.enqueue(new(), sqlite.now()) for _ in range(300)))
        async with asyncio.timeout(20):
            while sqlite.database.stat().st_size < 1200 * 60:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["enqueue_before_commit", "lease_committed", "result_committed"])
async def test_steps_reach_their_failpoints(sqlite: SqliteEngine, name: str) -> None:
    async with sqlite.open() as stores:
        await enqueue(stores, sqlite)
        await enqueue(stores, sqlite)
        claim = await claim_one(stores, sqlite)
        failpoint.arm(f"{name}=raise")
        step = {
            "enqueue_before_commit": lambda: stores.tasks.enqueue(new(), sqlite.now()),
            "lease_committed": lambda: stores.tasks.claim([slot(1)], LEASE_S, sqlite.now()),
            "result_committed": lambda: stores.tasks.finish(claim.lease, DONE, sqlite.now()),
        }[name]
        with pytest.raises((StoreError, failpoint.FailpointError)):
            await step()
        stats = await stores.tasks.stats()
        stored = {
            "enqueue_before_commit": (2, 1, 1, 0),
            "lease_committed": (2, 0, 2, 0),
            "result_committed": (2, 1, 0, 1),
        }[name]
        assert (stats.total, stats.pending, stats.processing, stats.completed) == stored


async def test_no_statement_of_the_queue_walks_the_table(sqlite: SqliteEngine) -> None:
    """However long queue and history are, and without statistics: every statement is explained as it was executed."""
    seen: set[str] = set()
    async with sqlite.open() as stores:
        await stores.writer.read(lambda db: db.set_trace_callback(seen.add))
        for n in range(4):
            await enqueue(stores, sqlite, f"w{n % 2}", idempotency_key=f"k{n}")
        claim = await claim_one(stores, sqlite)
        await stores.tasks.renew(claim.lease, LEASE_S, sqlite.now())
        for only in ((None, None), (["w0"], None), (["w1"], ["comm"]), (None, ["comm"])):
            await stores.tasks.fetch("me", *only, {}, LEASE_S, sqlite.now())
        await stores.tasks.finish_and_claim(claim.lease, DONE, [slot()], LEASE_S, sqlite.now())
        await stores.tasks.recover(stores.node.node_id, LEASE_S, sqlite.now())
        await stores.tasks.next_expiry(sqlite.now())
        for times in ({"run_after": 10**13}, {"run_after": 1, "deadline": 2}, {"deadline": 10**13}):
            await enqueue(stores, sqlite, **times)
        await stores.tasks.claim([], LEASE_S, Now(1000, 2e10))
        await stores.tasks.load()
        stores.tasks.set_limits({"comm": Limit(running=50, workflows={"w0": 1})})
        await stores.tasks.claim([slot(n) for n in range(3)], LEASE_S, sqlite.now())
        await stores.tasks.fetch("me", None, None, {}, LEASE_S, sqlite.now())
        await stores.tasks.expired(1, sqlite.now(), 10)
        await stores.tasks.pause("comm", "me", sqlite.now())
        await stores.tasks.list(TaskFilter(status=TaskState.FAILED, cursor="9"))
        await stores.tasks.list(TaskFilter(workflow_name="w"))
        await stores.writer.read(lambda db: db.set_trace_callback(None))
        plans = {
            sql: await stores.writer.read(
                lambda db, sql=sql: [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()]
            )
            for sql in seen
            if " task" in sql
        }
    assert len(plans) > 20
    used = " ".join(line for plan in plans.values() for line in plan)
    for index in (
        "task_queue",
        "task_workflow_queue",
        "task_lane",
        "task_held",
        "task_idempotency",
        "task_ended",
        "task_waiting",
        "task_deadline",
    ):
        assert index in used
    for sql, plan in plans.items():
        text = " | ".join(plan)
        assert "SCAN task" not in text.replace("SCAN task USING INDEX task_held", ""), (sql, text)
        assert "TEMP B-TREE FOR ORDER BY" not in text or "node_id" in sql, (sql, text)
        assert "task_ended" not in text or "'FAILED'" in sql, (sql, text)


async def test_states_of_the_protocol_are_those_of_the_schema(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        sql = await stores.writer.read(
            lambda db: db.execute("SELECT sql FROM sqlite_master WHERE name='task'").fetchone()[0]
        )
    assert all(f"'{state}'" in sql for state in TaskState)
