"""What is paused: tasks of it stay queued, those that run go on. Durable; "" stands for the whole queue."""

import sqlite3
from typing import Any, Final

from comfyd.model.task import Pause
from comfyd.store.ledger import Changes, Transaction
from comfyd.store.task_rows import Clock

_ALL: Final = "SELECT environment, at, caller FROM pause ORDER BY environment"
_PUT: Final = "INSERT INTO pause (environment, at, caller) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


def pauses(db: sqlite3.Connection) -> tuple[Pause, ...]:
    return tuple(pause_of(*row) for row in db.execute(_ALL))


def pause_of(environment: str, at: int, caller: str) -> Pause:
    return Pause(environment=environment or None, since=at, by=caller)


def paused(tx: Transaction) -> frozenset[str]:
    """Names of the paused environments; "" if the whole queue is."""
    if tx.known.paused is None:
        tx.known.paused = frozenset(row[0] for row in tx.db.execute(_ALL))
    return tx.known.paused


def pause(tx: Transaction, environment: str | None, caller: str, clock: Clock) -> tuple[Pause, ...]:
    if tx.db.execute(_PUT, (environment or "", clock.ms, caller)).rowcount:
        tell(tx, environment, "paused", caller, clock.wall)
    tx.known.paused = None
    return pauses(tx.db)


def resume(tx: Transaction, environment: str | None, caller: str, clock: Clock) -> tuple[Pause, ...]:
    """None: everything that is paused."""
    where, values = ("", ()) if environment is None else (" WHERE environment = ?", (environment,))
    if tx.db.execute(f"DELETE FROM pause{where}", values).rowcount:
        tell(tx, environment, "running", caller, clock.wall)
    tx.known.paused = None
    return pauses(tx.db)


def tell(tx: Changes, environment: str | None, to: str, caller: str, wall: float) -> None:
    data: dict[str, Any] = {"to": to, "environment": environment, "by": caller}
    tx.note("queue", environment or "queue", data, wall)
