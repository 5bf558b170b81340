"""Questions to the shared queue that change nothing, and clear(). Counts come from the tally, never from a scan."""

from collections.abc import Sequence
from typing import Any, Final

from comfyd.model.task import TERMINAL, Task, TaskFilter, TaskPage, TaskState, TaskStats
from comfyd.store import task_read
from comfyd.store.postgres_rows import COLUMNS, SERVER_MS, row_of, storable_name
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_due import WAITING
from comfyd.store.task_rows import not_found, task_of

_PENDING: Final = "SELECT coalesce(sum(n), 0)::bigint FROM comfyd_tally WHERE state = 'PENDING'"
_NEXT_DUE: Final = f"""SELECT least(
    (SELECT min(lease_expires_at) FROM comfyd_task WHERE lease_expires_at IS NOT NULL),
    (SELECT min(deadline) FROM comfyd_task WHERE state = 'PENDING' AND deadline IS NOT NULL),
    (SELECT min(run_after) FROM comfyd_task WHERE state = 'PENDING' AND rank >= {WAITING})
) - {SERVER_MS}"""
_SIZE: Final = "octet_length(params) + coalesce(octet_length(output), 0)"


async def one(db: Connection, task_id: str) -> Task:
    record = None
    if storable_name(task_id):
        record = await db.fetchrow(f"SELECT {COLUMNS} FROM comfyd_task WHERE task_id = $1", task_id)
    if record is None:
        raise not_found(task_id)
    return task_of(row_of(record))


async def page(db: Connection, wanted: TaskFilter) -> TaskPage:
    """Newest first, at least one if there is one. The cursor is the number of the last task shown."""
    terms, values = _terms(wanted)
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    found = f"SELECT seq, {_SIZE} AS size FROM comfyd_task {where} ORDER BY seq DESC LIMIT ${len(values) + 1}"
    sized = await db.fetch(found, *values, wanted.limit + 1)
    seqs = _fitting([(record["seq"], record["size"]) for record in sized], wanted.limit)
    rows = await db.fetch(f"SELECT {COLUMNS} FROM comfyd_task WHERE seq = ANY ($1::bigint[]) ORDER BY seq DESC", seqs)
    return TaskPage(
        tasks=tuple(task_of(row_of(row)) for row in rows),
        next_cursor=str(seqs[-1]) if len(seqs) < len(sized) else None,
        queue_length=await db.fetchval(_PENDING),
    )


def _terms(wanted: TaskFilter) -> tuple[list[str], list[Any]]:
    terms, values = list[str](), list[Any]()
    if wanted.status is not None:
        terms.append(f"state = '{wanted.status.value}'")
        if wanted.status in TERMINAL:
            terms.append("finished_at IS NOT NULL")
        elif wanted.status is not TaskState.PENDING:
            terms.append("lease_expires_at IS NOT NULL")
    if wanted.workflow_name is not None:
        values.append(wanted.workflow_name if storable_name(wanted.workflow_name) else "")
        terms.append(f"workflow_name = ${len(values)}")
    if wanted.cursor is not None:
        values.append(task_read.seq_of(wanted.cursor))
        terms.append(f"seq < ${len(values)}")
    return terms, values


def _fitting(sized: Sequence[tuple[int, int]], limit: int) -> list[int]:
    """Numbers of the first tasks that make a page."""
    shown: list[int] = []
    size = 0
    for seq, own in sized[:limit]:
        size += own
        if shown and size > task_read.PAGE_BYTES:
            break
        shown.append(seq)
    return shown


async def pending(db: Connection, environments: Sequence[str]) -> int:
    return int(await db.fetchval(f"{_PENDING} AND environment = ANY ($1::text[])", list(environments)))


async def stats(db: Connection) -> TaskStats:
    states: dict[str, int] = dict.fromkeys((state.value.lower() for state in TaskState), 0)
    workflows: dict[str, int] = {}
    text = (
        "SELECT workflow_name, state, sum(n)::bigint AS n FROM comfyd_tally GROUP BY 1, 2 HAVING sum(n) <> 0 "
        "ORDER BY 1, 2"
    )
    for workflow, state, n in await db.fetch(text):
        states[state.lower()] += n
        workflows[workflow] = workflows.get(workflow, 0) + n
    return TaskStats(total=sum(states.values()), workflows=workflows, **states)


async def load(db: Connection, node_id: str) -> dict[int, int]:
    """Of this node: the ports of another are not ours."""
    text = (
        "SELECT target_port, count(*) AS n FROM comfyd_task WHERE token IS NOT NULL AND node_id = $1 "
        "AND lease_expires_at IS NOT NULL AND target_port IS NOT NULL GROUP BY 1"
    )
    return {record["target_port"]: record["n"] for record in await db.fetch(text, node_id)}


async def next_expiry(db: Connection) -> float | None:
    """Seconds on the server's clock until something happens by itself: a lease, a start, a deadline."""
    left = await db.fetchval(_NEXT_DUE)
    return None if left is None else left / 1000


async def clear(db: Connection) -> int:
    done = await db.execute("DELETE FROM comfyd_task WHERE state NOT IN ('FETCHED', 'PROCESSING')")
    return int(done.rpartition(" ")[2])
