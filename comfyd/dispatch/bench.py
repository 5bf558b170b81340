"""What every attempt needs, how its progress is shown, and the outcomes that several places give."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from comfyd.dispatch.pace import Pace
from comfyd.dispatch.retries import Retries
from comfyd.live import Live
from comfyd.model.base import Now
from comfyd.model.task import Outcome, TaskState
from comfyd.store.protocol import TaskStore


@dataclass(frozen=True, slots=True)
class Bench:
    """progress(task_id, frame) shows a frame, None takes it away. outputs: folder of result files.

    alarm: called when an instance is of no use any more, so that control looks at it now.
    """

    tasks: TaskStore
    clock: Callable[[], Now]
    lease_s: float
    outputs: Path
    pace: Pace
    progress: Callable[[str, dict[str, object] | None], None]
    alarm: Callable[[], None]
    retries: Retries = field(default_factory=Retries)


def show_progress(live: Live, task_id: str, frame: dict[str, object] | None) -> None:
    """In the progress cell, whose writer dispatch is."""
    frames = {**live.progress.get()}
    if frame is None:
        frames.pop(task_id, None)
    else:
        frames[task_id] = frame
    live.progress.set(frames)


def put_back(message: str) -> Outcome:
    """Lost by no fault of the task: to the queue again, not counted as an attempt."""
    return Outcome(state=TaskState.PENDING, message=message, charged=False)


def lost(instance: str, *, crashed: bool) -> Outcome:
    """The instance went away with its prompts. crashed: it died while it ran this one, which is remembered."""
    if not crashed:
        return put_back(f"instance {instance} went away while the prompt was there")
    message = f"instance {instance} died while it ran the prompt"
    return Outcome(state=TaskState.PENDING, message=message, charged=False, crashed=True)
