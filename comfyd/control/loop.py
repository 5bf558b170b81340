"""reconcile_once() and the loop: clear the wake, read, parse, resolve, observe, plan, publish, apply.

The loop never learns why it woke. Invalid input changes nothing that runs. Only apply() has effects.
"""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comfyd.control.gpus import GpuFacts
from comfyd.control.last_good import LastGood
from comfyd.control.pen import Pen
from comfyd.control.supervise import Supervisor, now
from comfyd.control.watch import Watcher
from comfyd.core.config import fallback_state, parse
from comfyd.core.gates import EDITS_ARRIVE
from comfyd.core.memo import Entries, Memo
from comfyd.core.plan import plan
from comfyd.core.resolve import resolve
from comfyd.core.since import dated
from comfyd.failpoint import failpoint
from comfyd.host import clock
from comfyd.live import ConfigView, Live
from comfyd.logs import get_logger
from comfyd.model.base import Now
from comfyd.model.desired import DesiredState, EnvironmentSpec, Override
from comfyd.model.observed import ObservedEnvironment
from comfyd.model.plan import InstallEnvironment, Plan, StartProcess, StopProcess
from comfyd.model.process import DesiredEnvironment, ResolvedState
from comfyd.model.sources import ConfigFiles, MachineFacts, ParseResult, Variables
from comfyd.store.protocol import NodeStore

log = get_logger("comfyd.control")

LOOKS = 6
TORN_RETRIES, TORN_PAUSE_S = 3, 0.1
FLOOD_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Hands:
    """What control is given by the composition root: reading the files and asking the installer.

    read_files and watched_dirs are blocking. install returns at once. know: tell the installer what exists.
    """

    read_files: Callable[[], ConfigFiles]
    watched_dirs: Callable[[], tuple[Path, ...]]
    install: Callable[[DesiredEnvironment], None]
    know: Callable[[Sequence[EnvironmentSpec]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A result of resolve() and what it was made from."""

    desired: DesiredState
    overrides: tuple[Override, ...]
    outputs: int
    at: Now
    resolved: ResolvedState

    def holds(self, desired: DesiredState, overrides: tuple[Override, ...], outputs: int, at: Now) -> bool:
        same = desired is self.desired and overrides == self.overrides and outputs == self.outputs
        return same and self.at.wall <= at.wall < (self.resolved.wake_at or math.inf)


class Reconciler:
    """One per daemon; `reconcile_once` is never run twice at a time."""

    def __init__(
        self,
        live: Live,
        node: NodeStore,
        supervisor: Supervisor,
        pen: Pen,
        hands: Hands,
        variables: Variables,
        facts: MachineFacts,
    ) -> None:
        self._live = live
        self._node = node
        self._supervisor = supervisor
        self._pen = pen
        self._hands = hands
        self._variables = variables
        self._facts = facts
        self._last_good = LastGood(facts.paths.last_good, pen.later)
        self._gpus = GpuFacts(live.wake.set)
        self._known_bad = ""
        self._edited_at: float | None = None
        self._last: _Resolved | None = None
        self._memo, self._entries = Memo(), Entries()

    async def open(self) -> None:
        """Take up the last good state and what is recorded of outputs."""
        outputs = await self._node.facts("output/")
        self._facts.outputs.update({k.removeprefix("output/"): str(v["output"]) for k, v in outputs.items()})
        desired = await self._last_good.load()
        if desired is not None:
            self._live.config.set(replace(self._live.config.get(), desired=desired, state="stale"))

    async def run_reconciling(self, watcher: Watcher, poll_s: float) -> None:
        """The loop. Woken by anything; looks again by itself at the plan's wake_at, and at the files every poll_s."""
        while True:
            pause_s = 0.0
            try:
                pause_s = _breath(await self.reconcile_once())
            except Exception as error:
                log.exception("reconcile failed, trying again", reason=str(error))
            watcher.watch(await asyncio.to_thread(self._hands.watched_dirs))
            self._live.polling.set(watcher.polling)
            await asyncio.sleep(pause_s)
            await self._sleep_until_due(poll_s)

    async def _sleep_until_due(self, poll_s: float) -> None:
        """Until woken, or wake_at, or a look at the files finds other ones.

        Where something is held a look is a whole pass, for what it waits for (a port, a GPU) may tell nobody; and so
        is one look in LOOKS, whatever it might find.
        """
        for _ in range(LOOKS):
            if await self._woken_within(poll_s) or not self._at_rest():
                return
            if await asyncio.to_thread(self._hands.read_files) != self._live.config.get().files:
                return

    async def _woken_within(self, poll_s: float) -> bool:
        """Whether somebody called, or the plan's time has come."""
        wake_at = self._live.plan.get().wake_at
        left = math.inf if wake_at is None else max(0.0, wake_at - clock.mono())
        try:
            async with asyncio.timeout(min(poll_s, left)):
                await self._live.wake.wait()
        except TimeoutError:
            return left <= poll_s
        return True

    def _at_rest(self) -> bool:
        decided = self._live.plan.get()
        return not (decided.actions or decided.holds or decided.warnings) and self._live.config.get().state == "ok"

    async def reconcile_once(self) -> Plan:
        """One pass. Returns the plan it applied."""
        self._live.wake.clear()
        asked = asyncio.ensure_future(self._node.overrides())
        try:
            desired = await self._read_desired()
            overrides = await asked
        finally:
            asked.cancel()
        at = now()
        resolved = self._resolve(desired, overrides, at)
        await self._hands.know(desired.environments)
        self._supervisor.refresh(resolved)
        gpus = await self._gpus.look(resolved)
        seen = await self._supervisor.observe(resolved, self._environments())
        observed = seen.model_copy(update={"gpus": gpus})
        decided = dated(plan(resolved, observed, at, self._edited_at), self._live.plan.get(), at)
        self._live.resolved.set(resolved)
        self._live.observed.set(observed)
        self._live.plan.set(decided)
        self._live.overrides.set(overrides)
        await self._apply(decided)
        self._live.passes.set(self._live.passes.get() + 1)
        return decided

    def _resolve(self, desired: DesiredState, overrides: tuple[Override, ...], at: Now) -> ResolvedState:
        """What resolve() said last, as long as nothing that it depends on has changed. Outputs are only ever added."""
        last = self._last
        if last is None or not last.holds(desired, overrides, len(self._facts.outputs), at):
            outputs = len(self._facts.outputs)
            resolved = resolve(desired, overrides, self._variables, self._facts, at, self._memo)
            self._last = last = _Resolved(desired, overrides, outputs, at, resolved)
        return last.resolved

    def _environments(self) -> tuple[ObservedEnvironment, ...]:
        return tuple(self._live.installs.get().values())

    def publish(self) -> None:
        """Observed facts without a pass: used while the loop no longer runs (shutdown)."""
        seen = self._supervisor.snapshot(self._environments())
        self._live.observed.set(seen.model_copy(update={"gpus": self._gpus.known}))

    async def _apply(self, decided: Plan) -> None:
        """Stops first, then installs, then starts. Waits for nothing long, decides nothing."""
        starts: list[StartProcess] = []
        for action in decided.actions:
            if isinstance(action, StopProcess):
                self._supervisor.stop(action)
            elif isinstance(action, InstallEnvironment):
                log.info("install", environment=action.environment.name, reason=action.reason)
                self._hands.install(action.environment)
            else:
                starts.append(action)
        await self._record_outputs(starts)
        await self._supervisor.start(starts)
        if decided.actions:
            self.publish()
            self._live.plan.set(replace(decided, actions=()))

    async def _record_outputs(self, starts: Sequence[StartProcess]) -> None:
        """The output folder is decided at the first start and kept: a new sibling must not move it."""
        fresh = [s for s in starts if s.process.instance is not None and s.key not in self._facts.outputs]
        if fresh:
            await self._node.note({f"output/{s.key}": {"output": s.process.output} for s in fresh})
        self._facts.outputs.update({s.key: s.process.output for s in fresh})

    async def _read_desired(self) -> DesiredState:
        before = self._live.config.get()
        files = await asyncio.to_thread(self._hands.read_files)
        if files == before.files:
            return before.desired
        result = parse(files, self._variables, before.desired, memo=self._entries)
        for _ in range(TORN_RETRIES):
            if not self._doubtful(before, files, result):
                break
            await asyncio.sleep(TORN_PAUSE_S)
            files = await asyncio.to_thread(self._hands.read_files)
            result = parse(files, self._variables, before.desired, memo=self._entries)
        self._edited_at = clock.mono()  # of the bytes that count, which may have been waited for
        failpoint("parsed")
        view = _view(before, files, result, now())
        if view.state in ("empty", "missing") and not before.desired.instances:
            view = replace(view, desired=fallback_state(files, self._variables))
        if result.desired is not None and view.state == "ok":
            await self._keep(before, result.desired)
        self._tell(before, view, result)
        self._live.config.set(view)
        return view.desired

    def _doubtful(self, before: ConfigView, files: ConfigFiles, result: ParseResult) -> bool:
        """What may be half of an edit: a file that is being written, or one that is just being replaced."""
        if result.state == "missing":
            return before.state == "ok"
        return result.state == "refused" and _revision(files) != self._known_bad

    async def _keep(self, before: ConfigView, desired: DesiredState) -> None:
        """Before anything is done about it, so that the next daemon goes on from it."""
        self._known_bad = ""
        if desired == before.desired and before.state == "ok":
            return
        await self._last_good.keep(desired)
        failpoint("revision_saved")

    def _tell(self, before: ConfigView, view: ConfigView, result: ParseResult) -> None:
        """Log and record once per content, not once per pass."""
        if view.seen_revision == before.seen_revision and view.issues == before.issues and view.state == before.state:
            return
        self._known_bad = view.seen_revision if result.state == "refused" else ""
        for issue in view.issues:
            level = log.error if issue.severity == "error" else log.warning
            level("config issue", problem=issue.text())
        errors = [issue.text() for issue in view.issues if issue.severity == "error"]
        self._pen.write(
            "config", view.path, **{"from": before.state}, to=view.state, revision=view.revision, errors=errors[:20]
        )


def _breath(decided: Plan) -> float:
    """In a flood of edits that restart things, the ones in between need no pass each."""
    return FLOOD_PAUSE_S if any(hold.reason == EDITS_ARRIVE for hold in decided.holds.values()) else 0.0


def _sha256(files: ConfigFiles) -> str:
    data = files.instances.data
    return hashlib.sha256(data).hexdigest() if data is not None else ""


def _revision(files: ConfigFiles) -> str:
    """A short hash of instances.json as read, or why there is nothing to hash."""
    return _sha256(files)[:12] or files.instances.problem or ""


def _view(before: ConfigView, files: ConfigFiles, result: ParseResult, at: Now) -> ConfigView:
    seen, sha256 = _revision(files), _sha256(files)
    if result.state == "ok" and result.desired is not None:
        changed = seen != before.revision or before.state != "ok"
        loaded = at.wall if changed else before.loaded_at
        return ConfigView(result.desired, result.issues, "ok", files.instances.path, seen, seen, loaded, sha256, files)
    state = "missing" if result.state == "missing" else "stale"
    if before.loaded_at is None and before.state == "empty":
        state = "missing" if result.state == "missing" else "empty"
    return replace(
        before, issues=result.issues, state=state, path=files.instances.path, seen_revision=seen, sha256=sha256,
        files=files,
    )  # fmt: skip
