"""Supervisor: observe, start, stop, leave. One watching task per key; cancelling it leaves the process running.

Owns: runs and histories. Must not: decide what should run.
"""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.abc

from comfyd.control import spawning
from comfyd.control.exits import MemberScan
from comfyd.control.pen import Pen
from comfyd.control.probe import Prober
from comfyd.control.runs import (
    History,
    Run,
    StopRequest,
    history_from_fact,
    observed_gone,
    observed_run,
    run_from_record,
)
from comfyd.control.spawning import Spawner
from comfyd.control.together import Together
from comfyd.control.watching import Watching
from comfyd.host import clock, proc, procfs, sockets
from comfyd.host.journal import Journal
from comfyd.host.lingering import why_it_lives
from comfyd.host.proc import SpawnError, Status
from comfyd.live import Live
from comfyd.logs import get_logger
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ObservedEnvironment, ObservedProcess, ObservedState, Phase, PortHolder
from comfyd.model.paths import Paths
from comfyd.model.plan import StartProcess, StopProcess
from comfyd.model.process import DesiredProcess, ResolvedState

log = get_logger("comfyd.control")


def now() -> Now:
    return Now(clock.mono(), clock.wall())


class Supervisor:
    """All processes of one state folder. `changed` is called after every fact that changes."""

    def __init__(self, paths: Paths, live: Live, pen: Pen, changed: Callable[[], None]) -> None:
        self._journal = Journal(paths.journal)
        self._live = live
        self._pen = pen
        self._changed = changed
        owner = procfs.owner_tag(paths.state_dir)
        self._boot_id = clock.boot_id()
        environment = proc.handed_down(os.environ)
        self._spawner = Spawner(self._journal, self._boot_id, procfs.pid_namespace(), owner, environment)
        self._runs: dict[str, Run] = {}
        self._history: dict[str, History] = {}
        self._scan = MemberScan(lambda: {run.generation: run.process.pid for run in self._runs.values()})
        self._prober = Prober()
        self._watching = Watching(live, self._scan, self._prober, self._set_phase, self._give_up, self._lingers)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._wanted = ResolvedState()
        self._declared: dict[str, DesiredProcess] = {}
        self._last_start: float | None = None
        self._unrecorded: tuple[int, ...] = ()
        self._gone = asyncio.Event()
        self._putting_away: Together[tuple[Run, Status], tuple[tuple[str, ...], bool]] = Together(self._put_away)

    async def open(self, tasks: anyio.abc.TaskGroup, facts: dict[str, dict[str, Any]]) -> None:
        """Adopt what a former daemon left running; facts: NodeStore facts `crash/<key>`."""
        self._tasks = tasks
        for name, fact in facts.items():
            self._history[name.removeprefix("crash/")] = history_from_fact(fact, self._boot_id)
        records = await asyncio.to_thread(self._journal.open)
        dead: list[dict[str, Any]] = []
        for record, process in await asyncio.to_thread(spawning.adopt_recorded, records):
            run = run_from_record(dict(record), process) if process is not None else None
            if run is None:
                dead.append(dict(record))
                continue
            self._runs[run.key] = run
            self._pen.write("instance", run.key, to="adopted", pid=run.process.pid)
            tasks.start_soon(self._run_process, run)
        await asyncio.gather(*map(self._died_unseen, dead))
        known = frozenset(str(r["uuid"]) for r in records)
        self._unrecorded = await asyncio.to_thread(spawning.unrecorded, self._spawner.owner, known)
        if self._unrecorded:
            log.warning("unrecorded_process", pids=self._unrecorded, reason="carries our tag but no record; left alone")

    async def close(self) -> None:
        await self._prober.close()
        await asyncio.to_thread(self._journal.close)

    async def observe(self, wanted: ResolvedState, environments: Iterable[ObservedEnvironment]) -> ObservedState:
        """One snapshot; foreign listeners are looked up only for ports that a process wants and does not hold."""
        missing = {
            p.spec.port for p in wanted.processes if p.run and p.spec.port is not None and p.key not in self._runs
        }
        ours = {run.spec.port for run in self._runs.values()}
        holders = await asyncio.to_thread(_foreign, missing - ours) if missing - ours else ()
        return self.snapshot(environments, holders)

    def snapshot(
        self, environments: Iterable[ObservedEnvironment], holders: tuple[PortHolder, ...] = ()
    ) -> ObservedState:
        """The facts as they stand, without looking at the system."""
        seen: list[ObservedProcess] = [observed_run(run, self._of(key)) for key, run in self._runs.items()]
        seen += [observed_gone(key, h) for key, h in self._history.items() if key not in self._runs]
        return ObservedState(
            processes=tuple(sorted(seen, key=lambda p: p.key)), environments=tuple(environments), ports=holders,
            last_start_mono=self._last_start, unrecorded=self._unrecorded,
        )  # fmt: skip

    def logs(self) -> list[str]:
        """The log files that running processes append to."""
        return [run.spec.log for run in list(self._runs.values())]

    def refresh(self, wanted: ResolvedState) -> None:
        """Take over what may change without a restart (probe, grace) and forget keys that nobody declares."""
        for key, evidence in self._live.evidence.get().items():
            if evidence.condemned and key in self._runs and self._watching.condemned(self._runs[key]):
                self._runs[key].probe_changed.set()
        if wanted is not self._wanted:
            self._wanted, self._declared = wanted, {wish.key: wish for wish in wanted.processes}
            self._take_over()
        for key in self._history.keys() - self._declared.keys() - self._runs.keys():
            del self._history[key]

    def _take_over(self) -> None:
        for key, run in self._runs.items():
            wish = self._declared.get(key)
            if wish is None or wish.fingerprint != run.fingerprint:
                continue
            if run.spec.probe != wish.spec.probe:
                run.probe_changed.set()
            run.spec, run.gpu_exclusive = wish.spec, wish.gpu_exclusive

    async def start(self, actions: Sequence[StartProcess]) -> None:
        """Spawn a batch. A refused spawn is a fact (an exit with its cause), not an error.

        Who asks publishes what came of it; only what a plan has not decided itself is told as a change.
        """
        if not actions or self._tasks is None:
            return
        at = now()
        with anyio.CancelScope(shield=True):
            results = await asyncio.to_thread(self._spawner.start_batch, actions, at)
        for action, result in results:
            history = self._of(action.key)
            if isinstance(result, SpawnError):
                self._refused(action, result)
                continue
            if history.last_exit is not None and not history.last_exit.asked:
                history.restarts += 1
                self._pen.fact(f"crash/{action.key}", history.as_fact(self._boot_id))
            self._last_start = at.mono
            self._runs[action.key] = result
            self._pen.write("instance", action.key, to="starting", reason=action.reason, pid=result.process.pid)
            self._tasks.start_soon(self._run_process, result)
        if any(isinstance(result, SpawnError) for _, result in results):
            self._changed()

    def stop(self, action: StopProcess) -> None:
        """Ask the run that the action names to end; does not wait. A second request can only shorten the drain.

        As with `start`, the one who asks publishes.
        """
        run = self._runs.get(action.key)
        if run is None or run.generation != action.generation:
            return
        self._request_stop(run, StopRequest(clock.mono() + action.drain_s, run.spec.stop_grace_s), action.reason)

    async def stop_all(self, drain_s: float) -> None:
        """Ask every run to end and wait until nothing is left but what outlives SIGKILL: the next daemon finds that."""
        for run in list(self._runs.values()):
            self._request_stop(run, StopRequest(clock.mono() + drain_s, run.spec.stop_grace_s), "the daemon stops")
        while any(run.lingers is None for run in self._runs.values()):
            self._gone.clear()
            await self._gone.wait()
        for run in self._runs.values():
            if run.shield is not None:
                run.shield.shield = False

    def _request_stop(self, run: Run, request: StopRequest, reason: str) -> None:
        if run.stop is not None:
            request.drain_until = min(request.drain_until, run.stop.drain_until)
        run.stop = request
        if run.phase not in (Phase.DRAINING, Phase.STOPPING):
            busy = self._watching.prompts(run) > 0
            self._enter(run, Phase.DRAINING if busy else Phase.STOPPING, reason)
        run.stop_changed.set()

    def _give_up(self, run: Run, why: Condition) -> None:
        """End a run that is of no use any more; what was given to it goes back to the queue once it is gone."""
        cause = replace(why, since=clock.wall())
        self._request_stop(run, StopRequest(0.0, run.spec.stop_grace_s, asked=False, cause=cause), why.message)
        self._changed()

    def _lingers(self, run: Run, pid: int) -> None:
        if run.lingers is not None:
            return
        reason, words = why_it_lives(pid)
        message = f"process {pid} lives although it was killed: {words}"
        hint = (
            "thaw its cgroup"
            if reason == "frozen"
            else "look at the kernel log; what a driver holds ends with a reboot"
        )
        run.lingers = Condition("unkillable", reason, message, f"{hint}; it is not started anew before", clock.wall())
        log.error("unkillable", instance=run.key, pid=pid, reason=words)
        self._gone.set()
        self._changed()

    def _of(self, key: str) -> History:
        return self._history.setdefault(key, History())

    def _set_phase(self, run: Run, phase: Phase, reason: str) -> None:
        self._enter(run, phase, reason)
        self._changed()

    def _enter(self, run: Run, phase: Phase, reason: str) -> None:
        before, run.phase = run.phase, phase
        run.phase_since_wall = clock.wall()
        if phase is Phase.READY:
            run.probe_message = ""
            run.ready_since_mono = run.ready_since_mono or clock.mono()
        elif phase is Phase.UNREADY:
            run.settled = run.is_settled(clock.mono())
            run.ready_since_mono = None
        self._pen.write("instance", run.key, **{"from": before.value}, to=phase.value, reason=reason)
        if phase in (Phase.READY, Phase.UNREADY):  # one that drains is not unready for that: it finishes its prompts
            self._pen.later(partial(self._journal.marked, run.generation, phase is Phase.READY))

    async def _run_process(self, run: Run) -> None:
        """Watch one run until it is gone or we are cancelled (= leave). No bug here reaches a sibling."""
        while True:
            try:
                status = await self._watching.until_gone(run)
                await self._finished(run, status)
                return
            except Exception as error:
                log.exception("watching failed, watching again", instance=run.key, reason=str(error))
                await asyncio.sleep(1)

    async def _finished(self, run: Run, status: Status) -> None:
        tail, oom = await self._putting_away.ask((run, status))
        info = self._of(run.key).ended(run, status, now(), tail, oom=oom)
        if info.code in spawning.EXEC_FAILED and not info.asked:
            name, cause = spawning.EXEC_FAILED[info.code]
            update = {"errno": name, "cause": f"{cause}: {run.spec.argv[0]}"}
            self._of(run.key).last_exit = info.model_copy(update=update)
        run.process.close()
        del self._runs[run.key]
        self._gone.set()
        self._pen.fact(f"crash/{run.key}", self._of(run.key).as_fact(self._boot_id))
        self._pen.write(
            "instance", run.key, **{"from": run.phase.value}, to="gone", reason=info.text(), asked=info.asked
        )
        self._changed()

    async def _put_away(self, ended: list[tuple[Run, Status]]) -> list[tuple[tuple[str, ...], bool]]:
        """What is left of ended runs on disk: (end of its log, killed by the kernel for memory?) of each."""
        return await asyncio.to_thread(spawning.put_away, self._journal, ended)

    def _refused(self, action: StartProcess, error: SpawnError) -> None:
        history = self._of(action.key)
        cause = f"could not be started: {error.strerror}: {error.filename or ''}".rstrip(": ")
        history.refused(action.process.fingerprint, now(), cause, errno.errorcode.get(error.errno or 0))
        self._pen.fact(f"crash/{action.key}", history.as_fact(self._boot_id))
        self._pen.write("instance", action.key, to="gone", reason=cause)

    async def _died_unseen(self, record: dict[str, Any]) -> None:
        """A recorded process that ended while no daemon watched: forget it and end what it left behind."""
        if record["boot_id"] == self._boot_id and record["pidns"] == self._spawner.pidns:
            for member in await self._scan.members(record["uuid"], None):
                proc.signal_member(member, signal.SIGKILL)
        self._of(record["key"]).refused(record["fingerprint"], now(), "ended while no daemon was watching")
        await asyncio.to_thread(self._journal.ended, record["uuid"])
        self._pen.write("instance", record["key"], to="gone", reason="ended while no daemon was watching")


def _foreign(ports: set[int]) -> tuple[PortHolder, ...]:
    table = sockets.listening()
    return tuple(PortHolder(port=h.port, pid=h.pid, name=h.name) for h in sockets.holders(ports, table))
