"""Operations that share a transaction or even a call: the same results as if each had been alone."""

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import NewTask, TaskFilter
from comfyd.store.ledger import Transaction
from comfyd.store.open import Stores
from tests.store.engines import DONE, LEASE_S, SqliteEngine, claim_one, enqueue, new, slot
from tests.store.test_sqlite_writer import busy

pytestmark = pytest.mark.asyncio


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


async def create_together(stores: Stores, sqlite: SqliteEngine, many: list[NewTask]) -> list[object]:
    """What each call gave, a task or an error; all of them in one transaction."""
    before = stores.writer.commits
    async with busy(stores):
        calls = [asyncio.ensure_future(stores.tasks.enqueue(one, sqlite.now())) for one in many]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert stores.writer.commits - before <= 1
    return [result if isinstance(result, BaseException) else result[0] for result in results]


async def assert_sound(stores: Stores, total: int) -> None:
    """Rows, counts and the numbers of events agree."""
    stats = await stores.tasks.stats()
    assert stats.total == total
    rows = await stores.writer.read(
        lambda db: db.execute("SELECT (SELECT count(*) FROM task), (SELECT count(*) FROM task_params)").fetchone()
    )
    assert tuple(rows) == (total, total)
    events = await stores.node.events(0, 10_000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    created = [event.subject for event in events if event.data.get("from") is None]
    assert sorted(created) == sorted(t.task_id for t in (await stores.tasks.list(TaskFilter(limit=1000))).tasks)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 200])
async def test_any_number_of_creates_in_one_batch(sqlite: SqliteEngine, n: int) -> None:
    async with sqlite.open() as stores:
        made = await create_together(stores, sqlite, [new(params={"n": k}, user_id=f"u{k % 5}") for k in range(n)])
        for k, task in enumerate(made):
            again = await stores.tasks.get(task.task_id)  # type: ignore[attr-defined]
            assert again == task
            assert again.params == {"n": k}
        assert len({task.task_id for task in made}) == n  # type: ignore[attr-defined]
        await assert_sound(stores, n)


async def test_a_refused_create_harms_no_neighbour(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        first = await enqueue(stores, sqlite, idempotency_key="old", body_digest="a")
        many = [new() for _ in range(40)]
        many[7] = new(idempotency_key="old", body_digest="b")
        many[9] = many[11] = new(idempotency_key="new", body_digest="a")
        many[13] = new(idempotency_key="new", body_digest="b")
        many[15] = new(idempotency_key="old", body_digest="a")
        results = await create_together(stores, sqlite, many)
        assert {n for n, result in enumerate(results) if isinstance(result, ComfydError)} == {7, 13}
        assert results[7].code == "idempotency_mismatch"  # type: ignore[attr-defined]
        assert results[9].task_id == results[11].task_id  # type: ignore[attr-defined]
        assert results[15].task_id == first  # type: ignore[attr-defined]
        await assert_sound(stores, 1 + 40 - 4)


async def test_a_create_that_the_database_refuses_harms_no_neighbour(
    sqlite: SqliteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter([f"task_{n:032x}" for n in (1, 2, 3, 2, 4, 5)])
    monkeypatch.setattr("comfyd.store.sqlite_tasks.new_task_id", lambda: next(ids))
    async with sqlite.open() as stores:
        results = await create_together(stores, sqlite, [new() for _ in range(6)])
        assert [type(result).__name__ for result in results] == ["Task"] * 3 + ["IntegrityError"] + ["Task"] * 2
        await assert_sound(stores, 5)
        monkeypatch.undo()
        await enqueue(stores, sqlite)
        await assert_sound(stores, 6)


async def test_what_fails_half_done_makes_nothing_happen_twice(sqlite: SqliteEngine) -> None:
    def half(tx: Transaction) -> None:
        tx.db.execute("INSERT INTO fact (key, value) VALUES ('half', '{}')")
        tx.count("comm", "draw", "PENDING", 99)
        raise ValueError("no")

    async with sqlite.open() as stores:
        await enqueue(stores, sqlite)
        claim = await claim_one(stores, sqlite)
        async with busy(stores):
            creates = [asyncio.ensure_future(stores.tasks.enqueue(new(), sqlite.now())) for _ in range(5)]
            done = asyncio.ensure_future(
                stores.tasks.finish_and_claim(claim.lease, DONE, [slot()], LEASE_S, sqlite.now())
            )
            await asyncio.sleep(0)
            failing = [stores.writer.write(half), stores.writer.write(half)]
            last = asyncio.ensure_future(stores.tasks.enqueue(new(), sqlite.now()))
        failed = await asyncio.gather(*failing, return_exceptions=True)
        assert [str(error) for error in failed] == ["no", "no"]
        await asyncio.gather(*creates, last)
        finished, claims = await done
        assert finished == await stores.tasks.get(claim.task.task_id)
        assert claims[0].task == await stores.tasks.get(claims[0].task.task_id)
        assert await stores.node.facts() == {}
        stats = await stores.tasks.stats()
        assert (stats.pending, stats.processing, stats.completed) == (5, 1, 1)
        await assert_sound(stores, 7)


async def test_a_wrong_report_costs_its_neighbours_no_second_run(sqlite: SqliteEngine) -> None:
    runs = []

    def count(tx: Transaction) -> int:
        runs.append(tx)
        return tx.db.execute("INSERT INTO fact (key, value) VALUES ('x', '{}')").rowcount

    async with sqlite.open() as stores:
        async with busy(stores):
            unknown = asyncio.ensure_future(stores.tasks.cancel("task_x", sqlite.now()))
            await asyncio.sleep(0)
            counted = stores.writer.write(count)
        with pytest.raises(ComfydError):
            await unknown
        assert await counted == 1
        assert len(runs) == 1


async def test_together_is_as_one_after_another(sqlite: SqliteEngine, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    many = [
        new(
            rng.choice(["draw", "swap"]),
            rng.choice(["comm", "other"]),
            priority=rng.choice(["vip", "normal", "3"]),
            user_id=rng.choice([None, "a", "b"]),
            idempotency_key=rng.choice([None, None, "k", "l"]),
            body_digest="d" * rng.randint(1, 2),
        )
        for _ in range(150)
    ]
    alone = SqliteEngine(tmp_path / "alone")
    async with sqlite.open() as stores, alone.open() as other:
        expected = []
        for one in many:
            try:
                expected.append((await other.tasks.enqueue(one, alone.now()))[0])
            except ComfydError as error:
                expected.append(error.code)
        found = await create_together(stores, sqlite, many)
        assert [getattr(task, "rank", getattr(task, "code", task)) for task in found] == [
            getattr(task, "rank", task) for task in expected
        ]
        assert await stores.tasks.stats() == await other.tasks.stats()


async def test_numbers_go_on_after_everything_was_cleared(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        for _ in range(3):
            await create_together(stores, sqlite, [new(idempotency_key=f"k{n}") for n in range(5)])
            assert await stores.tasks.clear() == 5
        assert await stores.writer.read(lambda db: db.execute("SELECT count(*) FROM task_params").fetchone()[0]) == 0


async def test_a_lone_failure_leaves_no_transaction_open(sqlite: SqliteEngine) -> None:
    async with sqlite.open() as stores:
        with pytest.raises(sqlite3.IntegrityError):
            await stores.writer.write(lambda tx: tx.db.execute("INSERT INTO fact (key) VALUES ('x')"))
        assert not await stores.writer.read(lambda db: db.in_transaction)
        await enqueue(stores, sqlite)
