"""From StartProcess actions to processes: one batch, one journal sync, then all barriers open. Blocking code."""

import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyd.control.exits import ran_out_of_memory
from comfyd.control.runs import Run, identity_from_record
from comfyd.failpoint import failpoint
from comfyd.host import clock, oom, proc, procfs
from comfyd.host.journal import Journal
from comfyd.host.proc import Process, SpawnError, SpawnRequest, Status
from comfyd.host.procfs import OWNER_VARIABLE, UUID_VARIABLE
from comfyd.model.base import Now
from comfyd.model.plan import StartProcess
from comfyd.model.process import ProcessSpec

EXEC_FAILED = {126: ("EACCES", "the program could not be executed"), 127: ("ENOENT", "the program was not found")}
PART = 25
LAST_LINES, TAIL_BYTES = 50, 32 * 1024


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the starts of one batch share, looked up once. trees: link -> where it points now."""

    now: Now
    kills: oom.Kills | None
    trees: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def tree(self, link: str | None) -> str | None:
        if link is not None and link not in self.trees:
            self.trees[link] = os.path.realpath(link)
        return self.trees[link] if link is not None else None

    def make(self, folder: str) -> None:
        if folder not in self.folders:
            os.makedirs(folder, exist_ok=True)
            self.folders.add(folder)


@dataclass(frozen=True, slots=True)
class Spawner:
    """What all spawns of this daemon share. owner: tag of the state folder, so that daemons tell theirs apart.

    environment: what a child gets of the daemon's own (proc.handed_down).
    """

    journal: Journal
    boot_id: str
    pidns: int
    owner: str
    environment: Mapping[str, str]

    def start_batch(self, actions: Sequence[StartProcess], now: Now) -> list[tuple[StartProcess, Run | SpawnError]]:
        """Spawn all behind their barriers, record them with one sync, release them. Never raises for one of them.

        A large batch goes in parts: the programs of one part begin while the next one is spawned.
        """
        batch = _Batch(now, oom.kills(os.getpid()))  # they are born into our own cgroup
        parts = (actions[first : first + PART] for first in range(0, len(actions), PART))
        results = [result for part in parts for result in self._start_part(part, batch)]
        for run in (run for _, run in results if isinstance(run, Run)):
            _write_pid_file(run.spec, run.process, batch)
        return results

    def _start_part(
        self, actions: Sequence[StartProcess], batch: _Batch
    ) -> list[tuple[StartProcess, Run | SpawnError]]:
        results: list[tuple[StartProcess, Run | SpawnError]] = []
        for action in actions:
            try:
                results.append((action, self._spawn(action, batch)))
            except SpawnError as error:
                results.append((action, error))
            except OSError as error:
                results.append((action, SpawnError(error.errno, error.strerror, error.filename)))
        runs = [run for _, run in results if isinstance(run, Run)]
        failpoint("spawned")
        try:
            self.journal.started(run.record() for run in runs)
        except OSError as error:
            return [(action, _not_recorded(result, error)) for action, result in results]
        for run in runs:
            proc.release(run.process)
        failpoint("exec_released")
        return results

    def _spawn(self, action: StartProcess, batch: _Batch) -> Run:
        wish = action.process
        tree = batch.tree(wish.spec.pin)
        request = self._request(wish.spec, action.flags, tree)
        for folder in (*wish.spec.dirs, os.path.dirname(wish.spec.log)):
            batch.make(folder)
        process = proc.spawn(request, self.boot_id, self.pidns)
        return Run(
            key=wish.key, spec=wish.spec, process=process, generation=request.uuid, fingerprint=wish.fingerprint,
            gpus=wish.gpus, gpu_exclusive=wish.gpu_exclusive, tree=tree, started=batch.now,
            phase_since_wall=batch.now.wall, kills_before=batch.kills,
        )  # fmt: skip

    def _request(self, spec: ProcessSpec, flags: frozenset[str], tree: str | None) -> SpawnRequest:
        generation = uuid.uuid4().hex
        environment = proc.child_environment(self.environment, spec.env)
        environment |= {UUID_VARIABLE: generation, OWNER_VARIABLE: self.owner}
        argv = tuple(_pinned(argument, spec.pin, tree) for argument in spec.command(flags))
        return SpawnRequest(argv, _pinned(spec.cwd, spec.pin, tree), environment, spec.log, generation)


def _not_recorded(result: Run | SpawnError, error: OSError) -> SpawnError:
    """Without a record no start: the child at its barrier reads the end of its pipe and exits."""
    if isinstance(result, SpawnError):
        return result
    proc.abandon(result.process)
    return SpawnError(error.errno, f"its record cannot be written ({error.strerror})", error.filename)


def _pinned(text: str, link: str | None, tree: str | None) -> str:
    """A path below the environment link, moved to the generation that the link points to now."""
    if link and tree and (text == link or text.startswith(link + "/")):
        return tree + text[len(link) :]
    return text


def _write_pid_file(spec: ProcessSpec, process: Process, batch: _Batch) -> None:
    if spec.pid_file is None:
        return
    with contextlib.suppress(OSError):
        batch.make(os.path.dirname(spec.pid_file))
        fd = os.open(spec.pid_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, b"%d\n" % process.pid)
        finally:
            os.close(fd)


def put_away(journal: Journal, ended: Sequence[tuple[Run, Status]]) -> list[tuple[tuple[str, ...], bool]]:
    """For each ended run the end of its log (if nobody asked it to end), and whether the kernel killed it for memory;
    its traces are removed. Blocking."""
    failpoint("exit_seen")
    found = [
        (() if run.stop is not None and run.stop.asked else last_lines(run.spec.log), ran_out_of_memory(run, status))
        for run, status in ended
    ]
    for run, _ in ended:
        remove_pid_file(run.spec, run.process.pid)
    journal.ended(*(run.generation for run, _ in ended))
    return found


def remove_pid_file(spec: ProcessSpec, pid: int) -> None:
    """Remove the pid file if it still names this process."""
    if spec.pid_file is None:
        return
    path = Path(spec.pid_file)
    with contextlib.suppress(OSError):
        if path.read_text().strip() == str(pid):
            path.unlink()


def last_lines(log: str) -> tuple[str, ...]:
    """The end of a log, at most 50 lines of at most 500 characters."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            raw = file.read()
    except OSError:
        return ()
    text = raw.decode("utf-8", "replace")
    return tuple(line[:500] for line in text.splitlines()[-LAST_LINES:])


def adopt_recorded(records: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Process | None]]:
    """For each journal record the process if it is still the recorded one."""
    boot_id, pidns = clock.boot_id(), procfs.pid_namespace()
    found = [(record, proc.adopt(identity_from_record(record), boot_id, pidns)) for record in records]
    failpoint("adopt_verified")
    return found


def unrecorded(owner: str, known: frozenset[str]) -> tuple[int, ...]:
    """Pids that carry our owner tag and a uuid nobody recorded. They are shown, never signalled."""
    tagged = (p for p in procfs.all_pids() if procfs.owner_of(p) == owner)
    return tuple(p for p in tagged if (procfs.uuid_of(p) or "") not in known)
