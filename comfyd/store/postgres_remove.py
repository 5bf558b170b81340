"""Taking tasks of the shared queue away for good. Kept long enough is so by the server's clock."""

from collections.abc import Sequence
from typing import Final

from comfyd.errors import ComfydError
from comfyd.store.postgres_rows import SERVER_MS, Draft, lock_row
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_remove import check_ended, tell

STRANGERS_MS: Final = 24 * 3600 * 1000
"""So much longer a node leaves what another has run: its result files are there, and that node is to remove both."""
_KEPT: Final = "state IN ('COMPLETED', 'CANCELLED')"
_EXPIRED: Final = f"""
SELECT task_id FROM comfyd_task WHERE {_KEPT} AND ended_at <= {SERVER_MS} - $1::bigint AND
    (node_id IS NULL OR node_id = $2 OR ended_at <= {SERVER_MS} - $1::bigint - {STRANGERS_MS})
ORDER BY ended_at LIMIT $3"""
_OLDEST_S: Final = f"SELECT ({SERVER_MS} - min(ended_at)) / 1000.0::float8 FROM comfyd_task WHERE {_KEPT}"


async def expired(db: Connection, keep_s: float, node_id: str, limit: int) -> tuple[str, ...]:
    found = await db.fetch(_EXPIRED, int(keep_s * 1000), node_id, limit)
    return tuple(record["task_id"] for record in found)


async def oldest_s(db: Connection) -> float | None:
    """Seconds since the oldest of them ended."""
    found = await db.fetchval(_OLDEST_S)
    return None if found is None else float(found)


async def remove(db: Connection, task_ids: Sequence[str]) -> int:
    done = await db.execute(f"DELETE FROM comfyd_task WHERE {_KEPT} AND task_id = ANY ($1::text[])", list(task_ids))
    return int(done.rpartition(" ")[2])


async def delete(db: Connection, draft: Draft, task_id: str, wall: float, again: bool) -> None:
    """again: an earlier try may have done it."""
    try:
        row, _ = await lock_row(db, task_id, wall)
    except ComfydError:
        if again:
            return
        raise
    check_ended(row)
    tell(draft, row, wall)
    await db.execute("DELETE FROM comfyd_task WHERE seq = $1", row["seq"])
