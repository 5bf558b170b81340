"""Limits on the shared queue: nodes take turns (an advisory lock per environment), so that two of them never both take
the last place. Environments without a limit know nothing of this."""

from collections.abc import Iterable
from typing import Final

from comfyd.model.task import Limits
from comfyd.store.postgres_schema import Connection
from comfyd.store.task_limits import Room

LOCK: Final = 0x636F_6D66
"""First half of the lock's number: `comf` in ASCII; the second is made of the environment's name."""
_TURN: Final = f"SELECT pg_advisory_xact_lock({LOCK}, hashtext(name)) FROM unnest($1::text[]) AS name ORDER BY name"
_LEASED: Final = (
    "SELECT environment, workflow_name, count(*) FROM comfyd_task WHERE token IS NOT NULL "
    "AND lease_expires_at IS NOT NULL AND environment = ANY ($1::text[]) GROUP BY 1, 2"
)
_QUEUED: Final = """
WITH RECURSIVE hop AS (
    (SELECT workflow_name FROM comfyd_task WHERE state = 'PENDING' ORDER BY workflow_name LIMIT 1)
    UNION ALL
    SELECT (SELECT workflow_name FROM comfyd_task WHERE state = 'PENDING' AND workflow_name > hop.workflow_name
            ORDER BY workflow_name LIMIT 1) FROM hop WHERE hop.workflow_name IS NOT NULL
) SELECT workflow_name FROM hop WHERE workflow_name IS NOT NULL"""
_WAKE: Final = "SELECT pg_notify('comfyd_task', '')"


async def room(db: Connection, limits: Limits, environments: Iterable[str]) -> Room:
    """In a transaction, to whose end the turn lasts. The count is a statement of its own, so it sees what the last
    holder of the turn has committed."""
    concerned = sorted(set(environments) & limits.keys())
    if not concerned:
        return Room(limits, ())
    await db.fetch(_TURN, concerned)
    return Room(limits, [tuple(record) for record in await db.fetch(_LEASED, concerned)])


async def queued_workflows(db: Connection) -> list[str]:
    return [record["workflow_name"] for record in await db.fetch(_QUEUED)]


async def freed(db: Connection, limits: Limits, environment: str) -> None:
    """A lease has ended: another node may be waiting for just that."""
    if environment in limits:
        await db.execute(_WAKE)
