"""ComfyUI's websocket: hints about prompts, never the truth. One listener per process run.

Owns: connecting, the reconnect traps, and handing text frames on. Must not: decide anything about a task.

ComfyUI forgets a socket by its client id when an older one of the same id is cleaned up, and the newer one is then
deaf for ever. So one is closed and given time before the next is opened, and a socket that stays silent while a
prompt runs is replaced. Nothing is ever replayed.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import anyio

from comfyd.dispatch.pace import Pace
from comfyd.logs import get_logger

MAX_FRAME = 32 * 1024 * 1024
Deliver = Callable[[str, Mapping[str, Any]], None]
log = get_logger(__name__)


class Listener:
    """Events of one client id. `run` never ends by itself; it sleeps while nothing is wanted and nothing is open."""

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, client_id: str, deliver: Deliver, pace: Pace
    ) -> None:
        self.client_id = client_id
        self.connected = asyncio.Event()
        self.connections = 0
        self._session = session
        self._url = f"{base_url}/ws"
        self._deliver = deliver
        self._pace = pace
        self._wanted = asyncio.Event()
        self._heard = 0.0
        self._quiet_s = pace.quiet_s

    def want(self, wanted: bool) -> None:
        """Say whether a prompt is open: only then is the socket (re)opened and its silence suspicious."""
        if wanted and not self._wanted.is_set():
            self._heard = asyncio.get_running_loop().time()
            self._wanted.set()
        elif not wanted:
            self._wanted.clear()

    async def run(self) -> None:
        delay = self._pace.reconnect_s
        while True:
            await self._wanted.wait()
            before = self.connections
            try:
                await self._listen_once()
            except Exception as error:  # only a source of hints: whatever it is, polling goes on without it
                log.debug("websocket lost", url=self._url, reason=str(error))
            delay = self._pace.reconnect_s if self.connections > before else min(delay * 2, 10.0)
            await asyncio.sleep(delay)

    async def _listen_once(self) -> None:
        timeout = aiohttp.ClientWSTimeout(ws_close=2.0)
        async with self._session.ws_connect(
            self._url, params={"clientId": self.client_id}, max_msg_size=MAX_FRAME, timeout=timeout
        ) as socket:
            self.connections += 1
            self._heard = asyncio.get_running_loop().time()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._watch_silence, socket)
                    await self._read(socket)
                    group.cancel_scope.cancel()
            finally:
                self.connected.clear()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            self.connected.set()  # the first frame proves that ComfyUI has put us on its list
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue  # previews
            event, data = _frame(message.data)
            if "prompt_id" in data:
                self._heard = asyncio.get_running_loop().time()
                self._quiet_s = self._pace.quiet_s
                self._deliver(event, data)

    async def _watch_silence(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._wanted.wait()
            left = self._heard + self._quiet_s - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self._quiet_s = min(self._quiet_s * 2, self._pace.quiet_max_s)
        log.debug("websocket silent, opening another", url=self._url)
        await socket.close()


def _frame(text: str) -> tuple[str, Mapping[str, Any]]:
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return "", {}
    data = frame.get("data") if isinstance(frame, dict) else None
    return (str(frame.get("type")), data) if isinstance(data, dict) else ("", {})
