"""Following one run from its start, or its adoption, to its end: probe it, drain it, end it. Leaving never signals.

Owns: the order of these steps. Must not: keep books (supervise.py does) or decide that something should end.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from comfyd.control.exits import MemberScan, wait_exit
from comfyd.control.probe import Prober, run_probes
from comfyd.control.runs import Run
from comfyd.control.stopping import Lingers, end_process, reap
from comfyd.host import clock
from comfyd.host.proc import Status
from comfyd.live import Live
from comfyd.model.base import Condition
from comfyd.model.observed import Evidence, Phase


@dataclass(frozen=True, slots=True)
class Watching:
    """What all watched runs share. give_up: asks for the end of a run that is of no use any more, and says why.

    lingers: told when one outlives SIGKILL.
    """

    live: Live
    scan: MemberScan
    prober: Prober
    set_phase: Callable[[Run, Phase, str], None]
    give_up: Callable[[Run, Condition], None]
    lingers: Lingers

    async def until_gone(self, run: Run) -> Status:
        """Return when nothing of the run is left: how its leader ended."""
        exited = asyncio.ensure_future(wait_exit(run.process))
        asked = asyncio.ensure_future(run.stop_changed.wait())
        probing = asyncio.ensure_future(run_probes(run, self.prober, self._set_phase_if_running, self.evidence))
        try:
            await asyncio.wait({exited, asked, probing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done() and not exited.done() and run.stop is None:
                self.give_up(run, probing.result())
            probing.cancel()
            if exited.done():
                return await reap(run, self.scan, 0.0, self.lingers)
            await self._drain(run, exited)
        finally:
            for task in (exited, asked, probing):
                task.cancel()
        return await self._end(run)

    def evidence(self, run: Run) -> Evidence | None:
        """What dispatch sees of this very run."""
        found = self.live.evidence.get().get(run.key)
        return found if found is not None and found.generation == run.generation else None

    def prompts(self, run: Run) -> int:
        """How many were given to it and are not finished."""
        evidence = self.evidence(run)
        return evidence.in_flight if evidence is not None else 0

    def condemned(self, run: Run) -> bool:
        evidence = self.evidence(run)
        return evidence is not None and evidence.condemned

    def _set_phase_if_running(self, run: Run, phase: Phase, reason: str) -> None:
        if run.stop is None:
            self.set_phase(run, phase, reason)

    async def _drain(self, run: Run, exited: "asyncio.Future[None]") -> None:
        """Wait until its prompts are done, the drain time is over, or it ends by itself."""
        while run.stop is not None and not exited.done():
            seq = self.live.evidence.seq
            left = run.stop.drain_until - clock.mono()
            if not self.prompts(run) or left <= 0:
                return
            run.stop_changed.clear()
            waits: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(self.live.evidence.wait_changed(seq)),
                asyncio.ensure_future(run.stop_changed.wait()),
            ]
            try:
                await asyncio.wait([*waits, exited], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _end(self, run: Run) -> Status:
        """Once begun, a stop is finished whatever is cancelled, unless what outlives SIGKILL is left behind."""
        if run.phase is not Phase.STOPPING:
            self.set_phase(run, Phase.STOPPING, "")
        grace = run.stop.grace_s if run.stop else run.spec.stop_grace_s
        ending = asyncio.ensure_future(end_process(run, grace, self.scan, self.lingers))
        try:
            with anyio.CancelScope(shield=True) as run.shield:
                await asyncio.wait({ending})
        finally:
            ending.cancel()
        return ending.result()
