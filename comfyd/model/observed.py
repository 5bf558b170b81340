"""What is, as facts only. Why something does not run is a decision and lives in Plan.holds."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from comfyd.model.base import Condition, Frozen


class Phase(StrEnum):
    """Phases of a living process; `GONE` = we know of it, it does not run."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


DEVICE_ERRORS = 3
"""So many in a row, and it is not the tasks."""

ALIVE = frozenset({Phase.STARTING, Phase.READY, Phase.UNREADY, Phase.DRAINING, Phase.STOPPING})


class ExitInfo(Frozen):
    """How the last run ended. code: exit code, None if killed by `signal` or unknown (an adopted process).

    asked: we stopped it. at: mono seconds; wall: wall seconds. fingerprint: what it was started with.
    last_lines: the end of its log. cause: our own words where we know better (the
    system refused the spawn, it never became ready). errno: name of the error if the system refused the spawn.
    reason: stable name of what made it end, if it is known: `oom` (the kernel killed it for memory), or why we ended it
    ourselves (`unresponsive`, `device_errors`, `not_ready_in_time`).
    """

    code: int | None = None
    signal: str | None = None
    asked: bool = False
    cause: str | None = None
    reason: str = ""
    errno: str | None = None
    at: float
    wall: float
    fingerprint: str = ""
    last_lines: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_kept_earlier(cls, given: Any) -> Any:
        """Facts of version 0.1 said `oom` apart."""
        if isinstance(given, dict) and "oom" in given:
            kept = {key: value for key, value in given.items() if key != "oom"}
            return {**kept, "reason": kept.get("reason") or "oom"} if given["oom"] else kept
        return given

    @property
    def oom(self) -> bool:
        return self.reason == "oom"

    @property
    def short(self) -> bool:
        """The system had no descriptors, processes or memory to spare for the start: that passes by itself."""
        return self.errno in ("EAGAIN", "EMFILE", "ENFILE", "ENOMEM")

    def text(self) -> str:
        if self.cause:
            return self.cause
        if self.oom:
            return "killed by the kernel: out of memory"
        if self.signal:
            return f"killed by {self.signal}"
        return "exit code unknown" if self.code is None else f"exit code {self.code}"


class ObservedProcess(Frozen):
    """One key that control knows. generation: uuid hex of this run (empty if gone).

    Times ending in _mono are CLOCK_BOOTTIME seconds, in _wall epoch seconds. crashes: consecutive crashes without
    10 min of readiness between them. tree: the real folder it runs from (pin target). probe_message: last probe result.
    trouble: why we are ending it, although nobody asked for that. lingers: why it lives on although it was killed.
    """

    key: str
    phase: Phase
    pid: int | None = None
    generation: str = ""
    fingerprint: str = ""
    port: int | None = None
    gpus: tuple[int | str, ...] | None = ()
    gpu_exclusive: bool = False
    started_mono: float | None = None
    started_wall: float | None = None
    ready_since_mono: float | None = None
    phase_since_wall: float | None = None
    last_exit: ExitInfo | None = None
    crashes: int = 0
    restarts: int = 0
    drain_until_mono: float | None = None
    tree: str | None = None
    adopted: bool = False
    identity: Literal["strong", "weak"] = "strong"
    probe_message: str = ""
    trouble: Condition | None = None
    lingers: Condition | None = None

    @property
    def alive(self) -> bool:
        return self.phase in ALIVE


class PortHolder(Frozen):
    """Who listens on a port that is not (yet) ours. pid 0 and name "?" if it cannot be seen."""

    port: int
    pid: int = 0
    name: str = "?"


class ObservedGpu(Frozen):
    """A GPU as the driver told. index: in PCI bus order."""

    index: int
    uuid: str
    name: str = ""


class InstallStep(Frozen):
    """One of the nine steps. state pending|running|done|failed|skipped; times in wall seconds."""

    name: str
    state: Literal["pending", "running", "done", "failed", "skipped"] = "pending"
    started_at: float | None = None
    finished_at: float | None = None
    message: str = ""


class ObservedEnvironment(Frozen):
    """One environment as it stands on disk and in the installer.

    state: absent | installing | installed | failed | conflict. `installed` stays true while a newer generation is
    being built or has failed. fingerprint: of the installed generation; failed_fingerprint: of the last failed try.
    failures: consecutive failed tries; failed_mono: when the last one ended. tree: real path of the generation.
    foreign: a directory that comfyd did not make stands in its place and waits to be adopted.
    flags: options its own --help lists. steps, progress (0..1 or None), log: of the latest install. last_lines: the
    end of what the script printed that failed last.
    """

    name: str
    state: Literal["absent", "installing", "installed", "failed", "conflict"] = "absent"
    installed: bool = False
    foreign: bool = False
    generation: int | None = None
    tree: str | None = None
    fingerprint: str = ""
    models_fingerprint: str = ""
    flags: frozenset[str] = frozenset()
    installing_fingerprint: str = ""
    failed_fingerprint: str = ""
    failures: int = 0
    failed_mono: float | None = None
    condition: Condition | None = None
    conditions: tuple[Condition, ...] = ()
    steps: tuple[InstallStep, ...] = ()
    progress: float | None = None
    log: str = ""
    last_lines: tuple[str, ...] = ()
    nodes: dict[str, str] = Field(default_factory=dict)


class ObservedState(Frozen):
    """One snapshot. ports: foreign listeners on ports that desired processes name. last_start_mono: latest spawn.

    gpus: None if nobody is pinned to one, or no driver has told which there are.
    """

    processes: tuple[ObservedProcess, ...] = ()
    environments: tuple[ObservedEnvironment, ...] = ()
    ports: tuple[PortHolder, ...] = ()
    last_start_mono: float | None = None
    unrecorded: tuple[int, ...] = ()
    gpus: tuple[ObservedGpu, ...] | None = None

    def by_key(self) -> dict[str, ObservedProcess]:
        """For those who ask for many: `process` looks through all of them each time."""
        return {p.key: p for p in self.processes}

    def process(self, key: str) -> ObservedProcess | None:
        return next((p for p in self.processes if p.key == key), None)

    def environment(self, name: str) -> ObservedEnvironment | None:
        return next((e for e in self.environments if e.name == name), None)


class Evidence(Frozen):
    """What dispatch sees of one process run; read by control's drain and probes.

    in_flight: prompts given to it and not finished. progress_mono: last progress of a running prompt.
    device_errors: prompts in a row that ended with a CUDA or device error; poisoned: one of them was of a kind after
    which nothing works in that process any more. device_message: what the latest one said.
    """

    key: str
    generation: str
    in_flight: int = 0
    progress_mono: float | None = None
    device_errors: int = 0
    poisoned: bool = False
    device_message: str = ""

    @property
    def condemned(self) -> bool:
        """It is of no use any more: it gets no prompts and is started anew."""
        return self.poisoned or self.device_errors >= DEVICE_ERRORS
