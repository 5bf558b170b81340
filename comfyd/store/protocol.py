"""The two protocols that the rest of the daemon sees. Times in `Now`; leases by random token, never by id alone."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from comfyd.model.base import Now
from comfyd.model.desired import Override
from comfyd.model.task import (
    Claim,
    Event,
    ExternalUpdate,
    Lease,
    Limits,
    NewTask,
    Outcome,
    Pause,
    Slot,
    Task,
    TaskFilter,
    TaskPage,
    TaskStats,
)

Noted = tuple[str, str, Mapping[str, Any], float]
"""Type, subject, data, wall seconds of an event."""


class NodeStore(Protocol):
    """Facts of this node. Every write is on disk (FULL) when the call returns."""

    @property
    def node_id(self) -> str:
        """uuid hex, made at first open."""
        ...

    async def overrides(self) -> tuple[Override, ...]: ...

    async def put_overrides(self, overrides: Sequence[Override], instead_of: Collection[tuple[str, str]] = ()) -> None:
        """Insert each or replace the row of its (kind, key), and remove the rows `instead_of`, in one commit."""
        ...

    async def delete_overrides(self, key: str | None = None, kinds: Collection[str] = ()) -> int:
        """Remove those of `key` (None = any) and of one of `kinds` (empty = any). Returns how many."""
        ...

    async def append_event(self, type_: str, subject: str, data: Mapping[str, Any], wall: float) -> Event: ...

    async def events(self, after: int, limit: int = 500) -> tuple[Event, ...]:
        """Events with seq > after, oldest first."""
        ...

    async def last_event(self) -> int:
        """Highest seq, 0 if none."""
        ...

    async def wait_events(self, after: int) -> None:
        """Return as soon as an event with seq > after is committed."""
        ...

    async def facts(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Small JSON facts by key (restart facts: `output/<instance>`, `crash/<key>`, ...)."""
        ...

    async def put_fact(self, key: str, value: Mapping[str, Any]) -> None: ...

    async def note(self, facts: Mapping[str, Mapping[str, Any]], events: Sequence[Noted] = ()) -> None:
        """put_fact and append_event for many at once, in one commit."""
        ...

    async def delete_fact(self, key: str) -> None: ...


class TaskStore(Protocol):
    """The queue. One behaviour suite holds every engine to the same words.

    Errors: ComfydError codes task_not_found, stale_lease, illegal_transition, idempotency_mismatch, queue_full;
    StoreError if the database cannot be used (then nothing was acknowledged).
    """

    async def enqueue(self, new: NewTask, now: Now) -> tuple[Task, bool]:
        """Store a task; (task, True). Same idempotency key and body_digest: (that task, False); other digest:
        idempotency_mismatch. rank = max(now in us, highest rank of unfinished tasks of (user_id,
        priority)) + rank_cost."""
        ...

    async def get(self, task_id: str) -> Task:
        """Raises task_not_found."""
        ...

    async def list(self, wanted: TaskFilter) -> TaskPage:
        """Newest first; cursor is opaque; queue_length counts PENDING."""
        ...

    async def stats(self) -> TaskStats: ...

    def set_limits(self, limits: Limits) -> None:
        """What claims and fetches keep to from now on. Nodes of a shared queue that agree on one never exceed it."""
        ...

    async def claim(self, slots: Sequence[Slot], lease_s: float, now: Now) -> tuple[Claim, ...]:
        """Lease the best queued or lease-expired task for each slot (rank, then creation), at most one per slot.
        One statement per commit writes owner, random token, key, generation, prompt_id = uuid4; state PROCESSING;
        attempts + 1. A task past max_attempts is failed with the reason instead of claimed, and so is one past its
        deadline; none is claimed before its run_after."""
        ...

    async def fetch(
        self,
        caller: str,
        workflow_names: Sequence[str] | None,
        environments: Sequence[str] | None,
        targets: Mapping[str, int],
        lease_s: float,
        now: Now,
    ) -> Claim | None:
        """For outside workers: lease the next task as FETCHED. targets: environment -> target_port to record."""
        ...

    async def renew(self, lease: Lease, lease_s: float, now: Now) -> Lease:
        """Raises stale_lease if the token is no longer the current one."""
        ...

    async def finish(self, lease: Lease, outcome: Outcome, now: Now) -> Task:
        """Finish or requeue by token. The same outcome twice with the same token gives the same answer; another
        one, or a token that is not current, raises stale_lease. A requested cancel makes a requeue CANCELLED."""
        ...

    async def finish_and_claim(
        self, lease: Lease, outcome: Outcome, slots: Sequence[Slot], lease_s: float, now: Now
    ) -> tuple[Task, tuple[Claim, ...]]:
        """finish and claim in one transaction. If finish raises, nothing is claimed."""
        ...

    async def update(self, change: ExternalUpdate, lease_s: float, now: Now) -> Task:
        """An outside worker's update; renews the lease. Without token it acts on the current lease only if
        `caller` fetched it. Raises task_not_found, stale_lease, illegal_transition."""
        ...

    async def cancel(self, task_id: str, now: Now) -> Task:
        """PENDING and FETCHED become CANCELLED; PROCESSING gets cancel_requested (its holder finishes it);
        terminal: illegal_transition."""
        ...

    async def retry(self, task_id: str, now: Now) -> Task:
        """FAILED or CANCELLED becomes PENDING again with fresh budgets; else illegal_transition."""
        ...

    async def clear(self) -> int:
        """Delete everything that is not leased. Returns how many."""
        ...

    async def delete(self, task_id: str, now: Now) -> None:
        """Take one task that has ended away. Raises task_not_found, illegal_transition."""
        ...

    async def expired(self, keep_s: float, now: Now, limit: int) -> tuple[tuple[str, ...], float | None]:
        """Ids of completed and cancelled tasks that ended longer than keep_s ago, oldest first, and the seconds until
        there is (another) one; None: there is none at all."""
        ...

    async def remove(self, task_ids: Sequence[str]) -> int:
        """Take those of these tasks away that are completed or cancelled. Returns how many."""
        ...

    async def recover(self, node_id: str, lease_s: float, now: Now) -> tuple[Claim, ...]:
        """At boot: give new tokens to this node's PROCESSING tasks so that dispatch can re-attach (slot None)."""
        ...

    async def next_expiry(self, now: Now) -> float | None:
        """Seconds until the next lease runs out, the next task may run or a queued one misses its deadline (<= 0: now);
        None if nothing of that lies ahead. A claim, also one without slots, then does what is due."""
        ...

    async def pause(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        """From now on nothing of `environment` (None: of the whole queue) is claimed or fetched; what runs goes on.
        Returns what is paused now."""
        ...

    async def resume(self, environment: str | None, caller: str, now: Now) -> tuple[Pause, ...]:
        """Undo it; None: every pause."""
        ...

    async def pauses(self) -> tuple[Pause, ...]: ...

    async def pending(self, environments: Sequence[str]) -> int: ...

    async def load(self) -> dict[int, int]:
        """target_port -> FETCHED + PROCESSING tasks on it (routing's load)."""
        ...
