"""A1-A7: add, change, remove, crashes, idle cost, shutdown, adoption; comfyd, other supervisors and a floor."""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import (
    Goal,
    Options,
    Result,
    Samples,
    cpu_s,
    end,
    goal_below,
    rss_kib,
    switches,
    temporary_root,
)  # fmt: skip
from benchmarks.systems import SYSTEMS
from benchmarks.systems.base import System
from benchmarks.systems.comfyd import Comfyd
from benchmarks.world import World, build_child

ROWS = ("A1", "A2", "A3", "A4", "A5", "A6", "A7")
PAUSE_S = 0.4
"""Between two measurements, so that what the first one left behind is over."""
LIVED_S = 1.0
"""s6 and runit start a child again at once only if it has lived for a second."""
LATER = float("inf")


class Session:
    """All measurements of one system with N children."""

    def __init__(self, system: System, n: int, options: Options, samples: Samples) -> None:
        self.system, self.world, self.n, self.options, self.samples = system, system.world, n, options, samples
        self.base = dict.fromkeys(range(n), 0)
        self.limit_s = 5.0 if options.quick else 20.0
        self.again = 1 if options.quick else 3

    def note(self, measure: str, value: float) -> None:
        self.samples.add(f"{measure}, N={self.n}", self.system.name, value)

    def change(self, wanted: dict[int, int]) -> float:
        """Milliseconds from the written configuration to exactly that world."""
        time.sleep(PAUSE_S)
        written = self.system.apply(wanted)
        reached = self.world.is_exactly(wanted, self.limit_s)
        self.system.settle()
        return (reached - written) * 1000

    def measure(self) -> None:
        idle = sum(rss_kib(pid) for pid in self.system.processes())
        self.note("A1 add N (ms)", self.change(self.base))
        if self.world.running != self.base:
            self.samples.remarks.append(f"{self.system.name}: {len(self.world.running)} of {self.n} came up in time")
            return
        steps: list[tuple[str, Callable[[], None]]] = [
            ("A5", lambda: self.idle(idle)), ("A2", self.single_changes), ("A4", self.crashes), ("A3", self.remove_all),
            ("A6", self.shut_down),
        ]  # fmt: skip
        for row, step in steps:
            if wanted(self.options, row):
                step()

    def idle(self, before_kib: int) -> None:
        seconds = 1.0 if self.options.quick else 10.0
        time.sleep(3 * PAUSE_S if self.options.quick else 3.0)
        pids = self.system.processes()
        cpu, sleeps = sum(map(cpu_s, pids)), switches(self.system.pid)
        time.sleep(seconds)
        self.note("A5 idle CPU (%)", (sum(map(cpu_s, pids)) - cpu) / seconds * 100)
        self.note("A5 wake-ups of the main thread (1/s)", (switches(self.system.pid) - sleeps) / seconds)
        rss = sum(map(rss_kib, pids))
        self.note("A5 RSS (MiB)", rss / 1024)
        self.note("A5 RSS per child (KiB)", (rss - before_kib) / self.n)

    def single_changes(self) -> None:
        starts = dict(self.world.starts)
        more = self.base | {self.n: 0}
        found: dict[str, list[float]] = {"add 1": [], "change 1": [], "remove 1": []}
        for turn in range(self.again):
            found["add 1"].append(self.change(more))
            time.sleep(LIVED_S)
            found["change 1"].append(self.change(more | {self.n: turn + 1}))
            found["remove 1"].append(self.change(self.base))
        for what, values in found.items():
            self.note(f"A2 {what} (ms)", statistics.median(values))
        touched = sum(self.world.starts[n] - starts.get(n, 0) for n in self.base)
        self.note("A2 other children restarted", touched)
        if isinstance(self.system, Comfyd):
            self.api_calls(self.system)

    def api_calls(self, comfyd: Comfyd) -> None:
        """stop and start of one child by the API, until it is gone or up."""
        found: dict[str, list[float]] = {"stop": [], "start": [], "restart": []}
        for turn in range(self.again):
            number = turn % self.n
            for verb, wanted in (("stop", False), ("start", True), ("restart", True)):
                time.sleep(PAUSE_S)
                known = self.world.starts[number]
                connection, sent = comfyd.ask(number, verb)
                done = self._stopped(number) if not wanted else self._started(number, known)
                found[verb].append((self.world.until(done, self.limit_s) - sent) * 1000)
                connection.getresponse().read()
                connection.close()
        for verb, values in found.items():
            self.note(f"A2 {verb} 1 by API call (ms)", statistics.median(values))

    def _stopped(self, number: int) -> Callable[[], bool]:
        return lambda: number not in self.world.running

    def _started(self, number: int, known: int) -> Callable[[], bool]:
        return lambda: self.world.starts[number] > known and number in self.world.running

    def crashes(self) -> None:
        """Kill different children, one after another: the first crash of each."""
        times: list[float] = []
        kills = 2 if self.options.quick else 8
        for number in list(self.base)[-min(kills, self.n):]:  # fmt: skip
            time.sleep(PAUSE_S)
            known = self.world.starts[number]
            killed = time.monotonic()
            signal.pidfd_send_signal(self.world.children[number].pidfd, signal.SIGKILL)
            reached = self.world.until(self._started(number, known), self.limit_s)
            times.append(LATER if reached == LATER else (self.world.children[number].started - killed) * 1000)
        self.note("A4 crash, median (ms)", statistics.median(times))
        self.note("A4 crash, slowest (ms)", max(times))

    def remove_all(self) -> None:
        self.note("A3 remove N (ms)", self.change({}))

    def shut_down(self) -> None:
        self.change(self.base)
        time.sleep(PAUSE_S)
        assert self.system.process is not None
        ended = self.world.watch(self.system.pid)
        sent = time.monotonic()
        os.kill(self.system.pid, self.system.stop_signal)
        reached = self.world.until(lambda: ended() and not self.world.running, self.limit_s)
        self.note("A6 shutdown (ms)", (reached - sent) * 1000)

    def adopt(self) -> None:
        """Kill the daemon, start the next one on the same children; then what it costs while nothing happens."""
        assert isinstance(self.system, Comfyd)
        self.change(self.base)
        starts = dict(self.world.starts)
        for _ in range(self.again):
            first, complete = self.system.relaunch(self.limit_s)
            self.note("A7 from spawn to the first status (ms)", first * 1000)
            self.note("A7 from spawn to a status with all adopted (ms)", complete * 1000)
        self.world.until(lambda: False, PAUSE_S)
        self.note("A7 children started anew", sum(self.world.starts[n] - starts[n] for n in self.base))


@contextmanager
def open_system(kind: type[System], child: Path) -> Iterator[System]:
    with temporary_root(kind.name) as root:
        folder = root / "r"
        folder.mkdir()
        world = World(folder / "r.sock")
        system = kind(folder, child, world)
        try:
            system.start()
            yield system
        finally:
            system.close()
            world.close()
            if system.process is not None:
                end(system.process)


def wanted(options: Options, row: str) -> bool:
    return not options.rows or row in options.rows


def measure_adoption(child: Path, n: int, options: Options, samples: Samples) -> None:
    with open_system(Comfyd, child) as system:
        Session(system, n, options, samples).adopt()


def run(options: Options) -> Result:
    samples = Samples("")
    sizes = (10,) if options.quick else (10, 100, 300)
    with temporary_root("child") as folder:
        child = build_child(folder)
        kinds = [kind for kind in SYSTEMS if options.wants(kind.name)]
        for kind in [k for k in kinds if not all(Path(n).exists() for n in k.needs)]:
            samples.remarks.append(f"{kind.name} is not installed here: {kind.how}")
            kinds.remove(kind)
        for round_ in range(1 if options.quick else options.rounds):
            if wanted(options, "A7") and options.wants("comfyd"):
                measure_adoption(child, max(sizes), options, samples)
            for n in sizes if options.rows != {"A7"} else ():
                for kind in kinds:
                    if round_ == 0 or not kind.slow:
                        with open_system(kind, child) as system:
                            Session(system, n, options, samples).measure()
    return Result("A. Process supervision", samples, list(_goals(samples, sizes)))


def _goals(s: Samples, sizes: tuple[int, ...]) -> Iterator[Goal]:
    n, most = min(100, max(sizes)), max(sizes)
    add = f"A1 add N (ms), N={n}"
    floor, s6, ours = s.median(add, "floor"), s.median(add, "s6"), s.median(add, "comfyd")
    more = f" ({_ms(ours)}; floor {_ms(floor)}, s6 {_ms(s6)})"
    yield goal_below("A1", f"add {n} children, to the floor", s.ratio(add, "comfyd", "floor"), 3, "x", more)
    yield goal_below("A1", f"add {n} children, to s6", s.ratio(add, "comfyd", "s6"), 1, "x", more)
    for what in ("add 1", "change 1", "remove 1"):
        value = s.median(f"A2 {what} (ms), N={most}", "comfyd")
        best = s.best(f"A2 {what} (ms), N={most}")
        more = f" (best other: {best[0]} {_ms(best[1])})" if best else ""
        yield goal_below("A2", f"{what} of {most}, from the edit", value, 60, "ms", more)
        few = s.median(f"A2 {what} (ms), N={min(sizes)}", "comfyd")
        growth = value / few if value and few else None
        yield goal_below("A2", f"{what}: t({most})/t({min(sizes)})", growth, 1.3, "x")
    for verb in ("stop", "start", "restart"):
        value = s.median(f"A2 {verb} 1 by API call (ms), N={most}", "comfyd")
        yield goal_below("A2", f"{verb} 1 of {most} by API call", value, 15, "ms")
    others = sum(s.median(f"A2 other children restarted, N={size}", "comfyd") or 0 for size in sizes)
    yield goal_below("A2", "other children restarted", others, 0, "")
    yield goal_below("A3", f"remove {n}", s.median(f"A3 remove N (ms), N={n}", "comfyd"), 50, "ms")
    for size in sizes:
        value = s.median(f"A4 crash, median (ms), N={size}", "comfyd")
        yield goal_below("A4", f"SIGKILL to the new process, {size} children", value, 10, "ms")
    for size in sorted({n, most}):
        idle = s.median(f"A5 idle CPU (%), N={size}", "comfyd")
        yield goal_below("A5", f"idle CPU, {size} children", idle, 0.3, "%")
        wakes = s.median(f"A5 wake-ups of the main thread (1/s), N={size}", "comfyd")
        yield goal_below("A5", f"wake-ups of the loop thread, {size} children", wakes, 2, "/s")
    yield goal_below(
        "A5", f"RSS per child, {n} children", s.median(f"A5 RSS per child (KiB), N={n}", "comfyd"), 25, "KiB"
    )
    adopted = s.median(f"A7 from spawn to a status with all adopted (ms), N={most}", "comfyd")
    yield goal_below("A7", f"adopt {most} children after SIGKILL, from the spawn", adopted, 1000, "ms")
    anew = s.median(f"A7 children started anew, N={most}", "comfyd")
    yield goal_below("A7", "of them started anew", anew, 0, "")
    yield goal_below("A6", f"shutdown, {most} children", s.median(f"A6 shutdown (ms), N={most}", "comfyd"), 100, "ms")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
