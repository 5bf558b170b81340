"""Asking a run how it is: HTTP 200 (or a TCP accept) on a listening socket of ours makes it ready.

Collects facts; what a silence means is decided in core/liveness.py.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp

from comfyd.control.gpu_use import GpuUse
from comfyd.control.runs import Run
from comfyd.core.liveness import Vigil, ailment, is_unready, never_ready, next_probe_s
from comfyd.host import clock, cpu, oom, sockets
from comfyd.model.base import Condition
from comfyd.model.observed import Evidence, Phase

BUSY_STATUS = 503


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """ready: it answered as it should. alive: it answered, if only to say that it is not ready.

    cpu_s: CPU seconds of its processes; gpu_busy: a GPU that they use computes. Where that was asked for.
    """

    ready: bool
    alive: bool
    message: str = ""
    cpu_s: float | None = None
    gpu_busy: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    """What the system says of a run."""

    listens: bool
    kills: oom.Kills | None
    pids: frozenset[int] = frozenset()
    cpu_s: float | None = None


def _look(pid: int, port: int, *, closely: bool) -> _Look:
    """closely: at what its processes do, too. Blocking."""
    listens, kills = sockets.session_listens(pid, port), oom.kills(pid)
    if not closely:
        return _Look(listens, kills)
    pids = cpu.session_pids(pid)
    return _Look(listens, kills, pids, cpu.cpu_seconds(pids))


class Prober:
    """Asks on behalf of all runs through one HTTP session."""

    def __init__(self) -> None:
        self._gpus = GpuUse()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, run: Run, *, closely: bool = False) -> ProbeResult:
        """One probe. Never raises but for cancellation. Keeps the memory kills that were counted while it lived.

        closely: a silence is told with what its processes do meanwhile.
        """
        spec, probe = run.spec, run.spec.probe
        if probe.type == "none" or spec.port is None:
            return ProbeResult(True, True)
        seen = await asyncio.to_thread(_look, run.process.pid, spec.port, closely=closely)
        result = await self._asked(run, spec.port, seen)
        if result.alive or not closely:
            return result
        return replace(result, cpu_s=seen.cpu_s, gpu_busy=await self._gpus.busy(seen.pids))

    async def _asked(self, run: Run, port: int, seen: _Look) -> ProbeResult:
        probe = run.spec.probe
        if not seen.listens:
            return ProbeResult(False, False, f"port {port} is not open yet")
        try:
            async with asyncio.timeout(probe.timeout_s):
                result = await self._answer(run.spec.listen, port, probe.type, probe.path)
        except TimeoutError:
            return ProbeResult(False, False, f"no answer on port {port} within {probe.timeout_s:g} s")
        except (OSError, aiohttp.ClientError) as error:
            return ProbeResult(False, False, f"port {port}: {type(error).__name__}: {error}")
        if probe.type == "http":  # the kernel takes TCP connections even for a process that it has just killed
            run.kills_before = seen.kills or run.kills_before
        return result

    async def _answer(self, listen: str, port: int, kind: str, path: str) -> ProbeResult:
        host = reachable(listen)
        if kind == "tcp":
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return ProbeResult(True, True)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=0), trust_env=False
            )
        name = f"[{host}]" if ":" in host else host
        async with self._session.get(f"http://{name}:{port}{path}", allow_redirects=False) as response:
            if response.status == 200:
                return ProbeResult(True, True)
            alive = response.status < 500 or response.status == BUSY_STATUS
            return ProbeResult(False, alive, f"{path} on port {port} answers {response.status}")


def reachable(listen: str) -> str:
    """The address to ask for a `listen` value (a comma list; wildcard means loopback)."""
    first = listen.split(",")[0].strip() or "127.0.0.1"
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)


async def run_probes(
    run: Run,
    prober: Prober,
    changed: Callable[[Run, Phase, str], None],
    evidence: Callable[[Run], Evidence | None],
) -> Condition:
    """Probe until cancelled; report phase changes. Returns only when the run has to be ended: why."""
    vigil = Vigil(heard=clock.mono())
    while True:
        began, spec = clock.mono(), run.spec.probe
        result = await prober.ask(run, closely=vigil.silences > 0)
        at = clock.mono()
        if result.alive:
            vigil = vigil.answered(at, ready=result.ready)
        else:
            vigil = vigil.missed(at, result.cpu_s, gpu_busy=result.gpu_busy)
        _report(run, vigil, result, changed)
        if run.phase is Phase.STARTING:
            if at >= run.started.mono + spec.startup_deadline_s:
                return never_ready(spec, result.message)
        elif (found := ailment(vigil, spec, evidence(run), at)) is not None:
            return found
        await _pause(run, vigil, began)


def _report(run: Run, vigil: Vigil, result: ProbeResult, changed: Callable[[Run, Phase, str], None]) -> None:
    if result.ready:
        if run.phase is not Phase.READY:
            changed(run, Phase.READY, "")
        return
    run.probe_message = result.message
    if run.phase is Phase.READY and is_unready(vigil, run.spec.probe):
        changed(run, Phase.UNREADY, result.message)


async def _pause(run: Run, vigil: Vigil, began: float) -> None:
    """Until the next probe is due, or something has changed. Where nothing is probed only a change ends it."""
    probe = run.spec.probe
    if probe.type == "none" or run.spec.port is None:
        await run.probe_changed.wait()
        run.probe_changed.clear()
        return
    due = began + next_probe_s(probe, vigil, starting=run.phase is Phase.STARTING)
    try:
        async with asyncio.timeout(max(0.0, due - clock.mono())):
            await run.probe_changed.wait()
    except TimeoutError:
        return
    run.probe_changed.clear()
