"""One run of one ComfyUI process as dispatch sees it: its client, its websocket, the prompts given to it.

Owns: what is in flight on it and what its events say. Must not: claim, finish, or decide outcomes.
"""

import asyncio
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import aiohttp
import anyio

from comfyd.dispatch.comfy import ComfyClient, Unanswered
from comfyd.dispatch.comfy_socket import Listener
from comfyd.dispatch.pace import Pace
from comfyd.logs import get_logger
from comfyd.model.observed import Evidence
from comfyd.model.paths import Paths
from comfyd.model.process import DesiredProcess
from comfyd.model.task import Slot

log = get_logger(__name__)


class Watcher(Protocol):
    """Who is told of a prompt's events."""

    def on_progress(self, value: float, maximum: float, node: str) -> None: ...

    def on_end(self) -> None: ...

    @property
    def began(self) -> bool: ...

    def on_gone(self, *, crashed: bool = False) -> None: ...


class Link:
    """One (key, generation). `gone` is set when control no longer sees that generation alive.

    client_id: the same after a daemon restart, so that events of prompts posted before still arrive.
    changed: called when the evidence is new. roots: where this run writes, by type of output; None = not known.
    """

    def __init__(
        self,
        slot: Slot,
        session: aiohttp.ClientSession,
        base_url: str,
        client_id: str,
        roots: Mapping[str, Path],
        pace: Pace,
        mono: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.slot = slot
        self.roots = roots
        self.gone = asyncio.Event()
        self.client = ComfyClient(session, base_url, pace)
        self.listener = Listener(session, self.client.base_url, client_id, self._on_event, pace)
        self._watchers: dict[str, Watcher] = {}
        self._ended: list[str] = []
        self._forgettable = asyncio.Event()
        self._pace = pace
        self._mono = mono
        self._publish = changed
        self._evidence: Evidence | None = None
        self._touched = 0.0
        self._in_flight = 0
        self._device_errors = 0
        self._device_message = ""
        self._poisoned = False
        self._good = 0
        self._progress_mono: float | None = None
        self._rest_until = 0.0
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self.listener.run)
                group.start_soon(self._forget)

    def lose(self, *, crashed: bool = False) -> None:
        """Control sees this run no more. crashed: nobody wanted it to end; then the prompt that ran is suspected."""
        if self.gone.is_set():
            return
        self.gone.set()
        watchers = list(self._watchers.values())
        began = [watcher for watcher in watchers if watcher.began]
        suspect = (began[-1:] or watchers[:1]) if crashed else []
        for watcher in watchers:
            watcher.on_gone(crashed=watcher in suspect)

    def close(self) -> None:
        self._scope.cancel()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def evidence(self) -> Evidence:
        if self._evidence is None:
            self._evidence = Evidence(
                key=self.slot.key,
                generation=self.slot.generation,
                in_flight=self._in_flight,
                progress_mono=self._progress_mono,
                device_errors=self._device_errors,
                poisoned=self._poisoned,
                device_message=self._device_message,
            )
        return self._evidence

    def _changed(self) -> None:
        self._evidence = None
        self._publish()

    def enter(self) -> None:
        """A task takes a slot here."""
        self._in_flight += 1
        self.listener.want(True)
        self._changed()

    def leave(self) -> None:
        """It gives the slot back."""
        self._in_flight -= 1
        self.listener.want(self._in_flight > 0)
        self._changed()

    def rest(self, seconds: float) -> None:
        """Offer no slots for a while: control calls it ready, but it takes no prompts."""
        self._rest_until = self._mono() + seconds

    @property
    def resting_s(self) -> float:
        return max(0.0, self._rest_until - self._mono())

    def watch(self, prompt_id: str, watcher: Watcher) -> None:
        self._watchers[prompt_id] = watcher

    def unwatch(self, prompt_id: str) -> None:
        self._watchers.pop(prompt_id, None)

    def touch(self) -> None:
        """A prompt made progress. Published at most once a second."""
        now = asyncio.get_running_loop().time()
        if self._progress_mono is None or now - self._touched >= 1.0:
            self._touched, self._progress_mono = now, self._mono()
            self._changed()

    @property
    def good(self) -> int:
        """Prompts that ended well so far."""
        return self._good

    @property
    def condemned(self) -> bool:
        """It is of no use any more; control starts it anew."""
        return self.evidence().condemned

    def succeeded(self) -> None:
        """A prompt ended well: the device does its work. An error of the graph says nothing of that."""
        self._good += 1
        if self._device_errors:
            self._device_errors = 0
            self._changed()

    def device_failed(self, message: str, *, poisoned: bool) -> None:
        """A prompt ended with a device error."""
        self._device_errors += 1
        self._device_message = message
        self._poisoned = self._poisoned or poisoned
        self._changed()

    def forget(self, prompt_id: str) -> None:
        """Its result is committed: ComfyUI need not remember it any more."""
        self._ended.append(prompt_id)
        self._forgettable.set()

    async def _forget(self) -> None:
        """Many at once: a request for each would cost as much as posting the prompt did."""
        while True:
            await self._forgettable.wait()
            await asyncio.sleep(self._pace.forget_s)
            self._forgettable.clear()
            prompt_ids, self._ended = self._ended, []
            try:
                await self.client.forget(*prompt_ids)
            except Unanswered as error:
                log.debug("history entries kept", instance=self.slot.instance, reason=error.message)

    def _on_event(self, event: str, data: Mapping[str, Any]) -> None:
        watcher = self._watchers.get(str(data.get("prompt_id")))
        if watcher is None:
            return
        self.touch()
        if event == "executing" and data.get("node") is None:
            watcher.on_end()
        elif (shown := progress_of(event, data)) is not None:
            watcher.on_progress(*shown)


def progress_of(event: str, data: Mapping[str, Any]) -> tuple[float, float, str] | None:
    """(value, maximum, node) of an event. Some nodes report in progress_state alone, which lists all of a prompt."""
    node, said = data.get("node"), data
    if event == "executing":
        return 0, 1, str(node)
    if event == "progress_state":
        node, said = _running_node(data.get("nodes"))
    elif event != "progress":
        return None
    value, maximum = said.get("value"), said.get("max")
    return (value, maximum, str(node)) if _is_number(value) and _is_number(maximum) else None


def _running_node(nodes: Any) -> tuple[Any, Mapping[str, Any]]:
    """(id, state) of the node that began last of those that run."""
    known = reversed(nodes.items()) if isinstance(nodes, dict) else ()
    return next(((n, s) for n, s in known if isinstance(s, Mapping) and s.get("state") == "running"), (None, {}))


def _is_number(value: Any) -> TypeGuard[float]:
    """Not NaN or infinite, which ComfyUI writes into JSON although JSON has no such numbers."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def base_url(listen: str, port: int) -> str:
    """Where this machine reaches an instance; a wildcard or unknown listener is reached over loopback."""
    host = listen.split(",")[0].strip()
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def output_roots(process: DesiredProcess, paths: Paths) -> dict[str, Path]:
    """The folders this instance writes to, by type, as its command line says; only those below our data folder.

    One that an operator moved elsewhere is left out: its files are then fetched over HTTP.
    """
    argv = [*process.spec.argv, *process.spec.trailing_argv]
    data = paths.environment_data(process.environment or "")
    output = _flag(argv, "--output-directory") or data / "output" / process.output
    temp = _flag(argv, "--temp-directory")
    found = {"output": output, **({"temp": temp / "temp"} if temp else {})}
    plain = {kind: Path(os.path.normpath(root)) for kind, root in found.items()}
    return {kind: root for kind, root in plain.items() if root.is_relative_to(paths.data_dir)}


def _flag(argv: list[str], flag: str) -> Path | None:
    """The last value of `flag` in a command line, as argparse takes it."""
    value = None
    for at, word in enumerate(argv):
        if word == flag and at + 1 < len(argv):
            value = argv[at + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return Path(value) if value else None
