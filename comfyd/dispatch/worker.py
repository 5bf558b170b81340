"""The dispatcher: fills free slots with claims, runs them, finishes them, and re-attaches after a restart.

Owns: this node's leases, `live.evidence` and `live.progress`. Must not: start or stop instances, or read files of
the configuration. Woken by tasks, observations, freed slots and what falls due next (a lease, a start, a deadline);
it never ticks.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any

import aiohttp
import anyio
from anyio.abc import TaskGroup

from comfyd.core.route import slots as free_slots
from comfyd.dispatch.attempt import Attempt, carried_out
from comfyd.dispatch.bench import Bench, put_back, show_progress
from comfyd.dispatch.cancels import Cancels
from comfyd.dispatch.limits import Limiter
from comfyd.dispatch.link import Link
from comfyd.dispatch.links import Links
from comfyd.dispatch.pace import Pace
from comfyd.dispatch.recovery import recovered
from comfyd.dispatch.retention import Retention
from comfyd.dispatch.waiting import first_of
from comfyd.errors import ComfydError
from comfyd.failpoint import failpoint
from comfyd.live import Cell, Live
from comfyd.logs import get_logger
from comfyd.model.base import Now
from comfyd.model.paths import Paths
from comfyd.model.task import Claim, Lease, Outcome, Slot, TaskState
from comfyd.settings import Settings
from comfyd.store.protocol import TaskStore

MAX_IN_FLIGHT = 2
"""One prompt runs, one waits: more would take cancel, order and crash recovery out of our hands."""

LOOK_S = 1.0
"""Without a free slot, a kick makes us look for what falls due at most so often: tasks may come by the thousand."""

_STOPPED = put_back("the daemon was stopped")

log = get_logger(__name__)


class Dispatcher:
    """`async with Dispatcher(...)`: from entering on it works; leaving drains, then releases the leases.

    keep_leases: set when the instances are left running: nothing is waited for or released, since prompts go on and
    the next daemon re-attaches. hurry: set to end the drain early.
    """

    def __init__(
        self,
        live: Live,
        tasks: TaskStore,
        settings: Settings,
        paths: Paths,
        clock: Callable[[], Now],
        node_id: str,
        pace: Pace | None = None,
    ) -> None:
        self.keep_leases = settings.keep_instances
        self.hurry = asyncio.Event()
        self._live, self._tasks, self._settings = live, tasks, settings
        self._clock, self._node_id, self._pace = clock, node_id, pace or Pace()
        self._bench = Bench(
            tasks, clock, settings.lease_s, paths.outputs, self._pace, partial(show_progress, live), live.wake.set
        )
        self._links = Links(live, paths, clock, node_id, self._pace)
        self._attempts: set[Attempt] = set()
        self._cancels = Cancels(self._attempts, self._pace.cancels_s)
        self._retention = Retention(tasks, settings.retention_s, paths.outputs, clock)
        self._full = False
        self._looked = -math.inf
        self._limiter = Limiter(live, tasks)
        self._kick = asyncio.Event()
        self._idle = asyncio.Event()
        self._stopping = self._releasing = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Dispatcher":
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True)
            )
            self._group: TaskGroup = await stack.enter_async_context(anyio.create_task_group())
            self._stack = stack.pop_all()
        for cell in (self._live.observed, self._live.resolved, self._live.draining):
            self._group.start_soon(self._follow_cell, cell)
        self._group.start_soon(self._follow_wake)
        self._group.start_soon(self._cancels.run)
        self._group.start_soon(self._retention.run)
        self._group.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._stopping = True
        failpoint("drain_started")
        try:
            if kind is None and not self.keep_leases:
                with anyio.move_on_after(self._settings.shutdown_drain_s):
                    await first_of(self._drained, self.hurry.wait)
        finally:
            with anyio.CancelScope(shield=True):
                await self._release()
                self._group.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def _release(self) -> None:
        """Give the open tasks back, unless their instances go on without us."""
        if not self.keep_leases:
            self._releasing = True
            for attempt in list(self._attempts):
                attempt.stop(_STOPPED)
            with anyio.move_on_after(self._pace.release_s):
                await self._drained()
        failpoint("leases_released")

    async def _drained(self) -> None:
        while self._attempts:
            self._idle.clear()
            await self._idle.wait()

    # waking
    async def _follow_cell(self, cell: Cell[Any]) -> None:
        seq = -1
        while True:
            seq = await cell.wait_changed(seq)
            self._links.notice_gone()
            self._kick.set()

    async def _follow_wake(self) -> None:
        while True:
            await self._live.task_wake.wait()
            self._live.task_wake.clear()
            self._kick.set()
            self._cancels.look()

    # claiming
    @property
    def _closed(self) -> bool:
        return self._stopping or self._live.draining.get()

    async def _run(self) -> None:
        try:
            await self._recover()
        except Exception as error:  # their leases run out, so they are not lost
            log.exception("recovery failed", reason=str(error))
        failures = 0
        while not self._stopping:
            self._kick.clear()
            wait_s: float | None = None
            try:
                wait_s = await self._claim_once()
                failures = 0
            except Exception as error:  # a store out of reach, or a bug: the next round tries again
                failures += 1
                wait_s = min(30.0, 0.5 * 2 ** min(failures, 6))
                log.warning("claiming failed", reason=str(error), exc_info=not isinstance(error, ComfydError))
            with anyio.move_on_after(wait_s):
                await self._kick.wait()

    async def _claim_once(self) -> float | None:
        """Fill the free slots. Returns the seconds until something falls due, None if nothing has to be awaited."""
        if self._closed:
            return None
        room, resting = self._free(), self._links.resting().values()
        self._full = not room
        self._limiter.keep()
        now = self._clock()
        looked_s = now.mono - self._looked
        if self._full and self._settings.dispatch and looked_s < LOOK_S:
            return min((*resting, LOOK_S - looked_s))
        self._looked = now.mono
        with anyio.CancelScope(shield=True):  # what is claimed has to be run or released
            claiming, looking = self._tasks.claim(room, self._settings.lease_s, now), self._tasks.next_expiry(now)
            claims, left = await asyncio.gather(claiming, looking, return_exceptions=True)
            if isinstance(claims, BaseException):
                raise claims
            for claim in claims:
                self._start(claim)
        if isinstance(left, BaseException):
            raise left
        expiry = () if left is None else (left + 0.05 if left > 0 else 1.0,)
        return min((*resting, *expiry), default=None)

    def _free(self, leaving: Link | None = None) -> list[Slot]:
        """Slots with room. None where dispatch is off: a claim without slots still returns expired leases."""
        if not self._settings.dispatch:
            return []
        evidence = self._links.evidence()
        if leaving is not None:
            seen = evidence.get(leaving.slot.key)
            if seen is None or seen.generation != leaving.slot.generation:
                return []
            evidence[seen.key] = seen.model_copy(update={"in_flight": seen.in_flight - 1})
        resting = self._links.resting()
        slots = free_slots(self._live.resolved.get(), self._live.observed.get(), evidence, MAX_IN_FLIGHT)
        return [slot for slot in slots if slot.generation not in resting]

    def _start(self, claim: Claim, *, recovered: bool = False) -> None:
        if claim.slot is None:
            self._group.start_soon(self._hand_back, claim.lease)
            return
        link = self._links.open(claim.slot, self._session, self._group)
        self._enter(attempt := Attempt(claim, link, self._bench, recovered=recovered))
        self._group.start_soon(self._run_attempts, attempt)

    async def _hand_back(self, lease: Lease) -> None:
        await self._finish(lease, put_back("its instance is not there any more"), [])
        self._kick.set()

    # running
    def _enter(self, attempt: Attempt) -> None:
        self._attempts.add(attempt)
        if self._releasing:
            attempt.stop(_STOPPED)
        attempt.link.enter()

    def _leave(self, attempt: Attempt) -> None:
        self._attempts.discard(attempt)
        attempt.link.leave()
        if not self._attempts:
            self._idle.set()
        self._links.notice_gone()

    async def _run_attempts(self, attempt: Attempt | None) -> None:
        """One slot, task after task: a result and the next claim share a commit."""
        while attempt is not None:
            following: Claim | None = None
            filled = False
            try:
                outcome = await carried_out(attempt)
                if outcome is not None:
                    room = self._own_slot(attempt.link)
                    following = await self._finish(attempt.lease, outcome, room)
                    filled = bool(room) and outcome.state is not TaskState.PENDING
                if outcome is not None and outcome.state is not TaskState.PENDING:
                    attempt.forget()
            finally:
                self._leave(attempt)
                if not filled or self._full:  # else nothing was queued for the slot, and nothing waits for its lease
                    self._kick.set()
            link, attempt = attempt.link, None
            if following is not None:
                self._enter(attempt := Attempt(following, link, self._bench))

    def _own_slot(self, link: Link) -> list[Slot]:
        """The slot that is being given back, if its instance can go on."""
        if self._closed or link.gone.is_set():
            return []
        own = link.slot.generation
        return [slot for slot in self._free(leaving=link) if slot.generation == own][:1]

    async def _finish(self, lease: Lease, outcome: Outcome, room: list[Slot]) -> Claim | None:
        """Commit the outcome; a store out of reach is tried again until it takes it."""
        following: Claim | None = None
        with anyio.CancelScope(shield=True):
            delay = 0.2
            while True:
                try:
                    _, claims = await self._tasks.finish_and_claim(
                        lease, outcome, room, self._settings.lease_s, self._clock()
                    )
                    following = next(iter(claims), None)
                    break
                except ComfydError as error:
                    log.warning("result not taken", task=lease.task_id, reason=error.message, code=error.code)
                    if not error.retryable or self._stopping:
                        self._kick.set()
                        break
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
        return following

    # recovery
    async def _recover(self) -> None:
        claims = await recovered(self._tasks, self._node_id, self._settings.lease_s, self._clock)
        if not claims:
            return
        with anyio.move_on_after(min(self._pace.first_pass_s, self._settings.lease_s / 2)):
            while self._live.passes.get() < 1:
                await self._live.passes.wait_changed(self._live.passes.seq)
        for claim in claims:
            self._start(claim.model_copy(update={"slot": self._links.slot_of(claim)}), recovered=True)
