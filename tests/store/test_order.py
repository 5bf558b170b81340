"""Properties of the queue's order under random arrivals: fair between users, nobody starved, ageing between classes."""

import random
from collections import Counter

import pytest

from comfyd.core.rank import rank_cost
from comfyd.model.task import Task
from tests.store.engines import DONE, SqliteEngine, claim_one, new

pytestmark = pytest.mark.asyncio


def dice() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


async def test_users_with_tasks_left_have_had_the_same_number_of_turns(engine: SqliteEngine) -> None:
    """However many each has sent, and in whatever order: at any moment they are at most one turn apart."""
    rng = dice()
    async with engine.open() as stores:
        for priority in ("vip", "normal", "-2"):
            left = Counter({f"{priority}{n}": rng.randrange(1, 25) for n in range(5)})
            arrivals = [user for user, n in left.items() for _ in range(n)]
            rng.shuffle(arrivals)
            for user in arrivals:
                await stores.tasks.enqueue(new(user_id=user, priority=priority), engine.now())
            turns: Counter[str] = Counter()
            for _ in arrivals:
                user = (await claim_one(stores, engine)).task.user_id or ""
                turns[user] += 1
                left[user] -= 1
                waiting = [turns[name] for name, n in left.items() if n]
                assert max(waiting, default=0) - min(waiting, default=0) <= 1, turns
                assert turns[user] <= min(waiting, default=turns[user]) + 1


async def test_nobody_who_arrives_late_enough_ever_overtakes(engine: SqliteEngine) -> None:
    """A random crowd that comes and is served: a task is overtaken only by those that arrive before its own arrival
    plus what stands between them in price, and its price does not depend on what others do."""
    rng = dice()
    async with engine.open() as stores:
        waiting: dict[str, Task] = {}
        last: dict[tuple[str | None, str], int] = {}
        for _ in range(200):
            if rng.random() < 0.6 or not waiting:
                lane = rng.choice([None, "a", "b", "c"]), rng.choice(["vip", "normal", "guest", "1", "-4"])
                task, _ = await stores.tasks.enqueue(new(user_id=lane[0], priority=lane[1]), engine.now())
                cost = rank_cost(lane[1])
                assert task.rank == max(int(engine.now().wall * 1e6), last.get(lane, 0)) + cost
                last[lane] = task.rank
                waiting[task.task_id] = task
            else:
                claim = await claim_one(stores, engine)
                mine = waiting.pop(claim.task.task_id)
                await stores.tasks.finish(claim.lease, DONE, engine.now())
                if not any((t.user_id, t.priority) == (mine.user_id, mine.priority) for t in waiting.values()):
                    del last[mine.user_id, mine.priority]  # the debt of a lane ends with its backlog
                for other in waiting.values():
                    behind = mine.created_at * 1000 + rank_cost(mine.priority)
                    assert behind <= mine.rank <= other.rank
            await engine.pass_time(rng.choice([0, 0, 1, 20]))


@pytest.mark.parametrize(("slow", "fast"), [("normal", "vip"), ("guest", "vip"), ("guest", "normal"), ("-5", "5")])
async def test_a_better_class_overtakes_by_its_head_start_and_no_more(
    engine: SqliteEngine, slow: str, fast: str
) -> None:
    rng = dice()
    head_start = (rank_cost(slow) - rank_cost(fast)) / 1e6
    async with engine.open() as stores:
        for n in range(8):
            gap = head_start * rng.choice([rng.uniform(0, 0.99), rng.uniform(1.01, 3)])
            first, _ = await stores.tasks.enqueue(new(user_id=f"a{n}", priority=slow), engine.now())
            await engine.pass_time(gap)
            second, _ = await stores.tasks.enqueue(new(user_id=f"b{n}", priority=fast), engine.now())
            order = [(await claim_one(stores, engine)) for _ in range(2)]
            expected = [second, first] if gap < head_start else [first, second]
            assert [claim.task.task_id for claim in order] == [task.task_id for task in expected], gap
            for claim in order:
                await stores.tasks.finish(claim.lease, DONE, engine.now())
