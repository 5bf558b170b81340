"""One claimed task on one instance: post its prompt, follow it, store its outputs, say how it ended.

Owns: what an answer of ComfyUI means for the task. Must not: claim or finish leases (worker.py does).
History is the truth, asked every few seconds; events of the websocket only make it ask sooner.
"""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import anyio

from comfyd.dispatch.bench import Bench, lost, put_back
from comfyd.dispatch.comfy import PromptRefused, Sighting, Unanswered
from comfyd.dispatch.comfy_history import Verdict, judge
from comfyd.dispatch.ending import outcome_of
from comfyd.dispatch.link import Link
from comfyd.errors import ComfydError
from comfyd.failpoint import failpoint
from comfyd.logs import get_logger
from comfyd.model.task import Claim, Outcome, TaskState

log = get_logger(__name__)


class Attempt:
    """One claim and its link. `run` gives the outcome, or None if the lease was lost or it was told to stop."""

    def __init__(self, claim: Claim, link: Link, bench: Bench, *, recovered: bool = False) -> None:
        self.claim = claim
        self.link = link
        self.lease = claim.lease
        self.lost = False
        self._bench = bench
        self._recovered = recovered
        self._prompt_id = str(uuid.UUID(claim.prompt_id))
        self._cancelled = claim.task.cancel_requested
        self._harvesting = False
        self._nudge = asyncio.Event()
        self._scope: anyio.CancelScope | None = None
        self._forced: Outcome | None = None
        self._shown: tuple[float, float, str] | None = None

    @property
    def task_id(self) -> str:
        return self.claim.task.task_id

    # what others tell us
    def on_progress(self, value: float, maximum: float, node: str) -> None:
        if (value, maximum, node) == self._shown:  # most is told twice
            return
        self._shown = value, maximum, node
        at = int(self._bench.clock().wall * 1000)
        self._bench.progress(self.task_id, {"value": value, "max": maximum, "node": node, "at": at})

    def on_end(self) -> None:
        self._nudge.set()

    @property
    def began(self) -> bool:
        """An event of its run was seen."""
        return self._shown is not None

    def on_gone(self, *, crashed: bool = False) -> None:
        self._forced = self._forced or lost(self._instance, crashed=crashed)
        if self._scope is not None and not self._harvesting:  # results on disk can still be stored
            self._scope.cancel()

    async def notice_cancel(self) -> None:
        """Read whether a cancel was asked for."""
        if not self._cancelled and (await self._bench.tasks.get(self.task_id)).cancel_requested:
            self._cancelled = True
            self._nudge.set()

    def stop(self, outcome: Outcome) -> None:
        """End now with `outcome`, whatever ComfyUI does meanwhile."""
        self._forced = outcome
        if self._scope is not None:
            self._scope.cancel()

    # the attempt
    async def run(self) -> Outcome | None:
        outcome: Outcome | None = None
        self.link.watch(self._prompt_id, self)
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                if self.link.gone.is_set():
                    self.on_gone()
                # Most prompts have ended by then: no task for them.
                renewal = asyncio.get_running_loop().call_later(self._renew_s, group.start_soon, self._keep_lease)
                try:
                    if self._forced is None:
                        outcome = await self._carry_out()
                finally:
                    renewal.cancel()
                group.cancel_scope.cancel()
        finally:
            self.link.unwatch(self._prompt_id)
            self._bench.progress(self.task_id, None)
        if self.lost:
            await self._withdraw()
            return None
        return outcome or self._forced

    def forget(self) -> None:
        """Once the result is committed ComfyUI need not remember the prompt."""
        self.link.forget(self._prompt_id)

    async def _carry_out(self) -> Outcome:
        if self._recovered:
            if not await self._reattach():
                return put_back("the prompt was not known to the instance any more after a restart of the daemon")
        elif (refused := await self._post()) is not None:
            return refused
        while True:
            seen = await self._follow()
            if seen.entry is None:
                return self._vanished()
            try:
                self._harvesting = True
                return await self._conclude(judge(seen.entry))
            except Unanswered as error:  # /view: the process is busy, or gone
                log.info("output not fetched", task=self.task_id, reason=error.message)
            finally:
                self._harvesting = False
            if self._forced is not None:
                return self._forced
            await self._pause(self._bench.pace.poll_s)

    async def _reattach(self) -> bool:
        while True:
            try:
                found = await self.link.client.find(self._prompt_id)
            except Unanswered:
                await self._pause(self._bench.pace.ask_s)
                continue
            if found is not None:
                self._known_as(found)
            log.info("prompt found again" if found else "prompt lost", task=self.task_id, instance=self._instance)
            return found is not None

    async def _post(self) -> Outcome | None:
        """Post the prompt. None: ComfyUI has it; else how the attempt ended already."""
        graph = _graph(self.claim.task.params)
        if self._cancelled:
            return Outcome(state=TaskState.CANCELLED, message="cancelled before it ran")
        if graph is None:
            return Outcome(state=TaskState.FAILED, message="the task has no workflow graph (params.input_data.wf_json)")
        failpoint("prompt_id_saved")
        with anyio.move_on_after(self._bench.pace.connect_s):
            await self.link.listener.connected.wait()
        deadline = anyio.current_time() + self._bench.pace.unreachable_s
        while anyio.current_time() < deadline:
            if self._cancelled:
                break
            try:
                return await self._submit(graph)
            except Unanswered as error:
                if error.sent:
                    return await self._ask_back(error)
            await self._pause(self._bench.pace.ask_s)
        self.link.rest(self._bench.pace.unreachable_s)
        return put_back(f"instance {self._instance} could not be reached")

    async def _submit(self, graph: Any) -> Outcome | None:
        client, listener = self.link.client, self.link.listener
        try:
            answer = await client.submit(self._prompt_id, graph, listener.client_id, self.task_id)
        except PromptRefused as error:
            return Outcome(state=TaskState.PENDING if error.retryable else TaskState.FAILED, message=error.message)
        failpoint("prompt_acked")
        self._known_as(answer.prompt_id)
        if answer.skipped:
            await self._withdraw()
            return Outcome(state=TaskState.FAILED, message=answer.skipped)
        return None

    async def _ask_back(self, error: Unanswered) -> Outcome | None:
        """The post may or may not have arrived: never post again before that is known."""
        log.info("fate of a prompt unknown, asking", task=self.task_id, instance=self._instance, reason=error.message)
        absences = 0
        while absences < self._bench.pace.absences:
            try:
                found = await self.link.client.find(self._prompt_id)
                absences += 1
            except Unanswered:  # as long as control sees the process alive
                found, absences = None, 0
            if found is not None:
                self._known_as(found)
                return None
            await self._pause(self._bench.pace.ask_s)
        await self._withdraw()
        self.link.rest(self._bench.pace.unreachable_s)
        return put_back(f"instance {self._instance} did not take the prompt: {error.message}")

    async def _follow(self) -> Sighting:
        """Wait until the prompt has ended (its entry) or is nowhere to be found (no entry)."""
        absences, look_s = 0, self._bench.pace.look_s
        if self.link.listener.connected.is_set():  # most prompts are told to have ended before the first look is due
            await self._pause(self._bench.pace.poll_s)
        while True:
            wait_s = self._bench.pace.poll_s
            try:
                seen = await self.link.client.sight(self._prompt_id)
                if seen.state == "ended":
                    return seen
                absences = absences + 1 if seen.state == "unknown" else 0
                if absences >= (1 if self._cancelled else 2):
                    return seen
                if self._cancelled:
                    await self.link.client.cancel(self._prompt_id)
                    wait_s, look_s = look_s, min(look_s * 2, wait_s)
            except Unanswered as error:
                log.debug("no answer while polling", task=self.task_id, reason=error.message)
            await self._pause(wait_s)
            await self._notice_quietly()

    async def _conclude(self, verdict: Verdict) -> Outcome:
        failpoint("result_seen")
        if verdict.kind == "interrupted":
            if self._cancelled or await self._notice_quietly():
                return Outcome(state=TaskState.CANCELLED, message="cancelled while it ran")
            return Outcome(state=TaskState.PENDING, message="interrupted by somebody else")
        return await outcome_of(verdict, self.task_id, self.link, self._bench)

    def _vanished(self) -> Outcome:
        if self._cancelled:
            return Outcome(state=TaskState.CANCELLED, message="cancelled while it waited")
        return Outcome(state=TaskState.PENDING, message=f"instance {self._instance} forgot the prompt and its result")

    # small steps
    async def _withdraw(self) -> None:
        with anyio.move_on_after(self._bench.pace.release_s, shield=True):
            try:
                await self.link.client.cancel(self._prompt_id)
            except Unanswered as error:
                log.debug("prompt not withdrawn", task=self.task_id, reason=error.message)

    def _known_as(self, prompt_id: str) -> None:
        if prompt_id != self._prompt_id:
            self.link.unwatch(self._prompt_id)
            self._prompt_id = prompt_id
            self.link.watch(prompt_id, self)

    async def _pause(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._nudge.wait()
        self._nudge.clear()

    async def _notice_quietly(self) -> bool:
        try:
            await self.notice_cancel()
        except ComfydError as error:
            log.debug("cancel not looked up", task=self.task_id, reason=error.message)
        return self._cancelled

    async def _keep_lease(self) -> None:
        while True:
            try:
                self.lease = await self._bench.tasks.renew(self.lease, self._bench.lease_s, self._bench.clock())
                wait_s = self._renew_s
            except ComfydError as error:
                if error.code in ("stale_lease", "task_not_found"):
                    log.warning("lease lost", task=self.task_id, instance=self._instance, reason=error.message)
                    self.lost = True
                    break
                log.warning("lease not renewed", task=self.task_id, reason=error.message)
                wait_s = self._bench.lease_s / 10
            await self._notice_quietly()
            await asyncio.sleep(wait_s)
        if self._scope is not None:
            self._scope.cancel()

    @property
    def _renew_s(self) -> float:
        return self._bench.lease_s / 3

    @property
    def _instance(self) -> str:
        return self.link.slot.instance


async def carried_out(attempt: Attempt) -> Outcome | None:
    """Run it. A bug must not take other tasks along: it ends this attempt, which counts."""
    task, instance = attempt.task_id, attempt.link.slot.instance
    try:
        outcome = await attempt.run()
    except Exception as error:
        log.exception("attempt broke", task=task, instance=instance, reason=str(error))
        outcome = Outcome(state=TaskState.PENDING, message=f"internal error: {error}"[:500])
    if outcome is not None:
        log.info("attempt ended", task=task, instance=instance, to=outcome.state.value, reason=outcome.message)
    return outcome


def _graph(params: Mapping[str, Any]) -> Any:
    given = params.get("input_data")
    graph = given.get("wf_json") if isinstance(given, Mapping) else None
    return graph if isinstance(graph, Mapping) and graph else None
