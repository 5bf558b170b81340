"""What a supervision system has to do for the measurements."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import end, spawn, tree
from benchmarks.world import World


class System:
    """One supervision system on a folder of its own. wanted: id -> version of each child.

    slow: measured in the first round only, because its own pauses take minutes. stop_signal: ends it and its children.
    """

    name = ""
    needs: tuple[str | Path, ...] = ()
    how = "run benchmarks/setup.sh"
    slow = False
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, child: Path, world: World) -> None:
        self.folder = folder
        self.child = child
        self.world = world
        self.wanted: dict[int, int] = {}
        self.written = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.beside: list[subprocess.Popen[bytes]] = []

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Up, idle, without children."""
        raise NotImplementedError

    def apply(self, wanted: Mapping[int, int]) -> float:
        """Write the configuration, then pull the system's own trigger. Returns when (monotonic) it was in place."""
        before, self.wanted = self.wanted, dict(wanted)
        self.written = 0.0
        self.write(before)
        self.written = self.written or time.monotonic()
        self.trigger(before)
        return self.written

    def write(self, before: Mapping[int, int]) -> None:
        raise NotImplementedError

    def replace(self, path: Path, text: str) -> None:
        """Put one file in place; the clock starts just before, as its reader may be quicker than we come back."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        self.written = time.monotonic()
        os.replace(temporary, path)

    def trigger(self, before: Mapping[int, int]) -> None:
        """Nothing to do where a change is noticed by itself."""

    def processes(self) -> list[int]:
        """The supervising processes (the children that are supervised not counted)."""
        children = {child.pid for child in self.world.children.values()}
        return [pid for pid in tree(self.pid) if pid not in children]

    def close(self) -> None:
        """End everything of it; only processes that descend from ours."""
        for trigger in self.beside:
            end(trigger, 0.1)
        if self.process is None or self.process.poll() is not None:
            return
        mine = [(pid, os.pidfd_open(pid)) for pid in self.processes()]
        end(self.process, number=self.stop_signal)
        for _, fd in mine:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)

    def spawn(self, *argv: str | Path, **environ: str) -> None:
        self.process = spawn(argv, self.output, **environ)

    def run(self, *argv: str | Path) -> None:
        with self.output.open("ab") as out:
            subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=60)

    def start_beside(self, *argv: str | Path) -> None:
        """A trigger that takes longer than what it triggers."""
        self.beside.append(spawn(argv, self.output))

    def settle(self) -> None:
        """Wait until no trigger runs any more; one that is still at it after a minute is ended."""
        while self.beside:
            trigger = self.beside.pop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                trigger.wait(60)
            end(trigger)

    def line(self, number: int) -> str:
        """The command of one child, for configuration files."""
        return f"{self.child} {self.world.path} {number} {self.wanted[number]}"
