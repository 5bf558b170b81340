"""What the writer executes: queued operations, and how a batch of them runs inside one transaction.

Owns: that a failing operation harms no neighbour, and that neighbours which share a call are executed by it at once.
Must not: begin, commit or deliver; that is the writer's. An operation may run twice and changes nothing but rows.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, Generic, TypeVar

from comfyd.store.database import is_unusable
from comfyd.store.ledger import Transaction

T = TypeVar("T")
NO_ITEM: Final = object()


class Operation(Generic[T]):
    """One queued call. item: what it asks of a call that it may share with its neighbours, else NO_ITEM.

    before, after: what to run around the COMMIT it is part of (failpoints); after is given the result.
    """

    __slots__ = ("after", "before", "call", "error", "future", "item", "result", "writes")

    def __init__(
        self,
        call: Callable[..., Any],
        future: "asyncio.Future[T]",
        writes: bool,
        item: Any = NO_ITEM,
        before: Callable[[], None] | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> None:
        self.call = call
        self.future = future
        self.writes = writes
        self.item = item
        self.before = before
        self.after = after
        self.result: T | None = None
        self.error: BaseException | None = None


def perform_together(transaction: Transaction, operations: Sequence[Operation[Any]]) -> bool:
    """Execute all in order, without savepoints: these make SQLite copy every page that it is about to change.

    False: one failed with its work half done. Then the transaction is to be rolled back and all performed apart.
    Raises only what makes the database unusable.
    """
    for run in _runs(operations):
        before = transaction.changes()
        try:
            _call(transaction, run)
        except Exception as error:
            if is_unusable(error):
                raise
            if len(run) > 1 or transaction.changes() != before:
                return False
            run[0].error = error
    return True


def perform_apart(transaction: Transaction, operations: Sequence[Operation[Any]]) -> None:
    """Execute all in order, each in its own savepoint, so that those that fail take back only themselves."""
    db = transaction.db
    for operation in operations:
        operation.error = None
        mark = transaction.mark()
        db.execute("SAVEPOINT operation")
        try:
            _call(transaction, [operation])
        except Exception as error:
            if is_unusable(error):
                raise
            operation.error = error
            transaction.back_to(mark)
            db.execute("ROLLBACK TO operation")
        db.execute("RELEASE operation")


def _runs(operations: Sequence[Operation[Any]]) -> Iterator[list[Operation[Any]]]:
    """Neighbours that share a call."""
    for shared, run in groupby(operations, lambda o: None if o.item is NO_ITEM else o.call):
        if shared is None:
            yield from ([operation] for operation in run)
        else:
            yield list(run)


def _call(transaction: Transaction, run: list[Operation[Any]]) -> None:
    call = run[0].call
    if run[0].item is NO_ITEM:
        run[0].result = call(transaction)
        return
    results = call(transaction, [operation.item for operation in run])
    for operation, result in zip(run, results, strict=True):
        if isinstance(result, Exception):
            operation.error = result
        else:
            operation.result = result
