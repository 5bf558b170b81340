"""The one connection on the one thread: everything that has gathered is executed in one transaction (group commit).

Owns: batching, savepoints, COMMIT, what happens when it fails, and the order of delivery: a result reaches its caller
only after COMMIT. Must not: know a table. An operation is a synchronous callable that takes a Transaction (writes) or
the connection (reads). Reads run after the writes of their batch and never wait for a lock.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from comfyd.errors import ComfydError, StoreError
from comfyd.store.batch import NO_ITEM, Operation, perform_apart, perform_together
from comfyd.store.database import connect, is_doubtful, is_unusable, prepare, sound, store_error
from comfyd.store.ledger import Ledger, Transaction

T = TypeVar("T")
Item = TypeVar("Item")
MAX_BATCH: Final = 500
IDLE_S: Final = 0.05
CHECKPOINT_AFTER: Final = 2000
"""Row changes after which a writer that is idle for IDLE_S moves the log into the database: no COMMIT has to."""
CHECKPOINT_AT: Final = 20_000
"""Row changes after which it does so between two batches: a longer log would make that pause longer."""


class Writer:
    """Open with `await start()`, end with `await close()`; to be used from the loop that started it.

    commits: transactions committed so far. recovered_from: where a damaged file was moved to, else None.
    """

    def __init__(self, path: Path, event_rows: int, busy_timeout_s: float = 5.0) -> None:
        self.path = path
        self.commits = 0
        self.recovered_from: Path | None = None
        self.last_event = 0
        self._busy_timeout_s = busy_timeout_s
        self._ledger = Ledger(event_rows)
        self._queue: queue.SimpleQueue[list[Operation[Any]] | None] = queue.SimpleQueue()
        self._gathered: list[Operation[Any]] = []
        self._db: sqlite3.Connection | None = None
        self._refused: StoreError | None = None
        self._doubtful = False
        self._checkpointed = 0
        self._closing = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None]

    async def start(self) -> None:
        """Check, open and migrate the database. Raises StoreError."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        started: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="comfyd-store", daemon=True)
        self._thread.start()
        await asyncio.shield(started)
        self.last_event = self._ledger.last

    async def close(self) -> None:
        """Execute what is queued, write the log back, close. Later calls raise StoreError."""
        if self._thread is None:
            return
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()  # it has only to return

    def write(
        self,
        call: Callable[[Transaction], T],
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> "asyncio.Future[T]":
        """Queue a write. The future has its result once it is on disk; cancelling the future does not undo it."""
        return self._put(call, True, NO_ITEM, before, after)

    def write_shared(
        self,
        call: Callable[[Transaction, Sequence[Item]], Sequence[T | Exception]],
        item: Item,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> "asyncio.Future[T]":
        """`write` for a call that many make at the same time: it gets the items of neighbours at once.

        It returns for each item its result, or the error of an item that has changed nothing. If it raises, nothing
        of it is kept and each item is tried alone.
        """
        return self._put(call, True, item, before, after)

    def read(self, call: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        return self._put(call, False, NO_ITEM, None, None)

    def _put(
        self,
        call: Callable[..., Any],
        writes: bool,
        item: object,
        before: Callable[[], None] | None,
        after: Callable[[Any], None] | None,
    ) -> "asyncio.Future[Any]":
        if self._closing or self._thread is None:
            raise StoreError("The database is closed: the daemon is shutting down.")
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(Operation(call, future, writes, item, before, after))
        return future

    def _hand_over(self) -> None:
        """All that one round of the loop has asked for: one by one, the first would be committed without the others."""
        operations, self._gathered = self._gathered, []
        if operations:
            self._queue.put(operations)

    async def wait_event(self, after: int) -> None:
        """Return once `last_event` is above `after`."""
        while self.last_event <= after:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    # Everything below runs on the writer thread, but for _deliver and _wake.

    def _run(self, started: "asyncio.Future[None]") -> None:
        try:
            self.recovered_from = prepare(self.path)
            self._connection()
        except Exception as error:
            reason = error if isinstance(error, ComfydError) else store_error(error, self.path)
            self._call(_settle, started, reason)
        else:
            self._call(_settle, started, None)
            more = True
            while more:
                batch, more = self._gather()
                for start in range(0, len(batch), MAX_BATCH):
                    self._execute(batch[start : start + MAX_BATCH])
        finally:
            self._close()
            self._call(_settle, self._ended, None)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: no one is left to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _gather(self) -> tuple[list[Operation[Any]], bool]:
        batch: list[Operation[Any]] = []
        operations = self._next()
        while operations is not None:
            batch += operations
            if len(batch) >= MAX_BATCH or self._queue.empty():
                break
            operations = self._queue.get_nowait()
        return batch, operations is not None

    def _next(self) -> list[Operation[Any]] | None:
        """Wait for operations; being idle is the time to write the log back."""
        if self._unwritten() > CHECKPOINT_AFTER:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=IDLE_S)
            self._checkpoint()
        return self._queue.get()

    def _execute(self, batch: list[Operation[Any]]) -> None:
        writes = [o for o in batch if o.writes]
        reads = [o for o in batch if not o.writes]
        if writes:
            self._commit(writes)
            self._call(self._deliver, writes, self._ledger.last)
        if reads:
            self._read(reads)
            self._call(self._deliver, reads, self._ledger.last)
        if self._unwritten() > CHECKPOINT_AT:
            self._checkpoint()

    def _commit(self, operations: list[Operation[Any]]) -> None:
        try:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            transaction = Transaction(db, self._ledger)
            if not perform_together(transaction, operations):
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                transaction.back_to((0, 0))
                perform_apart(transaction, operations)
            last, oldest = transaction.flush()
            for operation in operations:
                if operation.before and operation.error is None:
                    operation.before()
            db.execute("COMMIT")
        except Exception as error:
            self._fail(operations, error)
            return
        self.commits += 1
        self._ledger.last, self._ledger.oldest = last, oldest
        for operation in operations:
            if operation.after and operation.error is None:
                try:
                    operation.after(operation.result)
                except Exception as error:
                    operation.error = error

    def _fail(self, operations: list[Operation[Any]], error: Exception) -> None:
        """Nothing of this batch was stored as far as we know: say so to all, and trust this connection no more."""
        reason = error if isinstance(error, StoreError) else store_error(error, self.path)
        for operation in operations:
            operation.error = StoreError(reason.message, code=reason.code, retryable=reason.retryable)
        self._doubtful = self._doubtful or is_doubtful(error)
        self._close(checkpoint=False)

    def _read(self, operations: list[Operation[Any]]) -> None:
        for operation in operations:
            try:
                operation.result = operation.call(self._connection())
            except Exception as error:
                operation.error = error
                if isinstance(error, sqlite3.Error) and is_unusable(error):
                    self._fail([operation], error)

    def _connection(self) -> sqlite3.Connection:
        if self._refused is not None:
            raise self._refused
        if self._db is None:
            db = connect(self.path, self._busy_timeout_s)
            if self._doubtful and not sound(db):
                db.close()
                self._refused = StoreError(
                    "The database is damaged; restart the daemon: it sets the file aside and starts a fresh one.",
                    code="store_corrupt",
                    retryable=False,
                )
                raise self._refused
            self._doubtful = False
            self._ledger.load(db)
            self._checkpointed = 0
            self._db = db
        return self._db

    def _unwritten(self) -> int:
        """Row changes since the log was last written back."""
        return 0 if self._db is None else self._db.total_changes - self._checkpointed

    def _checkpoint(self) -> None:
        if self._db is not None:
            self._checkpointed = self._db.total_changes
            with contextlib.suppress(sqlite3.Error):  # only early housekeeping: COMMIT does it in the end
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _close(self, checkpoint: bool = True) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
            if checkpoint:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        with contextlib.suppress(sqlite3.Error):
            db.close()

    def _deliver(self, operations: list[Operation[Any]], last_event: int) -> None:
        for operation in operations:
            if operation.future.done():  # its caller was cancelled
                continue
            if operation.error is not None:
                operation.future.set_exception(operation.error)
            else:
                operation.future.set_result(operation.result)
        if last_event > self.last_event:
            self.last_event = last_event
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)


def _settle(future: "asyncio.Future[None]", error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
