"""What plan() answers: a few actions, the reason for everything that does not run, and when to look again."""

from dataclasses import dataclass, field

from comfyd.model.base import Condition
from comfyd.model.process import DesiredEnvironment, DesiredProcess


@dataclass(frozen=True, slots=True)
class InstallEnvironment:
    environment: DesiredEnvironment
    reason: str

    @property
    def key(self) -> str:
        return f"environment/{self.environment.name}"


@dataclass(frozen=True, slots=True)
class StartProcess:
    """flags: what the environment's --help lists (decides optional arguments)."""

    process: DesiredProcess
    flags: frozenset[str]
    reason: str

    @property
    def key(self) -> str:
        return self.process.key


@dataclass(frozen=True, slots=True)
class StopProcess:
    """Stop the run `generation` of `key`; wait at most drain_s for its prompts first."""

    key: str
    generation: str
    drain_s: float
    reason: str


Action = InstallEnvironment | StartProcess | StopProcess


@dataclass(frozen=True, slots=True)
class Plan:
    """actions: at most one per key. holds: key -> why it is not started now. wake_at: mono seconds.

    warnings: key -> what is doubtful about it, though nothing is held for that.
    """

    actions: tuple[Action, ...] = ()
    holds: dict[str, Condition] = field(default_factory=dict)
    wake_at: float | None = None
    warnings: dict[str, tuple[Condition, ...]] = field(default_factory=dict)
