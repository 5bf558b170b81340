"""Sets the wake event when something watched changes. Reads nothing, decides nothing.

Non-recursive inotify watches on an enumerated set of directories (a watch on a removed directory is deaf, one on its
parent is not) and of single files that are mounts. Where inotify gives nothing (network volumes, watch limit) a content
poll every `poll_s` takes over.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import watchfiles

from comfyd.logs import get_logger

log = get_logger("comfyd.control")

STEP_MS = 20
SETTLED_S = 0.02
GIVEN_UP_S = 3600.0


class Watcher:
    """`watch(dirs)` names the set; it is called again after each reconcile pass, which costs nothing if it is equal."""

    def __init__(self, wake: Callable[[], None], debounce_s: float, force_polling: bool) -> None:
        self._wake = wake
        self._debounce_ms = max(1, int(debounce_s * 1000))
        self._polling = force_polling
        self._dirs: tuple[Path, ...] = ()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def polling(self) -> bool:
        """True once inotify is known not to serve us: the loop then looks every poll_s by itself."""
        return self._polling

    def watch(self, dirs: tuple[Path, ...]) -> None:
        if dirs != self._dirs:
            self._dirs = dirs
            self._changed.set()

    def close(self) -> None:
        """End the watch. Needed before a cancellation: the watching thread looks only at its stop event."""
        self._closed = True
        self._changed.set()

    async def run_watching(self) -> None:
        """Until cancelled. Never raises: without inotify it says so once and leaves the work to polling."""
        while not self._closed:
            self._changed.clear()
            if self._polling or not self._dirs:
                await self._changed.wait()
                continue
            try:
                await self._watch_once(self._dirs)
            except (OSError, RuntimeError) as error:
                if not all(d.exists() for d in self._dirs):
                    self._wake()
                    await self._changed.wait()
                    continue
                log.warning("file watch lost, polling instead", reason=str(error))
                self._polling = True
                self._wake()

    async def _watch_once(self, dirs: tuple[Path, ...]) -> None:
        batches = watchfiles.awatch(
            *dirs, recursive=False, debounce=self._debounce_ms, step=STEP_MS, stop_event=self._changed,
            watch_filter=None, ignore_permission_denied=True, rust_timeout=int(GIVEN_UP_S * 1000),
        )  # fmt: skip
        # The watch stands once the first step has run; what changed before it stood is read now.
        asyncio.get_running_loop().call_later(SETTLED_S, self._wake)
        async for _ in batches:
            self._wake()
