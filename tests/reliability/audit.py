"""Every signal that a daemon sends, as the kernel was asked for it: read from what `strace -f` wrote.

Owns: which process a call meant (by pid, by process group, or by the pidfd that a pidfd_open gave) and whether a
daemon that was traced has started it. Only calls of the daemon's own threads count: what instances do to each other
is their business.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "kill,tkill,tgkill,pidfd_open,pidfd_send_signal,clone,clone3,fork,vfork"
_LINE = re.compile(r"^(\d+) +(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)")
_BIRTHS = ("clone", "clone3", "fork", "vfork")


def prefix(trace: Path) -> list[str]:
    """Puts a daemon under trace: it stays the child of whoever starts it, and the tracer outlives it."""
    return ["strace", "-DDD", "-f", "-qq", "--signal=none", "-e", f"trace={CALLS}", "-o", str(trace)]


@dataclass(frozen=True, slots=True)
class Sent:
    """One signal. target: a pid; below 0 a process group, 0 the caller's own (as with kill)."""

    signal: str
    target: int


@dataclass
class Audit:
    """`read` the traces of the daemons of one root, in their order. started: all pids that they and theirs made."""

    started: set[int] = field(default_factory=set)
    sent: list[Sent] = field(default_factory=list)

    def read(self, lines: Iterable[str], daemon: int) -> "Audit":
        threads, pidfds = {daemon}, dict[int, int]()
        for caller, name, given, result in _whole_calls(lines):
            if name in _BIRTHS and result > 0:
                if "CLONE_THREAD" in given:
                    threads |= {result} if caller in threads else set()
                elif caller in threads or caller in self.started:
                    self.started.add(result)
            elif caller not in threads:
                continue
            elif name == "pidfd_open" and result >= 0:
                pidfds[result] = int(given.split(",")[0])
            elif name == "pidfd_send_signal":
                fd, number = (part.strip() for part in given.split(",")[:2])
                self._note(number, pidfds.get(int(fd), 0))
            elif name in ("kill", "tkill", "tgkill"):
                *ids, number = (part.strip() for part in given.split(","))
                if int(ids[0]) not in threads:  # a thread of its own is no stranger
                    self._note(number, int(ids[0]))
        return self

    def foreign(self) -> list[Sent]:
        """What went to a process that no traced daemon has started, or to everybody at once."""
        return [one for one in self.sent if one.target in (0, -1) or abs(one.target) not in self.started]

    def _note(self, number: str, target: int) -> None:
        if number != "0":  # asks only whether there is such a process
            self.sent.append(Sent(number, target))


def _whole_calls(lines: Iterable[str]) -> Iterator[tuple[int, str, str, int]]:
    """Caller, name, arguments and result of every call that came back; what another thread cut in two is joined."""
    begun: dict[int, str] = {}
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        caller, text = int(found[1]), found[2]
        if text.endswith("<unfinished ...>"):
            begun[caller] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        if text.startswith("<... "):
            text = begun.pop(caller, "?(") + text.partition("resumed>")[2]
        call = _CALL.match(text)
        if call is not None and call[3] != "?":
            yield caller, call[1], call[2], int(call[3])
