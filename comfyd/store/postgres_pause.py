"""What is paused on the shared queue: it holds for every node, and resuming wakes them."""

from typing import Final

from comfyd.model.task import Pause
from comfyd.store.postgres_rows import SERVER_MS, Draft
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_pause import pause_of, tell

_PUT: Final = (
    f"INSERT INTO comfyd_pause (environment, at, caller) SELECT $1, {SERVER_MS}, $2 "
    "ON CONFLICT DO NOTHING RETURNING environment"
)
_DROP: Final = "DELETE FROM comfyd_pause WHERE $1::text IS NULL OR environment = $1 RETURNING environment"
_WAKE: Final = "SELECT pg_notify('comfyd_task', '')"


async def pauses(db: Connection) -> tuple[Pause, ...]:
    found = await db.fetch("SELECT environment, at, caller FROM comfyd_pause ORDER BY environment")
    return tuple(pause_of(*record) for record in found)


async def pause(db: Connection, draft: Draft, environment: str | None, caller: str, wall: float) -> tuple[Pause, ...]:
    if await db.fetch(_PUT, environment or "", caller):
        tell(draft, environment, "paused", caller, wall)
    return await pauses(db)


async def resume(db: Connection, draft: Draft, environment: str | None, caller: str, wall: float) -> tuple[Pause, ...]:
    if await db.fetch(_DROP, environment):
        tell(draft, environment, "running", caller, wall)
    await db.execute(_WAKE)
    return await pauses(db)
