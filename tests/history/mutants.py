"""Ten ways to lose or double a task. Each alters one thing around the real store; the checker must catch them all.

Owns: what is wrong in each, and the rule that has to say so. Must not: know the workload.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from comfyd.model.base import Now
from comfyd.model.task import TERMINAL, Claim, Lease, NewTask, Outcome, Slot, Task
from comfyd.store.open import Stores
from comfyd.store.protocol import TaskStore
from comfyd.store.sqlite_tasks import SqliteTasks
from tests.history.comfy import Comfy, DoubleSubmit, LostOutbox, Post
from tests.history.life import Clock, Wrap


class Altered:
    """The real store, but for what a subclass does otherwise."""

    def __init__(self, stores: Stores, clock: Clock) -> None:
        self.real = stores.tasks
        self.writer = stores.writer
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def sql(self, text: str, *values: Any) -> list[Any]:
        return await self.writer.write(lambda tx: [tuple(row) for row in tx.db.execute(text, values).fetchall()])


class EarlyWriter:
    """Answers when an operation has been executed, before its COMMIT."""

    def __init__(self, stores: Stores) -> None:
        self._real = stores.writer
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, call: Callable[..., Any], **hooks: Any) -> "asyncio.Future[Any]":
        early: asyncio.Future[Any] = self._loop.create_future()

        def told(*args: Any) -> Any:
            result = call(*args)
            self._loop.call_soon_threadsafe(answer, result)
            return result

        def answer(result: Any) -> None:
            if not early.done():
                early.set_result(result)

        def refused(late: "asyncio.Future[Any]") -> None:
            with suppress(asyncio.CancelledError):
                if (error := late.exception()) is not None and not early.done():
                    early.set_exception(error)

        self._real.write(told, **hooks).add_done_callback(refused)
        return early

    def write_shared(self, call: Callable[..., Any], item: Any, **hooks: Any) -> "asyncio.Future[Any]":
        def alone(tx: Any) -> Any:
            (result,) = call(tx, [item])
            if isinstance(result, Exception):
                raise result
            return result

        return self.write(alone, **hooks)


def ack_before_commit(stores: Stores, clock: Clock) -> TaskStore:
    return SqliteTasks(EarlyWriter(stores), "boot", stores.node.node_id)  # type: ignore[arg-type]


class NoTokenCheck(Altered):
    async def finish(self, lease: Lease, outcome: Outcome, now: Now) -> Task:
        rows = await self.sql("SELECT token FROM task WHERE task_id = ? AND token IS NOT NULL", lease.task_id)
        return await self.real.finish(lease.model_copy(update={"token": rows[0][0]}) if rows else lease, outcome, now)


class CountedTokens(Altered):
    def __init__(self, stores: Stores, clock: Clock) -> None:
        super().__init__(stores, clock)
        self._numbers = count(1)

    async def claim(self, slots: Sequence[Slot], lease_s: float, now: Now) -> tuple[Claim, ...]:
        return tuple([await self._counted(claim) for claim in await self.real.claim(slots, lease_s, now)])

    async def _counted(self, claim: Claim) -> Claim:
        token = str(next(self._numbers))
        await self.sql("UPDATE task SET token = ? WHERE token = ?", token, claim.lease.token)
        return claim.model_copy(update={"lease": claim.lease.model_copy(update={"token": token})})


class NoExpiry(Altered):
    async def claim(self, slots: Sequence[Slot], lease_s: float, now: Now) -> tuple[Claim, ...]:
        await self.sql("UPDATE task SET lease_mono = 0 WHERE token IS NOT NULL AND lease_mono IS NOT NULL")
        return await self.real.claim(slots, lease_s, now)


class TerminalOverwrite(Altered):
    async def cancel(self, task_id: str, now: Now) -> Task:
        task = await self.real.get(task_id)
        if task.status not in TERMINAL:
            return await self.real.cancel(task_id, now)
        await self.sql("UPDATE task SET state = 'CANCELLED', output = NULL WHERE task_id = ?", task_id)
        return await self.real.get(task_id)


class DroppedKey(Altered):
    async def enqueue(self, new: NewTask, now: Now) -> tuple[Task, bool]:
        return await self.real.enqueue(new.model_copy(update={"idempotency_key": None}), now)


class WallClock(Altered):
    """Measures leases by the clock that people set."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.real, name)

        async def told(*args: Any, **kwargs: Any) -> Any:
            return await call(*(Now(one.wall, one.wall) if isinstance(one, Now) else one for one in args), **kwargs)

        return told


def real(stores: Stores, clock: Clock) -> TaskStore:
    return stores.tasks


@dataclass(frozen=True)
class Mutant:
    """rules: those of which one must object."""

    name: str
    rules: frozenset[str]
    wrap: Wrap = real
    comfy: Callable[[], Comfy] = Comfy
    post: Callable[[], Post] = Post


NONE = Mutant("none", frozenset())
MUTANTS = (
    Mutant("ack before commit", frozenset({"V7", "V6"}), ack_before_commit),
    Mutant("no token check", frozenset({"V8"}), NoTokenCheck),
    Mutant("token is a counter", frozenset({"V8"}), CountedTokens),
    Mutant("lost outbox", frozenset({"Q11"}), post=LostOutbox),
    Mutant("lease again before expiry", frozenset({"V8"}), NoExpiry),
    Mutant("double submit", frozenset({"V9"}), comfy=DoubleSubmit),
    Mutant("terminal state overwritten", frozenset({"V6"}), TerminalOverwrite),
    Mutant("dropped idempotency key", frozenset({"Q10"}), DroppedKey),
    Mutant("lease by the wall clock", frozenset({"V8"}), WallClock),
)
"""The tenth, a kill by pid file, has processes instead of a queue: test_strangers.py."""
