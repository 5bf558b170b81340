"""The floor of a durable queue: one SQLite connection on one thread, everything that has gathered in one transaction.

No leases by token, no events, no idempotency, no order between users: what is measured against it is what those cost.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE task (seq INTEGER PRIMARY KEY, state INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX waiting ON task (seq) WHERE state = 0;
"""
Operation = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]


class GroupCommit:
    """To be used from the loop that made it. Results come after COMMIT (WAL, synchronous FULL)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def call(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((operation, future))
        return await future

    async def enqueue(self, body: bytes) -> int:
        return int(
            await self.call(lambda db: db.execute("INSERT INTO task (state, body) VALUES (0, ?)", (body,)).lastrowid)
        )

    async def finish_and_claim(self, finished: int | None) -> int | None:
        """Complete one task and take the next one, in one transaction."""

        def run(db: sqlite3.Connection) -> int | None:
            if finished is not None:
                db.execute("UPDATE task SET state = 2 WHERE seq = ?", (finished,))
            row = db.execute(
                "UPDATE task SET state = 1 WHERE seq = (SELECT seq FROM task WHERE state = 0 ORDER BY seq LIMIT 1)"
                " RETURNING seq, body"
            ).fetchone()
            return None if row is None else int(row[0])

        found = await self.call(run)
        return None if found is None else int(found)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
        while (first := self._queue.get()) is not None:
            batch = [first]
            while not self._queue.empty() and len(batch) < 500:
                item = self._queue.get()
                if item is None:
                    self._queue.put(None)
                    break
                batch.append(item)
            db.execute("BEGIN IMMEDIATE")
            results = [operation(db) for operation, _ in batch]
            db.execute("COMMIT")
            futures = [future for _, future in batch]
            self._loop.call_soon_threadsafe(_deliver, futures, results)
        db.close()


def _deliver(futures: "list[asyncio.Future[Any]]", results: list[Any]) -> None:
    for future, result in zip(futures, results, strict=True):
        if not future.done():
            future.set_result(result)
