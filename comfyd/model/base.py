"""The two base classes of all nouns."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, hash by value where all fields are hashable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, defer_build=True)


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of both clocks, handed to every decision.

    mono: seconds of CLOCK_BOOTTIME, never jumps; used for leases and backoff.
    wall: seconds since the epoch (UTC); for display and override expiry only.
    """

    mono: float
    wall: float


@dataclass(frozen=True, slots=True)
class Condition:
    """Why something is not as wished: data for status, CLI, events and metrics.

    type: stable snake_case name of the aspect (`waiting_env`, `blocked`, `backoff`, ...).
    reason: stable snake_case cause within it (`port_in_use`, `install_failed`, ...).
    message: one sentence for people. hint: what to do next. since: wall seconds or None.
    """

    type: str
    reason: str
    message: str
    hint: str = ""
    since: float | None = None

    def as_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": self.type, "reason": self.reason, "message": self.message}
        if self.hint:
            out["hint"] = self.hint
        if self.since is not None:
            out["since"] = self.since
        return out
