"""Sets the wake event when something watched changes. Reads nothing, decides nothing.

Non-recursive inotify watches on an enumerated set of directories (a watch on a removed directory is deaf, one on its
parent is not) and of single files that are mounts. Where inotify gives nothing (network volumes, watch limit) a content
poll every `poll_s` takes over.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import watchfiles

from comfyd.host import clock
from comfyd.logs import get_logger

log = get_logger("comfyd.control")

STEP_MS = 18  # an edit is told after one to two of them; more often costs processor time while nothing happens
SETTLED_S = 0.02
GIVEN_UP_S = 3600.0
RETRY_S = 300.0


class Watcher:
    """`watch(dirs)` names the set; it is called again after each reconcile pass, which costs nothing if it is equal."""

    def __init__(self, wake: Callable[[], None], debounce_s: float, force_polling: bool) -> None:
        self._wake = wake
        self._debounce_ms = max(1, int(debounce_s * 1000))
        self._forced = force_polling
        self._polling = force_polling
        self._dirs: tuple[Path, ...] = ()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def polling(self) -> bool:
        """True while inotify is known not to serve us: only the look that the loop takes every poll_s finds edits."""
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
        """Until cancelled. Never raises: without inotify it says so once, leaves the work to polling, and tries again
        from time to time."""
        while not self._closed:
            self._changed.clear()
            if self._forced or not self._dirs:
                await self._changed.wait()
                continue
            try:
                await self._watch_once(self._dirs)
            except (OSError, RuntimeError) as error:
                if not all(d.exists() for d in self._dirs):
                    self._dirs = ()  # the next pass names them anew, be they the same or not
                    self._wake()
                    continue
                await self._poll_instead(str(error))

    async def _poll_instead(self, reason: str) -> None:
        if not self._polling:
            log.warning("file watch lost, polling instead", reason=reason, hint="raise fs.inotify.max_user_watches")
            self._polling = True
            self._wake()
        again_at = clock.mono() + RETRY_S
        while not self._closed and (left := again_at - clock.mono()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _watch_once(self, dirs: tuple[Path, ...]) -> None:
        """Until the set changes, or one of the set was removed or made again: what was watched then is another one.

        ignore_permission_denied would hide the watch limit as well, so what may not be read is left out here.
        """
        allowed = await asyncio.to_thread(lambda: [one for one in dirs if os.access(one, os.R_OK) or not one.exists()])
        batches = watchfiles.awatch(
            *allowed, recursive=False, debounce=self._debounce_ms, step=STEP_MS, stop_event=self._changed,
            watch_filter=None, ignore_permission_denied=False, rust_timeout=int(GIVEN_UP_S * 1000),
        )  # fmt: skip
        # The watch stands once the first step has run; what changed before it stood is read now.
        standing = asyncio.get_running_loop().call_later(SETTLED_S, self._stands)
        watched = {str(one) for one in dirs}
        try:
            async with contextlib.aclosing(batches):
                async for changes in batches:
                    self._wake()
                    if any(kind is not watchfiles.Change.modified and path in watched for kind, path in changes):
                        return
        finally:
            standing.cancel()

    def _stands(self) -> None:
        if self._polling:
            log.info("file watch is back")
            self._polling = False
        self._wake()
