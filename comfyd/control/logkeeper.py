"""Keeps the logs of running processes below their limit. One look for all, more often while something grows fast."""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import anyio.to_thread

from comfyd.host.rotate import LIMIT_BYTES, rotate
from comfyd.logs import get_logger

log = get_logger("comfyd.control")

QUIET_S, BUSY_S = 2.0, 0.25
BUSY_BYTES_PER_S = 256 * 1024


class LogKeeper:
    """`logs` names the files to look at now (absolute paths)."""

    def __init__(self, logs: Callable[[], Iterable[str]], limit: int = LIMIT_BYTES) -> None:
        self._logs = logs
        self._limit = limit
        self._sizes: dict[str, int] = {}
        self._broken: set[str] = set()

    async def run_keeping(self) -> None:
        """Until cancelled. A log that cannot be rotated is named once and left alone until it can."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), name="logs", daemon=True)
        thread.start()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.join)

    def _keep(self, ended: threading.Event) -> None:
        """In a thread of its own: the event loop need not wake up for this."""
        wait_s = QUIET_S
        while not ended.wait(wait_s):
            try:
                wait_s = BUSY_S if self.keep_once(wait_s) else QUIET_S
            except Exception as error:
                log.exception("logs not looked at", reason=str(error))

    def keep_once(self, since_s: float) -> bool:
        """One look at every log; rotates what is over the limit. Returns whether something grows fast. Blocking."""
        busy = False
        sizes: dict[str, int] = {}
        for name in self._logs():
            try:
                size = os.stat(name).st_size
                if size > self._limit:
                    size -= rotate(Path(name), limit=self._limit)
                self._broken.discard(name)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._complain(name, error)
                continue
            sizes[name] = size
            grown = size - self._sizes.get(name, size)
            busy = busy or grown > BUSY_BYTES_PER_S * max(since_s, BUSY_S) or size > self._limit
        self._sizes = sizes
        return busy

    def _complain(self, name: str, error: OSError) -> None:
        if name not in self._broken:
            self._broken.add(name)
            log.warning("log not rotated", path=name, reason=error.strerror or str(error))
