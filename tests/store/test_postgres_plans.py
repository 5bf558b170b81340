"""What is asked with every claim reads no table, with statistics or without (decision 0073)."""

import asyncio

import pytest

from comfyd.store.postgres_queue import OVERDUE
from tests.store.engines import LEASE_S, PostgresEngine, new, slot

pytestmark = [pytest.mark.asyncio, pytest.mark.postgres]


async def test_looking_for_what_is_overdue_reads_indexes_alone(postgres: PostgresEngine) -> None:
    """On a session with the server's own settings, and a table that nobody has analyzed."""
    async with postgres.open() as stores:
        await asyncio.gather(*(stores.tasks.enqueue(new(), postgres.now()) for _ in range(500)))
        await stores.tasks.claim([slot(n) for n in range(20)], LEASE_S, postgres.now())
        async with postgres.connection() as db:
            plan = [row[0] for row in await db.fetch(f"EXPLAIN SELECT {OVERDUE}")]
    assert not [line for line in plan if "Seq Scan on comfyd_task" in line], "\n".join(plan)
    assert len([line for line in plan if "using comfyd_task_" in line]) == 3, "\n".join(plan)
