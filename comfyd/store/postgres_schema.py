"""Numbered, forward-only schemas of the shared queue. Nodes that start together take turns (an advisory lock).

Must not: change anything in a database whose schema is newer than the ones known here.
"""

import re
from importlib import resources
from typing import Any, Final

from comfyd.errors import StoreError

Connection = Any
"""asyncpg brings no types."""

LOCK: Final = 0x636F_6D66_7964
"""Number of the advisory lock: `comfyd` in ASCII."""


def schemas() -> list[str]:
    """The schema files in order; number n lifts version n - 1 to n."""
    folder = resources.files("comfyd.store") / "schema" / "postgres"
    files = sorted((f for f in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", f.name)), key=lambda f: f.name)
    return [f.read_text(encoding="utf-8") for f in files]


async def migrate(db: Connection) -> None:
    """Bring the database to the newest schema. Raises StoreError store_corrupt for one that is newer."""
    known = schemas()
    if await _version(db) == len(known):
        return
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        have = await _version(db)
        if have > len(known):
            raise StoreError(
                f"The task database has schema {have}, this comfyd knows {len(known)}: install the newer comfyd on "
                "this node, or give it another database. Nothing was changed.",
                code="store_corrupt",
                retryable=False,
            )
        if have == 0:
            await db.execute("CREATE TABLE IF NOT EXISTS comfyd_schema (version integer NOT NULL)")
            await db.execute("INSERT INTO comfyd_schema VALUES (0)")
        for script in known[have:]:
            await db.execute(script)
        await db.execute("UPDATE comfyd_schema SET version = $1", len(known))


async def _version(db: Connection) -> int:
    # Not to_regclass: it may answer from before another node's COMMIT.
    if not await db.fetchval(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'comfyd_schema' AND pg_table_is_visible(oid))"
    ):
        return 0
    return int(await db.fetchval("SELECT coalesce(max(version), 0) FROM comfyd_schema"))
