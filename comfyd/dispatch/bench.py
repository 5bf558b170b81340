"""What every attempt needs, and the one outcome that several places give."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comfyd.dispatch.pace import Pace
from comfyd.model.base import Now
from comfyd.model.task import Outcome, TaskState
from comfyd.store.protocol import TaskStore


@dataclass(frozen=True, slots=True)
class Bench:
    """progress(task_id, frame) shows a frame, None takes it away. outputs: folder of result files."""

    tasks: TaskStore
    clock: Callable[[], Now]
    lease_s: float
    outputs: Path
    pace: Pace
    progress: Callable[[str, dict[str, object] | None], None]


def put_back(message: str) -> Outcome:
    """Lost by no fault of the task: to the queue again, not counted as an attempt."""
    return Outcome(state=TaskState.PENDING, message=message, charged=False)
