"""Notices an event loop that does not run: a thread of its own calls it every two seconds and waits for the echo.

While the loop is blocked nothing else can tell: no route answers. Owns: that thread. Must not: end anything.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfyd.host import clock

LIMIT_S, PERIOD_S = 5.0, 2.0
FRAMES = 30


class Watchdog:
    """stalled(seconds so far, stack of the loop's thread): called once per stall, in the watching thread.

    recovered(seconds): called on the loop when a stall is over.
    """

    def __init__(
        self,
        stalled: Callable[[float, list[str]], None],
        recovered: Callable[[float], None],
        limit_s: float = LIMIT_S,
        period_s: float = PERIOD_S,
    ) -> None:
        self._stalled = stalled
        self._recovered = recovered
        self._limit_s, self._period_s = limit_s, period_s
        self._closed = threading.Event()
        self._sent = 0.0
        self._echoed = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop while the block runs."""
        loop, watched = asyncio.get_running_loop(), threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop, watched), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            self._echoed.set()
            thread.join(2 * self._period_s)

    def _watch(self, loop: asyncio.AbstractEventLoop, watched: int) -> None:
        while not self._closed.wait(self._period_s):
            self._echoed.clear()
            self._sent = clock.mono()
            try:
                loop.call_soon_threadsafe(self._echo)
            except RuntimeError:  # the loop is closed
                return
            if not self._echoed.wait(self._limit_s) and not self._closed.is_set():
                self._stalled(clock.mono() - self._sent, _stack(watched))
                while not self._echoed.wait(self._period_s) and not self._closed.is_set():
                    continue

    def _echo(self) -> None:
        """On the loop."""
        lag_s = clock.mono() - self._sent
        self._echoed.set()
        if lag_s >= self._limit_s:
            self._recovered(lag_s)


def _stack(thread: int) -> list[str]:
    """Where a thread is now, from outside in, each as `function (file:line)`."""
    frame = sys._current_frames().get(thread)
    found = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
    return [f"{one.name} ({one.filename.rpartition('/')[2]}:{one.lineno})" for one in found]
