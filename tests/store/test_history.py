"""Random histories of one queue against a small pure model of what the protocol says. Prints its seed.

COMFYD_TEST_SEED replays one.
"""

import os
import random
from dataclasses import dataclass, field

import pytest

from comfyd.errors import ComfydError
from comfyd.model.task import TERMINAL, Claim, Outcome, TaskState
from comfyd.store.open import Stores
from tests.store.engines import BROKEN, CRASHED, DONE, LEASE_S, LOST, TRY_AGAIN, SqliteEngine, new, slot

S = TaskState
OUTCOMES = (DONE, BROKEN, TRY_AGAIN, LOST, CRASHED)


@dataclass
class Row:
    """What the model knows of a task.

    place: rank and number. held: the current token, kept after expiry until someone else is granted it.
    """

    place: tuple[int, int]
    max_attempts: int
    state: TaskState = S.PENDING
    attempts: int = 0
    losses: int = 0
    crashes: int = 0
    cancel: bool = False
    held: str | None = None
    expires: float = 0.0
    done: tuple[str, Outcome] | None = None


@dataclass
class Model:
    rows: dict[str, Row] = field(default_factory=dict)
    time: float = 0.0

    def sweep(self) -> None:
        for row in self.rows.values():
            if row.state is S.PROCESSING and row.expires <= self.time:
                token = row.held
                self.back(row, charged=True)
                row.held = token if row.state is S.PENDING else None

    def back(self, row: Row, charged: bool, crashed: bool = False) -> None:
        if crashed:
            row.attempts, row.crashes = row.attempts - 1, row.crashes + 1
        elif not charged:
            row.attempts, row.losses = row.attempts - 1, row.losses + 1
        row.held = None
        if row.cancel:
            row.state = S.CANCELLED
        elif (charged and row.attempts >= row.max_attempts) or row.losses > 10 or row.crashes >= 3:
            row.state = S.FAILED
        else:
            row.state = S.PENDING

    def claim(self, slots: int) -> list[str]:
        self.sweep()
        queued = sorted((r.place, task_id) for task_id, r in self.rows.items() if r.state is S.PENDING)
        return [task_id for _, task_id in queued[:slots]]

    def grant(self, task_id: str, token: str) -> None:
        row = self.rows[task_id]
        row.state, row.held, row.expires, row.attempts = S.PROCESSING, token, self.time + LEASE_S, row.attempts + 1

    def finish(self, task_id: str, token: str, outcome: Outcome) -> str | None:
        row = self.rows[task_id]
        if row.held == token:
            row.done = (token, outcome)
            if outcome.state is S.PENDING:
                self.back(row, outcome.charged, outcome.crashed)
            else:
                row.state, row.held = outcome.state, None
            return None
        return None if row.done == (token, outcome) else "stale_lease"

    def renew(self, task_id: str, token: str) -> str | None:
        row = self.rows[task_id]
        if row.held != token:
            return "stale_lease"
        row.state, row.expires = S.PROCESSING, self.time + LEASE_S
        return None

    def cancel(self, task_id: str) -> str | None:
        row = self.rows[task_id]
        if row.state in TERMINAL:
            return "illegal_transition"
        if row.state is S.PROCESSING:
            row.cancel = True
        else:
            row.state, row.held = S.CANCELLED, None
        return None

    def retry(self, task_id: str) -> str | None:
        row = self.rows[task_id]
        if row.state not in {S.FAILED, S.CANCELLED}:
            return "illegal_transition"
        row.state, row.attempts, row.losses, row.crashes = S.PENDING, 0, 0, 0
        row.cancel, row.done = False, None
        return None


class Run:
    """One history: draws an operation, does it to both, compares everything."""

    def __init__(self, engine: SqliteEngine, rng: random.Random) -> None:
        self.engine = engine
        self.rng = rng
        self.model = Model()
        self.leases: list[Claim] = []
        self.ends: dict[str, TaskState] = {}

    async def step(self, stores: Stores) -> None:
        names = ["create", "claim", "claim", "finish", "finish", "both", "renew", "cancel", "retry", "wait"]
        name = self.rng.choice(names)
        if name in {"finish", "both", "renew"} and not self.leases:
            name = "claim"
        if name in {"cancel", "retry"} and not self.model.rows:
            name = "create"
        await getattr(self, name)(stores)

    async def create(self, stores: Stores) -> None:
        most = self.rng.randint(1, 3)
        task, _ = await stores.tasks.enqueue(new(max_attempts=most), self.engine.now())
        self.model.rows[task.task_id] = Row((task.rank, len(self.model.rows)), most)

    async def claim(self, stores: Stores) -> None:
        slots = [slot(n) for n in range(self.rng.randint(0, 3))]
        self.granted(len(slots), await stores.tasks.claim(slots, LEASE_S, self.engine.now()))

    def granted(self, slots: int, claims: tuple[Claim, ...]) -> None:
        assert [claim.task.task_id for claim in claims] == self.model.claim(slots)
        for claim in claims:
            self.model.grant(claim.task.task_id, claim.lease.token)
            self.leases.append(claim)

    async def finish(self, stores: Stores) -> None:
        lease, outcome = self.rng.choice(self.leases[-12:]).lease, self.rng.choice(OUTCOMES)
        expected = self.model.finish(lease.task_id, lease.token, outcome)
        assert await code_of(stores.tasks.finish(lease, outcome, self.engine.now())) == expected

    async def both(self, stores: Stores) -> None:
        lease, outcome = self.rng.choice(self.leases[-12:]).lease, self.rng.choice(OUTCOMES)
        expected = self.model.finish(lease.task_id, lease.token, outcome)
        call = stores.tasks.finish_and_claim(lease, outcome, [slot()], LEASE_S, self.engine.now())
        if expected is not None:
            assert await code_of(call) == expected
            return
        _, claims = await call
        self.granted(1, claims)

    async def renew(self, stores: Stores) -> None:
        lease = self.rng.choice(self.leases[-12:]).lease
        expected = self.model.renew(lease.task_id, lease.token)
        assert await code_of(stores.tasks.renew(lease, LEASE_S, self.engine.now())) == expected

    async def cancel(self, stores: Stores) -> None:
        task_id = self.rng.choice(list(self.model.rows))
        assert await code_of(stores.tasks.cancel(task_id, self.engine.now())) == self.model.cancel(task_id)

    async def retry(self, stores: Stores) -> None:
        task_id = self.rng.choice(list(self.model.rows))
        expected = self.model.retry(task_id)
        assert await code_of(stores.tasks.retry(task_id, self.engine.now())) == expected
        if expected is None:
            self.ends.pop(task_id, None)

    async def wait(self, stores: Stores) -> None:
        seconds = self.rng.choice([1.0, 20.0, LEASE_S])
        await self.engine.pass_time(seconds)
        self.model.time += seconds

    async def compare(self, stores: Stores) -> None:
        for task_id, row in self.model.rows.items():
            task = await stores.tasks.get(task_id)
            assert (task.status, task.attempts, task.infra_losses, task.crashes, task.cancel_requested) == (
                row.state,
                row.attempts,
                row.losses,
                row.crashes,
                row.cancel,
            ), task_id
            if task.status in TERMINAL:
                assert self.ends.setdefault(task_id, task.status) is task.status
        stats = await stores.tasks.stats()
        states = [row.state for row in self.model.rows.values()]
        assert (stats.total, stats.pending, stats.processing, stats.completed, stats.failed, stats.cancelled) == (
            len(states),
            *(states.count(s) for s in (S.PENDING, S.PROCESSING, S.COMPLETED, S.FAILED, S.CANCELLED)),
        )


async def code_of(call: object) -> str | None:
    try:
        await call  # type: ignore[misc]
    except ComfydError as error:
        return error.code
    return None


@pytest.mark.asyncio
@pytest.mark.parametrize("run", range(3))
async def test_random_histories_follow_the_model(engine: SqliteEngine, run: int) -> None:
    seed = int(os.environ.get("COMFYD_TEST_SEED", random.randrange(2**32)))
    print(f"COMFYD_TEST_SEED={seed}")
    history = Run(engine, random.Random(seed))
    for _ in range(4):
        async with engine.open() as stores:
            for step in range(60):
                await history.step(stores)
                if step % 5 == 0:
                    await history.compare(stores)
            await history.compare(stores)
    async with engine.open() as stores:
        numbers = [event.seq for event in await stores.node.events(0, 100_000)]
        assert numbers == list(range(1, len(numbers) + 1))
