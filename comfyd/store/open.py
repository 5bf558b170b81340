"""Opening and closing the stores of a node."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from comfyd.errors import SettingsError
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


@dataclass(frozen=True, slots=True)
class Shared:
    """A PostgreSQL whose queue many nodes share. wake: the queue may have changed. tell: why no call can succeed now,
    None once they can. assure: "sync" or "async": whether it has a synchronous
    standby, as last asked."""

    url: str
    wake: Callable[[], None]
    tell: Callable[[str | None], None]
    assure: Callable[[str], None] = lambda durability: None


@asynccontextmanager
async def open_stores(
    database: Path,
    boot_id: str,
    event_rows: int,
    *,
    busy_timeout_s: float = 5.0,
    shared: Shared | None = None,
    max_queued: int = 0,
) -> AsyncIterator[Stores]:
    """Both stores on one database file, whose folder must be this daemon's own (it becomes 0700); with `shared` the
    tasks are in that database instead, which need not be in reach.

    boot_id: the boot that every `now.mono` handed in belongs to. event_rows: length of the event log.
    max_queued: beyond so many queued tasks creates are refused (queue_full), 0 = never.
    On leaving, queued operations are executed first. Raises StoreError, SettingsError if asyncpg is missing.
    """
    writer = Writer(database, event_rows, busy_timeout_s)
    try:
        await writer.start()
        node_id = await writer.write(lambda tx: _first_steps(tx, boot_id))
        async with AsyncExitStack() as stack:
            tasks: TaskStore = SqliteTasks(writer, boot_id, node_id, max_queued)
            if shared is not None:
                tasks = await stack.enter_async_context(_shared_tasks(shared, writer, node_id, max_queued))
            yield Stores(SqliteNode(writer, node_id), tasks, writer, writer.recovered_from)
    finally:
        with anyio.CancelScope(shield=True):
            await writer.close()


@asynccontextmanager
async def _shared_tasks(shared: Shared, writer: Writer, node_id: str, max_queued: int) -> AsyncIterator[TaskStore]:
    try:
        from comfyd.store.postgres_link import Link
        from comfyd.store.postgres_tasks import PostgresTasks
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"COMFYD_DATABASE_URL needs the package {error.name}: pip install 'comfyd[postgres]'"
        ) from error
    link = Link(shared.url, shared.wake, shared.tell, shared.assure)
    link.start()
    try:
        yield PostgresTasks(link, writer, node_id, max_queued)
    finally:
        with anyio.CancelScope(shield=True):
            await link.close()


def _first_steps(tx: Transaction, boot_id: str) -> str:
    forget_other_boots(tx, boot_id)
    return own_node_id(tx)
