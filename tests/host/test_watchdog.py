"""A loop that is blocked is noticed while it is blocked, once, with the place where it stands."""

import asyncio
import threading
import time

import pytest

from comfyd.host.watchdog import Watchdog


class Notes:
    def __init__(self) -> None:
        self.stalls: list[tuple[float, list[str]]] = []
        self.recovered: list[tuple[float, int]] = []
        self.blocked_until = 0.0

    def dog(self) -> Watchdog:
        return Watchdog(self._stalled, lambda s: self.recovered.append((s, threading.get_ident())), 0.4, 0.05)

    def _stalled(self, seconds: float, stack: list[str]) -> None:
        if any("block_here" in place for place in stack):  # a busy machine stalls elsewhere, too
            assert time.monotonic() < self.blocked_until, "noticed when it was over"
            self.stalls.append((seconds, stack))

    def block_here(self, seconds: float) -> None:
        self.blocked_until = time.monotonic() + seconds
        time.sleep(seconds)


@pytest.mark.asyncio
async def test_a_stall_is_told_once_with_its_place_and_its_length_when_it_is_over() -> None:
    notes = Notes()
    with notes.dog().watching():
        await asyncio.sleep(0.1)
        notes.block_here(1.5)
        async with asyncio.timeout(10):
            while not any(seconds >= 0.9 for seconds, _ in notes.recovered):
                await asyncio.sleep(0.01)
    assert len(notes.stalls) == 1
    seconds, stack = notes.stalls[0]
    assert 0.4 <= seconds < 1.5
    assert stack[-1].startswith("block_here (test_watchdog.py:")
    assert {thread for _, thread in notes.recovered} == {threading.get_ident()}


@pytest.mark.asyncio
async def test_it_ends_with_its_block_even_while_the_loop_is_blocked() -> None:
    dog = Notes().dog()
    with dog.watching():
        time.sleep(0.2)  # its call waits on the loop when the block ends
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
