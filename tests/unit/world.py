"""A tiny pure machine for plan(): applies actions to an ObservedState and lets things happen when told to.

It knows nothing of plan's reasons. Time moves only by `pass_time`; nothing happens but by the methods called.
"""

from dataclasses import dataclass, field

from comfyd.core.plan import plan
from comfyd.model.base import Now
from comfyd.model.observed import (
    ExitInfo,
    ObservedEnvironment,
    ObservedGpu,
    ObservedProcess,
    ObservedState,
    Phase,
    PortHolder,
)
from comfyd.model.plan import InstallEnvironment, Plan, StartProcess, StopProcess
from comfyd.model.process import ResolvedState

WALL = 1_000_000.0


@dataclass
class World:
    """The machine. installs: environment -> the wish being built."""

    mono: float = 1000.0
    processes: dict[str, ObservedProcess] = field(default_factory=dict)
    environments: dict[str, ObservedEnvironment] = field(default_factory=dict)
    foreign: tuple[PortHolder, ...] = ()
    last_start: float | None = None
    installs: dict[str, InstallEnvironment] = field(default_factory=dict)
    spawned: int = 0
    gpus: tuple[ObservedGpu, ...] | None = None

    @property
    def now(self) -> Now:
        return Now(mono=self.mono, wall=WALL + self.mono)

    def observed(self) -> ObservedState:
        return ObservedState(
            processes=tuple(self.processes.values()),
            environments=tuple(self.environments.values()),
            ports=self.foreign,
            last_start_mono=self.last_start,
            gpus=self.gpus,
        )

    def plan(self, desired: ResolvedState) -> Plan:
        return plan(desired, self.observed(), self.now)

    def alive(self) -> list[ObservedProcess]:
        return [p for p in self.processes.values() if p.alive]

    def apply(self, decided: Plan) -> None:
        for action in decided.actions:
            if isinstance(action, StopProcess):
                self._stop(action)
            elif isinstance(action, StartProcess):
                self._start(action)
            else:
                self._install(action)

    def _stop(self, action: StopProcess) -> None:
        seen = self.processes[action.key]
        assert seen.alive
        assert seen.generation == action.generation
        phase = Phase.DRAINING if action.drain_s > 0 and seen.phase is Phase.READY else Phase.STOPPING
        self._update(action.key, phase=phase, drain_until_mono=self.mono + action.drain_s)

    def _start(self, action: StartProcess) -> None:
        wish, seen = action.process, self.processes.get(action.key)
        assert seen is None or not seen.alive
        self.spawned += 1
        self.last_start = self.mono
        self.processes[action.key] = ObservedProcess(
            key=action.key,
            phase=Phase.STARTING,
            pid=self.spawned,
            generation=f"g{self.spawned}",
            fingerprint=wish.fingerprint,
            port=wish.spec.port,
            gpus=wish.gpus,
            gpu_exclusive=wish.gpu_exclusive,
            started_mono=self.mono,
            phase_since_wall=self.now.wall,
            crashes=seen.crashes if seen else 0,
            restarts=seen.restarts + 1 if seen else 0,
            last_exit=seen.last_exit if seen else None,
        )

    def _install(self, action: InstallEnvironment) -> None:
        name = action.environment.name
        assert name not in self.installs
        self.installs[name] = action
        before = self.environments.get(name, ObservedEnvironment(name=name))
        self.environments[name] = before.model_copy(update={"state": "installing"})

    def _update(self, key: str, **fields: object) -> None:
        if "phase" in fields:
            fields["phase_since_wall"] = self.now.wall
        self.processes[key] = self.processes[key].model_copy(update=fields)

    def advance(self, key: str) -> None:
        """The next thing that happens to a process if nothing goes wrong."""
        seen = self.processes[key]
        if seen.phase in (Phase.STARTING, Phase.UNREADY):
            self._update(key, phase=Phase.READY, ready_since_mono=self.mono)
        elif seen.phase is Phase.DRAINING:
            self._update(key, phase=Phase.STOPPING)
        elif seen.phase is Phase.STOPPING:
            self._gone(key, asked=True, code=0, crashes=0)

    def crash(self, key: str, code: int = 1) -> None:
        seen = self.processes[key]
        if seen.alive:
            asked = seen.phase in (Phase.STOPPING, Phase.DRAINING)
            self._gone(key, asked=asked, code=code, crashes=seen.crashes + (not asked))

    def _gone(self, key: str, *, asked: bool, code: int, crashes: int) -> None:
        seen = self.processes[key]
        last = ExitInfo(code=code, asked=asked, at=self.mono, wall=self.now.wall, fingerprint=seen.fingerprint)
        update = {"phase": Phase.GONE, "pid": None, "generation": "", "last_exit": last, "crashes": crashes}
        self._update(key, **update, port=None, drain_until_mono=None)

    def finish_install(self, name: str, *, good: bool) -> None:
        action = self.installs.pop(name, None)
        if action is None:
            return
        wish, before = action.environment, self.environments[name]
        if good:
            done: dict[str, object] = {
                "state": "installed", "installed": True, "fingerprint": wish.fingerprint, "failures": 0,
                "models_fingerprint": wish.spec.models_fingerprint, "failed_mono": None, "failed_fingerprint": "",
            }  # fmt: skip
        else:
            done = {
                "state": "failed", "failures": before.failures + 1, "failed_mono": self.mono,
                "failed_fingerprint": wish.fingerprint,
            }  # fmt: skip
        self.environments[name] = before.model_copy(update=done)

    def busy(self) -> bool:
        """Whether something is under way that will end by itself."""
        return bool(self.installs) or any(p.alive and p.phase is not Phase.READY for p in self.processes.values())

    def let_all_happen(self, *, good: bool = True) -> None:
        """Everything under way takes its next step; not `good`: installs fail and what starts crashes."""
        for key in sorted(self.processes):
            if self.processes[key].alive and self.processes[key].phase is not Phase.READY:
                if good or self.processes[key].phase is not Phase.STARTING:
                    self.advance(key)
                else:
                    self.crash(key)
        for name in sorted(self.installs):
            self.finish_install(name, good=good)
