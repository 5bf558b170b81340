"""One watched run of a key, and what is remembered of the key between runs. Facts only."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import anyio

from comfyd.core.backoff import READY_RESETS_AFTER_S
from comfyd.host.oom import Kills
from comfyd.host.proc import Identity, Process, Status
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ExitInfo, ObservedProcess, Phase
from comfyd.model.process import ProcessSpec


@dataclass(slots=True)
class StopRequest:
    """asked: somebody wanted it to end (False: we end it because it failed, `cause` says why)."""

    drain_until: float
    grace_s: float
    asked: bool = True
    cause: Condition | None = None


@dataclass(slots=True)
class Run:
    """A living process of ours. generation is the uuid in its environment.

    settled: it has been ready for so long at a stretch that former crashes count no more. kills_before: how often the
    kernel had killed for memory where it lives, when it was last seen to answer (at first: when it was started).
    lingers: why it lives on although it was killed. shield: what keeps its stop from being cancelled.
    """

    key: str
    spec: ProcessSpec
    process: Process
    generation: str
    fingerprint: str
    gpus: tuple[int | str, ...] | None
    gpu_exclusive: bool
    tree: str | None
    started: Now
    phase: Phase = Phase.STARTING
    phase_since_wall: float = 0.0
    ready_since_mono: float | None = None
    settled: bool = False
    kills_before: Kills | None = None
    probe_message: str = ""
    adopted: bool = False
    stop: StopRequest | None = None
    lingers: Condition | None = None
    shield: anyio.CancelScope | None = None
    stop_changed: asyncio.Event = field(default_factory=asyncio.Event)
    probe_changed: asyncio.Event = field(default_factory=asyncio.Event)
    shown: tuple[object, ObservedProcess] | None = None

    @property
    def identity_strength(self) -> Any:
        return "strong" if self.process.pidfd is not None else "weak"

    def is_settled(self, mono: float) -> bool:
        since = self.ready_since_mono
        return self.settled or (since is not None and mono - since >= READY_RESETS_AFTER_S)

    def record(self) -> dict[str, Any]:
        """What the journal keeps: identity and all that adoption needs; never the environment variables."""
        return {
            **self.process.identity.as_dict(),
            "key": self.key,
            "spec": self.spec.model_dump(mode="json", exclude={"env"}),
            "fingerprint": self.fingerprint,
            "gpus": self.gpus,
            "gpu_exclusive": self.gpu_exclusive,
            "tree": self.tree,
            "mono": self.started.mono,
            "wall": self.started.wall,
        }


def run_from_record(record: dict[str, Any], process: Process) -> Run:
    """The run that a journal record describes, as found alive by a new daemon: unready if it was ready once."""
    ready = bool(record.get("ready"))
    silent = Phase.UNREADY if "ready" in record else Phase.STARTING
    gpus = record.get("gpus")
    started = Now(record["mono"], record["wall"])
    return Run(
        key=record["key"],
        spec=ProcessSpec.model_validate(record["spec"]),
        process=process,
        generation=record["uuid"],
        fingerprint=record["fingerprint"],
        gpus=None if gpus is None else tuple(gpus),
        gpu_exclusive=bool(record.get("gpu_exclusive")),
        tree=record.get("tree"),
        started=started,
        phase=Phase.READY if ready else silent,
        phase_since_wall=started.wall,
        ready_since_mono=started.mono if ready else None,
        adopted=True,
    )


def identity_from_record(record: dict[str, Any]) -> Identity:
    return Identity(record["pid"], record["starttime"], record["boot_id"], record["pidns"], record["uuid"])


@dataclass(slots=True)
class History:
    """What outlives the runs of one key: crash count, restarts, the last exit. Kept as the fact `crash/<key>`."""

    crashes: int = 0
    restarts: int = 0
    last_exit: ExitInfo | None = None

    def ended(self, run: Run, status: Status, now: Now, last_lines: tuple[str, ...], *, oom: bool) -> ExitInfo:
        """Take note of an exit; a long readiness or new settings start the crash count anew."""
        stop = run.stop
        cause = stop.cause if stop else None
        info = ExitInfo(
            code=status.code, signal=status.signal, asked=bool(stop and stop.asked),
            cause=cause.message if cause else None, reason=cause.reason if cause else "oom" if oom else "",
            at=now.mono, wall=now.wall, fingerprint=run.fingerprint, last_lines=last_lines,
        )  # fmt: skip
        self._count(info, run.is_settled(now.mono))
        return info

    def refused(self, fingerprint: str, now: Now, cause: str, errno: str | None = None) -> None:
        """A start that never became a run, or a run whose end nobody saw: counts like a crash.

        errno: name of the error if the system refused the start. A shortage of its own says nothing of the program.
        """
        info = ExitInfo(cause=cause, errno=errno, at=now.mono, wall=now.wall, fingerprint=fingerprint)
        if info.short:
            self.last_exit = info
        else:
            self._count(info, was_stable=False)

    def _count(self, info: ExitInfo, was_stable: bool) -> None:
        changed = self.last_exit is not None and self.last_exit.fingerprint != info.fingerprint
        if info.asked:
            self.crashes = 0
        elif was_stable or changed:
            self.crashes = 1
        else:
            self.crashes += 1
        self.last_exit = info

    def as_fact(self, boot_id: str) -> dict[str, Any]:
        last = self.last_exit.model_dump(mode="json") if self.last_exit else None
        return {"crashes": self.crashes, "restarts": self.restarts, "last_exit": last, "boot_id": boot_id}


def history_from_fact(fact: dict[str, Any], boot_id: str) -> History:
    """The history of another boot keeps its words but not its clock: its backoff is over."""
    last = ExitInfo.model_validate(fact["last_exit"]) if fact.get("last_exit") else None
    if last is not None and fact.get("boot_id") != boot_id:
        return History(0, int(fact.get("restarts", 0)), last.model_copy(update={"at": 0.0}))
    return History(int(fact.get("crashes", 0)), int(fact.get("restarts", 0)), last)


def observed_run(run: Run, history: History) -> ObservedProcess:
    """Made anew only when something of it has changed: a snapshot of all runs is taken after every fact."""
    mark = (
        run.phase, run.phase_since_wall, run.ready_since_mono, run.probe_message, run.spec.port, run.gpu_exclusive,
        run.stop.drain_until if run.stop else None, run.stop.cause if run.stop else None, run.lingers,
        history.last_exit, history.crashes, history.restarts,
    )  # fmt: skip
    if run.shown is None or run.shown[0] != mark:
        run.shown = (mark, _observed(run, history))
    return run.shown[1]


def _observed(run: Run, history: History) -> ObservedProcess:
    return ObservedProcess(
        key=run.key, phase=run.phase, pid=run.process.pid, generation=run.generation, fingerprint=run.fingerprint,
        port=run.spec.port, gpus=run.gpus, gpu_exclusive=run.gpu_exclusive, started_mono=run.started.mono,
        started_wall=run.started.wall, ready_since_mono=run.ready_since_mono, phase_since_wall=run.phase_since_wall,
        last_exit=history.last_exit, crashes=history.crashes, restarts=history.restarts,
        drain_until_mono=run.stop.drain_until if run.stop else None, tree=run.tree, adopted=run.adopted,
        identity=run.identity_strength, probe_message=run.probe_message, trouble=run.stop.cause if run.stop else None,
        lingers=run.lingers,
    )  # fmt: skip


def observed_gone(key: str, history: History) -> ObservedProcess:
    last = history.last_exit
    return ObservedProcess(
        key=key, phase=Phase.GONE, last_exit=last, crashes=history.crashes, restarts=history.restarts,
        phase_since_wall=last.wall if last else None,
    )  # fmt: skip
