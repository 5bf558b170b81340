"""The children of this process: who of them is waited for, and the orphans that the kernel hands to us.

As PID 1, or as subreaper of what we start, every descendant that loses its parent becomes our child. Owns: the register
of children that somebody waits for, and collecting the dead among the others. Must not: signal; wait for any child at
large (that would take exit codes away from those who wait for them).
"""

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from comfyd.host.procfs import children_of, read_stat

COLLECT_AFTER_S = 0.5
"""From a death until we look for orphans: until then those who wait for their own child are done."""
_PR_SET_CHILD_SUBREAPER = 36

_register = threading.Lock()
_awaited: set[int] = set()
_adopts = False
"""Whether orphans are known to come to us."""


@contextlib.contextmanager
def birth() -> Iterator[set[int]]:
    """Fork within this block and add the pid to the given set: nobody else collects it. `bury` it."""
    with _register:
        yield _awaited


def bury(pid: int) -> os.waitid_result:
    """Wait for a child and reap it: nobody waits for it any more. Raises ChildProcessError if it is none of ours."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with _register:  # while others go through the children, none leaves the list
            found = os.waitid(os.P_PID, pid, os.WEXITED)
            assert found is not None  # without WNOHANG it waits
            return found
    finally:
        with _register:
            _awaited.discard(pid)


def become_subreaper() -> bool:
    """Ask the kernel to hand us the orphans among our descendants. It stays so over an exec, but not in children.

    Returns whether it was granted. PID 1 gets all orphans anyway.
    """
    global _adopts
    with contextlib.suppress(OSError, AttributeError):
        _adopts = bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    return _adopts


def collect() -> int:
    """Reap every dead child that nobody waits for. Returns how many. Waits only for a fork that is going on."""
    count = 0
    with _register:
        while _any_dead():
            dead = [pid for pid in children_of(os.getpid()) if pid not in _awaited and _reap(pid)]
            count += len(dead)
            if not dead:
                break
    return count


def nobody_strange() -> bool:
    """Whether we get all orphans and have none: no living child but those that somebody waits for.

    So nothing is left of a child that has been reaped and whose process group is empty: what it leaves behind is a
    child of ours by then, or a descendant of one.
    """
    if not _adopts:
        return False
    with _register:
        others = [pid for pid in children_of(os.getpid()) if pid not in _awaited]
    return not any((stat := read_stat(pid)) is not None and stat.state not in "ZX" for pid in others)


def _any_dead() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


@dataclass
class Collector:
    """Collects orphans some time after SIGCHLD. No tick: without a death it never runs."""

    _due: asyncio.TimerHandle | None = field(default=None, init=False)

    def told(self) -> None:
        """SIGCHLD came. Call on the loop."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(COLLECT_AFTER_S, self._look)

    def _look(self) -> None:
        self._due = None
        if _any_dead():
            asyncio.get_running_loop().run_in_executor(None, collect)
