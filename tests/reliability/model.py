"""What a daemon promises of its instances and tasks, as a pure model: what was asked for gives what must be seen.

Owns: expectations. Must not: look at anything; facts are handed in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.reliability.checks import ENDS

Process = tuple[int, int]
"""pid and start time: the same pair is the same process."""
CRASHES_FORGIVEN, FLAGS = 3, ("--lowvram", "--verbose")


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance of the file."""

    port: int
    enabled: bool = True
    args: str = ""
    name: str = ""


@dataclass(slots=True)
class Promise:
    """One acknowledged task. crashes: of instances, at the time it was created."""

    crashes: int
    cancelled: bool = False
    end: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """One look: what status tells, what the database holds, what procfs shows.

    shown: id -> (state, port, pid, name). live: id -> the processes that lead a tree of it. argv: pid -> its arguments.
    """

    config: str
    shown: Mapping[int, tuple[str, int, int | None, str]]
    overrides: frozenset[tuple[str, int]]
    tasks: Mapping[str, str]
    live: Mapping[int, tuple[Process, ...]]
    argv: Mapping[int, tuple[str, ...]]


@dataclass
class Model:
    """file: what the newest valid revision says. Methods tell what happened; `problems` compares."""

    file: dict[int, Entry]
    config: str = "ok"
    want: dict[int, str] = field(default_factory=dict)
    fields: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    generation: dict[int, int] = field(default_factory=dict)
    crashed: set[int] = field(default_factory=set)
    crashes: int = 0
    tasks: dict[str, Promise] = field(default_factory=dict)
    known: dict[tuple[int, int], Process] = field(default_factory=dict)

    # what is wanted
    def runs(self, number: int) -> bool:
        return self.want.get(number, "up" if self.file[number].enabled else "down") == "up"

    def args(self, number: int) -> str:
        return self.fields.get(number, self.file[number].args)

    def running(self) -> list[int]:
        return [number for number in self.file if self.runs(number)]

    def overridden(self) -> list[int]:
        return sorted({*self.want, *self.fields})

    def _spec(self, number: int) -> tuple[int, str, int] | None:
        """All that a process is started with; another one means another process. None: none is to run."""
        if not self.runs(number):
            return None
        return self.file[number].port, self.args(number), self.tokens.get(number, 0)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        before = {number: self._spec(number) for number in self.file}
        yield
        for number, spec in before.items():
            if spec is not None and spec != self._spec(number):
                self._ended(number)
                self.crashed.discard(number)

    def _ended(self, number: int) -> None:
        self.generation[number] = self.generation.get(number, 0) + 1

    # what happens; a put replaces all wishes for its instance
    def edit(self, number: int, **changes: object) -> None:
        with self._asked():
            self.file[number] = replace(self.file[number], **changes)  # type: ignore[arg-type]
            self.config = "ok"

    def swap_ports(self, one: int, two: int) -> None:
        with self._asked():
            first, second = self.file[one], self.file[two]
            self.file[one], self.file[two] = replace(first, port=second.port), replace(second, port=first.port)
            self.config = "ok"

    def spoil(self, state: str) -> None:
        self.config = state  # and nothing moves

    def put_want(self, number: int, want: str) -> None:
        with self._asked():
            self.fields.pop(number, None)
            self.want[number] = want

    def put_fields(self, number: int, args: str) -> None:
        with self._asked():
            self.want.pop(number, None)
            self.fields[number] = args

    def verb(self, number: int, name: str) -> None:
        with self._asked():
            self.want[number] = "down" if name == "stop" else "up"
            self.tokens[number] = self.tokens.get(number, 0) + (name == "restart")

    def clear(self, number: int) -> None:
        with self._asked():
            self.want.pop(number, None)
            self.fields.pop(number, None)

    def crash(self, number: int) -> None:
        self._ended(number)
        self.crashed.add(number)
        self.crashes += 1

    def stop_daemon(self) -> None:
        """A stop takes the instances along; a kill and an upgrade do not and change nothing here."""
        for number in self.running():
            self._ended(number)
            self.crashed.discard(number)

    def create(self, task: str) -> None:
        self.tasks[task] = Promise(self.crashes)

    # what must be seen
    def problems(self, facts: Facts) -> list[str]:
        """Why the facts are not (yet) what the model says."""
        found = [] if facts.config == self.config else [f"config is {facts.config}, not {self.config}"]
        stored = {*(("run", n) for n in self.want), *(("spec", n) for n in self.fields)}
        if facts.overrides != stored:
            found.append(f"overrides are {sorted(facts.overrides)}, not {sorted(stored)}")
        for number in self.file:
            found += [f"instance {number}: {what}" for what in self._instance(number, facts)]
        return found

    def _instance(self, number: int, facts: Facts) -> Iterator[str]:
        state, port, pid, name = facts.shown[number]
        live = facts.live.get(number, ())
        if name != self.file[number].name:
            yield f"is still called {name}"
        if not self.runs(number):
            if state != "stopped" or live:
                yield f"{state} with {live}, not stopped"
            return
        if state != "ready" or port != self.file[number].port or [one[0] for one in live] != [pid]:
            yield f"{state} on port {port} as {pid} with {live}, not ready on {self.file[number].port}"
            return
        argv = facts.argv.get(live[0][0], ())
        if [flag for flag in argv if flag in FLAGS] != self.args(number).split() or str(port) not in argv:
            yield f"runs with {argv}, not with {self.args(number)!r} on {port}"
        if live[0] in [one for at, one in self.known.items() if at != (number, self.generation.get(number, 0))]:
            yield f"still is the process that has to end: {live[0]}"

    def remember(self, facts: Facts) -> list[str]:
        """Once there are no problems: what nothing asked to move is the process that was seen before."""
        found = []
        for number in self.running():
            now, here = facts.live[number][0], (number, self.generation.get(number, 0))
            if self.known.setdefault(here, now) != now:
                found.append(f"instance {number} moved from {self.known[here]} to {now} although nothing asked for it")
        return found

    def broken_promises(self, facts: Facts) -> list[str]:
        """Of tasks, at any time: none lost or unknown, an end never changes and is one that may be."""
        found = [] if set(facts.tasks) == set(self.tasks) else [f"stored {set(facts.tasks)}, not {set(self.tasks)}"]
        for task, promise in self.tasks.items():
            state = facts.tasks.get(task, "lost")
            if promise.end not in (None, state):
                found.append(f"{task} was {promise.end} and became {state}")
            promise.end = state if state in ENDS else None
            poisoned = self.crashes - promise.crashes >= CRASHES_FORGIVEN
            if (state == "CANCELLED" and not promise.cancelled) or (state == "FAILED" and not poisoned):
                found.append(f"{task} is {state}")
        return found

    def open_tasks(self) -> list[str]:
        """That have to end still."""
        waiting = [task for task, promise in self.tasks.items() if promise.end is None]
        return [task for task in waiting if self.running() or self.tasks[task].cancelled]
