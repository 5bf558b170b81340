"""Opening and closing the stores of a node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from comfyd.store.ledger import Transaction
from comfyd.store.protocol import NodeStore, TaskStore
from comfyd.store.sqlite_node import SqliteNode, own_node_id
from comfyd.store.sqlite_tasks import SqliteTasks
from comfyd.store.task_read import forget_other_boots
from comfyd.store.writer import Writer


@dataclass(frozen=True, slots=True)
class Stores:
    """recovered_from: the database was damaged and stands there now; these stores began empty."""

    node: NodeStore
    tasks: TaskStore
    writer: Writer
    recovered_from: Path | None = None


@asynccontextmanager
async def open_stores(
    database: Path, boot_id: str, event_rows: int, *, busy_timeout_s: float = 5.0
) -> AsyncIterator[Stores]:
    """Both stores on one database file, whose folder must be this daemon's own (it becomes 0700).

    boot_id: the boot that every `now.mono` handed in belongs to. event_rows: length of the event log.
    On leaving, queued operations are executed first. Raises StoreError.
    """
    writer = Writer(database, event_rows, busy_timeout_s)
    try:
        await writer.start()
        node_id = await writer.write(lambda tx: _first_steps(tx, boot_id))
        yield Stores(SqliteNode(writer, node_id), SqliteTasks(writer, boot_id, node_id), writer, writer.recovered_from)
    finally:
        with anyio.CancelScope(shield=True):
            await writer.close()


def _first_steps(tx: Transaction, boot_id: str) -> str:
    forget_other_boots(tx, boot_id)
    return own_node_id(tx)
