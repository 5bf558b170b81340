"""What all benchmarks share: samples, goals, tables, temporary roots, processes and what the kernel says of them.

Owns: the shape of results. Must not: know what is measured.
"""

import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BYTECODE = REPOSITORY / ".cache/bench-bytecode"
DROPPED = ("COMFYD_", "COMFYUI_", "PYTHONDONTWRITEBYTECODE")
"""An installed program has its bytecode beside it; a checkout under test may be told to write none."""
PEERS = REPOSITORY / ".cache/bench-venv/bin"
"""Other programs are installed here by benchmarks/setup.sh, never into the project's own environment."""


@dataclass(frozen=True)
class Options:
    """quick: a smoke run (its figures mean little). rounds: paired runs, of which the median counts."""

    quick: bool = False
    rounds: int = 3
    systems: tuple[str, ...] = ()
    rows: frozenset[str] = frozenset()

    def wants(self, system: str) -> bool:
        return not self.systems or system in self.systems


@dataclass
class Samples:
    """(measure, system) -> one value per round. Measures keep the order of their first value."""

    unit: str
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, measure: str, system: str, value: float) -> None:
        self.values.setdefault((measure, system), []).append(value)

    def median(self, measure: str, system: str) -> float | None:
        found = self.values.get((measure, system))
        return statistics.median(found) if found else None

    def ratio(self, measure: str, system: str, to: str) -> float | None:
        """Median over the rounds of the ratio of two systems in the same round."""
        pairs = zip(self.values.get((measure, system), ()), self.values.get((measure, to), ()), strict=False)
        ratios = [a / b for a, b in pairs if b]
        return statistics.median(ratios) if ratios else None

    def best(self, measure: str, but: Sequence[str] = ("comfyd", "floor")) -> tuple[str, float] | None:
        """The best (lowest) median among the other programs."""
        found = [(s, self.median(measure, s) or 0.0) for m, s in self.values if m == measure and s not in but]
        return min(found, key=lambda one: one[1], default=None)


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals. holds: None if it could not be measured here."""

    row: str
    metric: str
    goal: str
    result: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return {True: "HOLDS", False: "MISSED", None: "UNKNOWN"}[self.holds]


@dataclass
class Result:
    """What a benchmark gives back."""

    title: str
    samples: Samples
    goals: list[Goal]


def goal_below(row: str, metric: str, value: float | None, limit: float, unit: str, more: str = "") -> Goal:
    return _goal(row, metric, value, limit, unit, more, lambda v: v <= limit, "<=")


def goal_above(row: str, metric: str, value: float | None, limit: float, unit: str, more: str = "") -> Goal:
    return _goal(row, metric, value, limit, unit, more, lambda v: v >= limit, ">=")


def _goal(
    row: str, metric: str, value: float | None, limit: float, unit: str, more: str,
    met: Callable[[float], bool], sign: str,
) -> Goal:  # fmt: skip
    wanted = f"{sign} {number(limit)} {unit}".rstrip()
    if value is None:
        return Goal(row, metric, wanted, "not measured" + more, None)
    return Goal(row, metric, wanted, f"{number(value)} {unit}".rstrip() + more, met(value))


def number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if value == float("inf"):
        return "not in time"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


@contextlib.contextmanager
def temporary_root(name: str) -> Iterator[Path]:
    """A short path (unix sockets lie in it), removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(argv: Sequence[str | Path], output: Path, **environ: str) -> subprocess.Popen[bytes]:
    """A program in a session of its own, run where `output` lies; what it prints is appended to `output`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)} | {"PYTHONPYCACHEPREFIX": str(BYTECODE)}
    with output.open("ab") as out:
        return subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            cwd=output.parent, env={**kept, **environ}, start_new_session=True,
        )  # fmt: skip


def comfyd_argv(root: Path) -> list[str]:
    return [sys.executable, "-m", "comfyd", "run", "--root", str(root)]


def end(process: subprocess.Popen[bytes], patience_s: float = 10.0, number: int = signal.SIGTERM) -> None:
    """Ask it to end; kill it if it does not."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def until(condition: Callable[[], bool], limit_s: float, pause_s: float = 0.002) -> bool:
    """Poll; False when the time is over."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def tree(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def rss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond where the kernel keeps schedstat."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def switches(pid: int) -> int:
    """How often the main thread of a process has gone to sleep."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
    return 0
