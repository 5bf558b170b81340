"""How a call on the shared queue is made and told, and the calls that keep the queue itself: pauses, and taking away.

Owns: what is told to this node's event log. Must not: lease or finish anything.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from comfyd.errors import ComfydError, StoreError
from comfyd.failpoint import failpoint
from comfyd.model.base import Now
from comfyd.model.task import Pause
from comfyd.store import postgres_pause, postgres_remove
from comfyd.store.postgres_link import Link
from comfyd.store.postgres_rows import Draft, write_notes
from comfyd.store.postgres_schema import Connection
from comfyd.store.writer import Writer

T = TypeVar("T")
Tries = list[Draft]
PauseChange = Callable[[Connection, Draft, str | None, str, float], Awaitable[tuple[Pause, ...]]]


class Upkeep:
    """link: to the shared database. writer: of this node's event log."""

    def __init__(self, link: Link, writer: Writer, node_id: str) -> None:
        self._link = link
        self._writer = writer
        self._node_id = node_id

    # pausing
    async def pause(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        paused = await self._set(postgres_pause.pause, environment, caller, now)
        failpoint("queue_paused")
        return paused

    async def resume(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        return await self._set(postgres_pause.resume, environment, caller, now)

    async def _set(self, change: PauseChange, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        async def work(db: Connection, again: bool, tries: Tries) -> tuple[Pause, ...]:
            tries.append(draft := Draft())
            async with db.transaction():
                return await change(db, draft, environment, caller, now.wall)

        return await self._call(work)

    async def pauses(self) -> tuple[Pause, ...]:
        return await self._link.call(lambda db, again: postgres_pause.pauses(db))

    # taking away
    async def delete(self, task_id: str, now: Now) -> None:
        async def work(db: Connection, again: bool, tries: Tries) -> None:
            tries.append(draft := Draft())
            async with db.transaction():
                await postgres_remove.delete(db, draft, task_id, now.wall, again)

        await self._call(work)

    async def expired(self, keep_s: float, now: Now, limit: int) -> tuple[tuple[str, ...], float | None]:
        async def look(db: Connection, again: bool) -> tuple[tuple[str, ...], float | None]:
            since_s = await postgres_remove.oldest_s(db)
            found = await postgres_remove.expired(db, keep_s, self._node_id, limit)
            return found, None if since_s is None else keep_s - since_s

        return await self._link.call(look)

    async def remove(self, task_ids: Sequence[str]) -> int:
        return await self._link.call(lambda db, again: postgres_remove.remove(db, task_ids))

    async def _call(self, work: Callable[[Connection, bool, Tries], Awaitable[T]]) -> T:
        """`work` adds what it has written to `tries`; the last that had anything to tell is told once it is over.

        A try whose answer was lost may have been the one that was committed: then the next finds nothing to do.
        Nothing is told where the outcome stays unknown: whoever asks again may then do it, and tell.
        """
        tries: list[Draft] = []
        try:
            result = await self._link.call(lambda db, again: work(db, again, tries))
        except StoreError:
            raise
        except ComfydError:
            self._tell(tries)
            raise
        self._tell(tries)
        return result

    def _tell(self, tries: Tries) -> None:
        """Into this node's event log, not awaited: the queue does not depend on it."""
        notes = next((draft.notes for draft in reversed(tries) if draft.notes), ())
        if notes:
            with suppress(StoreError):  # closed: the daemon is shutting down
                written = self._writer.write(lambda tx: write_notes(tx, notes))
                written.add_done_callback(lambda done: done.cancelled() or done.exception())
