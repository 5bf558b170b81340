"""Asking a run whether it is ready: HTTP 200 (or a TCP accept) and the listening socket must be ours."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from comfyd.control.runs import Run
from comfyd.host import clock, sockets
from comfyd.model.observed import Phase

STARTING_PERIOD_S = 0.25


@dataclass(frozen=True, slots=True)
class ProbeResult:
    ok: bool
    message: str = ""


class Prober:
    """Asks on behalf of all runs through one HTTP session."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, run: Run) -> ProbeResult:
        """One probe. Never raises but for cancellation."""
        spec, probe = run.spec, run.spec.probe
        if probe.type == "none" or spec.port is None:
            return ProbeResult(True)
        ours = await asyncio.to_thread(sockets.session_listens, run.process.pid, spec.port)
        if not ours:
            return ProbeResult(False, f"port {spec.port} is not open yet")
        try:
            async with asyncio.timeout(probe.timeout_s):
                return await self._answer(spec.listen, spec.port, probe.type, probe.path)
        except TimeoutError:
            return ProbeResult(False, f"no answer on port {spec.port} within {probe.timeout_s:g} s")
        except (OSError, aiohttp.ClientError) as error:
            return ProbeResult(False, f"port {spec.port}: {type(error).__name__}: {error}")

    async def _answer(self, listen: str, port: int, kind: str, path: str) -> ProbeResult:
        host = reachable(listen)
        if kind == "tcp":
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return ProbeResult(True)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=0), trust_env=False
            )
        name = f"[{host}]" if ":" in host else host
        async with self._session.get(f"http://{name}:{port}{path}", allow_redirects=False) as response:
            if response.status == 200:
                return ProbeResult(True)
            return ProbeResult(False, f"{path} on port {port} answers {response.status}")


def reachable(listen: str) -> str:
    """The address to ask for a `listen` value (a comma list; wildcard means loopback)."""
    first = listen.split(",")[0].strip() or "127.0.0.1"
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)


async def run_probes(run: Run, prober: Prober, changed: Callable[[Run, Phase, str], None]) -> str:
    """Probe until cancelled; report phase changes. Returns only when the startup deadline has passed: the reason."""
    failures = 0
    deadline = run.started.mono + run.spec.probe.startup_deadline_s
    while True:
        result = await prober.ask(run)
        spec = run.spec.probe
        if result.ok:
            failures = 0
            if run.phase is not Phase.READY:
                changed(run, Phase.READY, "")
        else:
            failures += 1
            run.probe_message = result.message
            if run.phase is Phase.READY and failures >= spec.failures:
                changed(run, Phase.UNREADY, result.message)
        if run.phase is Phase.STARTING and clock.mono() >= deadline:
            return f"not ready within {spec.startup_deadline_s:g} s: {result.message}"
        await _pause(run)


async def _pause(run: Run) -> None:
    """Until the next probe is due. Where nothing is probed there is none, until the settings say otherwise."""
    probe = run.spec.probe
    if probe.type == "none" or run.spec.port is None:
        await run.probe_changed.wait()
        run.probe_changed.clear()
        return
    await asyncio.sleep(min(STARTING_PERIOD_S, probe.period_s) if run.phase is Phase.STARTING else probe.period_s)
