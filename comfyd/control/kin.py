"""What belongs to a run though it left its session and scrubbed its environment: found by the chain of parents.

The chain is read while it is whole, before the first signal of a stop. Who has lost its parent since was handed to the
daemon (subreaper) and is known by the log it still writes to, or because nobody else can have begotten it.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from comfyd.control.runs import Run
from comfyd.host import children, proc, procfs
from comfyd.host.procfs import Member, Stat


@dataclass(slots=True)
class Kin:
    """The family of one run, as far as it was seen. Reads procfs: some tens of microseconds per process."""

    run: Run
    _known: dict[int, Stat] = field(default_factory=dict)

    def note(self) -> None:
        """Remember who descends from the leader now, and from those already known."""
        for pid in (self.run.process.pid, *self._living()):
            self._known.update((stat.pid, stat) for stat in procfs.descendants_of(pid))

    def left(self, strays: Iterable[Stat]) -> list[Member]:
        """Who of the family still lives. Call once the leader is reaped; strays: children.strays() of now."""
        mine = [stray for stray in strays if stray.pid not in self._known and self._is_mine(stray)]
        self._known.update((stray.pid, stray) for stray in mine)
        for pid in self._living():
            self._known.update((stat.pid, stat) for stat in procfs.descendants_of(pid))
        return [Member(self._known[pid], None) for pid in self._living()]

    def _living(self) -> list[int]:
        return [pid for pid, stat in self._known.items() if not proc.has_ended(stat)]

    def _is_mine(self, stray: Stat) -> bool:
        return writes_to(stray.pid, self.run.spec.log) or children.is_left_over(stray)


def writes_to(pid: int, log: str) -> bool:
    """Whether its standard output or error is that file."""
    for fd in (1, 2):
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") == log:
                return True
        except OSError:
            continue
    return False
