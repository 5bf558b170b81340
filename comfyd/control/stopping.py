"""The stop order: t=0 the stop signal, half the grace SIGTERM, at grace SIGKILL to all that is left."""

import asyncio
import signal
from collections.abc import Callable

from comfyd.control.exits import MemberScan, wait_exit
from comfyd.control.runs import Run
from comfyd.failpoint import failpoint
from comfyd.host import clock, proc
from comfyd.host.proc import Status

SWEEP_PAUSE_S = 0.05
LINGERS_S = 2.0
"""What lives so long after SIGKILL does not end by itself."""

Lingers = Callable[[Run, int], None]
"""Told once which process of a run outlives SIGKILL."""


async def end_process(run: Run, grace_s: float, scan: MemberScan, lingers: Lingers) -> Status:
    """End the whole tree of `run` and return how its leader ended. Returns only when nothing of it is left."""
    started = clock.mono()
    leader = run.process
    first = getattr(signal, run.spec.stop_signal)
    for number, until in ((first, grace_s / 2), (signal.SIGTERM, grace_s)):
        leader.send(number)
        leader.send(signal.SIGCONT)
        failpoint("stop_sent")
        try:
            await asyncio.wait_for(wait_exit(leader), max(0.0, started + until - clock.mono()))
            break
        except TimeoutError:
            continue
    else:
        await _kill_tree(run, scan)
        await _until_killed(run, lingers)
    return await reap(run, scan, started + grace_s, lingers)


async def _until_killed(run: Run, lingers: Lingers) -> None:
    try:
        await asyncio.wait_for(wait_exit(run.process), LINGERS_S)
    except TimeoutError:
        lingers(run, run.process.pid)
        await wait_exit(run.process)


async def _kill_tree(run: Run, scan: MemberScan) -> None:
    for member in await scan.members(run.generation, run.process.pid):
        proc.signal_member(member, signal.SIGKILL)
    run.process.send(signal.SIGKILL)
    failpoint("kill_sent")


async def reap(run: Run, scan: MemberScan, kill_at: float, lingers: Lingers) -> Status:
    """Collect the ended leader's status, then end what it left behind: SIGTERM at once, SIGKILL from `kill_at` on."""
    leader = run.process
    status = leader.status()
    told: set[int] = set()
    lingers_at = max(kill_at, clock.mono()) + LINGERS_S
    while True:
        session = None if proc.group_is_empty(leader.pid) else leader.pid
        left = await scan.members(run.generation, session, child=status != Status())
        if not left:
            return status
        for member in left:
            if clock.mono() >= kill_at:
                proc.signal_member(member, signal.SIGKILL)
            elif member.stat.pid not in told:
                told.add(member.stat.pid)
                proc.signal_member(member, signal.SIGTERM)
        if clock.mono() >= lingers_at:
            lingers(run, left[0].stat.pid)
        await asyncio.sleep(SWEEP_PAUSE_S)
