"""What is done to a daemon until it reaches an armed failpoint, and what must be found on disk after the kill.

A story prepares (the daemon runs unharmed), then provokes (it is armed and will die). `RUNS` is the whole table.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from tests.daemon import leftovers, write_quick_install
from tests.graphs import invert, sleep
from tests.reliability.checks import read_database
from tests.reliability.ground import Ground, crowd

KEY = "once"
BOTH = frozenset({"comfyui/0", "comfyui/1"})


def ask(ground: Ground, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """The answer's JSON, None where the daemon died before it answered."""
    with suppress(OSError, HTTPException, ValueError):
        answer = ground.daemon.call(method, path, body, headers, timeout=20)
        assert answer.status < 500, (path, answer.status, answer.body)
        return answer.json
    return None


def create(ground: Ground, graph: Any = None) -> str | None:
    """POST the one task of this run: asked again, the same key and body. Returns its id if that was acknowledged."""
    ground.graph = ground.graph or graph or invert()
    headers = {"Idempotency-Key": KEY}
    answer = ask(ground, "POST", "/tasks/create/invert", {"wf_json": ground.graph, "max_attempts": 5}, **headers)
    if answer:
        ground.acknowledged.append(str(answer["taskId"]))
    return str(answer["taskId"]) if answer else None


# stories: each is what happens while the daemon is armed
def boot(ground: Ground) -> None:
    ground.daemon.start(wait=False)


def fail_install(ground: Ground) -> None:
    write_quick_install(ground.root / "build/comm", "exit 7")
    ground.daemon.start(wait=False)


def run_task(ground: Ground) -> None:
    create(ground)


def cancel_task(ground: Ground) -> None:
    task = create(ground, sleep(300, "slept"))
    assert task
    ask(ground, "POST", f"/tasks/{task}/cancel")


def pause_queue(ground: Ground) -> None:
    ask(ground, "POST", "/api/queue/pause")


def override(ground: Ground) -> None:
    ask(ground, "PUT", "/api/comfyui/overrides/0", {"fields": {"extra_args": "--lowvram"}})


def edit(ground: Ground) -> None:
    ground.daemon.edit(lambda data: data["instances"][0].update(extra_args="--verbose"))


def kill_instance(ground: Ground) -> None:
    os.kill(ground.leaders()["comfyui/0"].pid, signal.SIGKILL)


def stop_daemon(ground: Ground) -> None:
    ground.daemon.signal(signal.SIGTERM)


def stop_busy_daemon(ground: Ground) -> None:
    create(ground, sleep(3, "slept"))
    ground.daemon.until(lambda: states(ground) == ["PROCESSING"], what="it runs")
    ground.daemon.signal(signal.SIGTERM)


def break_file(ground: Ground) -> None:
    """The revision is refused."""
    path = ground.root / "instances.json"
    path.write_text(path.read_text()[:-30])


# what must be found after the kill
def states(ground: Ground) -> list[str]:
    return [str(state) for (state,) in read_database(ground.database, "SELECT state FROM task")]


def tasks_are(*wanted: str) -> Callable[[Ground], None]:
    def look(ground: Ground) -> None:
        assert states(ground) == list(wanted)

    return look


def nothing_runs(ground: Ground) -> None:
    """The children were still at their barrier: they read its end and exit by themselves."""
    deadline = time.monotonic() + 10 * crowd()
    while leftovers(ground.root):
        assert time.monotonic() < deadline, ground.sampler.ours()
        time.sleep(0.02)


def both_run(ground: Ground) -> None:
    """They were released: they run on although nobody watches."""
    deadline = time.monotonic() + 10 * crowd()
    while set(ground.leaders()) != BOTH:
        assert time.monotonic() < deadline, ground.sampler.ours()
        time.sleep(0.02)


def overridden(ground: Ground) -> None:
    assert read_database(ground.database, "SELECT kind, key FROM override") == [("spec", "comfyui/0")]


def paused(ground: Ground) -> None:
    assert read_database(ground.database, "SELECT environment FROM pause") == [("",)]


def kept_good(ground: Ground) -> None:
    assert "--verbose" in (ground.root / "workspace/.comfyd/last-good.json").read_text()


def set_aside(ground: Ground) -> None:
    assert (ground.root / "workspace/.ComfyUI-comm.1.failed").is_dir()
    write_quick_install(ground.root / "build/comm")


def copied(ground: Ground) -> None:
    assert list((ground.root / "workspace/logs").glob("comfyui_instance_?.log.1"))


def nothing(ground: Ground) -> None:
    """Only what every run is checked for."""


@dataclass(frozen=True, slots=True)
class KillRun:
    """name: of the failpoint; nth: at which time it is reached. ready: the instances run before it is armed.

    adopted: arm a second daemon, which finds them running. touched: keys whose process may be another one afterwards.
    generation: of the environment in the end. environ: for the daemon and the instances.
    """

    name: str
    story: Callable[[Ground], None]
    nth: int = 1
    left: Callable[[Ground], None] = nothing
    ready: bool = True
    adopted: bool = False
    touched: frozenset[str] = frozenset()
    generation: int = 1
    model: bool = False
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name}-{self.nth}-{self.story.__name__}"


def at_boot(name: str, nth: int = 1, **more: Any) -> KillRun:
    return KillRun(name, boot, nth, ready=False, **more)


def at_task(name: str, *states_left: str) -> KillRun:
    return KillRun(name, run_task, left=tasks_are(*states_left))


ZERO = frozenset({"comfyui/0"})
STUBBORN = {"FAKE_COMFYUI_IGNORE": "TERM,INT"}
FLOOD = {"FAKE_COMFYUI_FLOOD_MB": "21"}

RUNS = (
    # config
    at_boot("parsed"),
    at_boot("revision_saved"),
    *(at_boot("file_written", nth) for nth in (1, 6)),
    KillRun("parsed", edit, touched=ZERO, adopted=True, nth=2),
    KillRun("parsed", break_file, adopted=True, nth=2),
    KillRun("revision_saved", edit, left=kept_good, touched=ZERO, adopted=True, nth=2),
    KillRun("override_saved", override, left=overridden, touched=ZERO),
    # processes
    at_boot("spawned", left=nothing_runs),
    at_boot("record_written", left=nothing_runs),
    at_boot("exec_released", left=both_run),
    KillRun("adopt_verified", boot, ready=False, adopted=True, left=both_run),
    KillRun("stop_sent", edit, touched=ZERO),
    KillRun("kill_sent", edit, touched=ZERO, environ=STUBBORN),
    KillRun("exit_seen", edit, touched=ZERO),
    KillRun("exit_seen", kill_instance, touched=ZERO),
    KillRun("record_cleared", edit, touched=ZERO),
    KillRun("spawned", edit, touched=ZERO, adopted=True),
    KillRun("record_written", kill_instance, touched=ZERO, adopted=True),
    KillRun("exec_released", edit, adopted=True),
    at_boot("log_copied", environ=FLOOD, left=copied),
    # installs: begun trees are set aside and a fresh one is built; from the marker on the finished one is taken
    at_boot("script_copied"),
    at_boot("step_done", 4),
    at_boot("step_done", 7, generation=2),
    at_boot("merged", generation=2),
    at_boot("tree_verified", generation=2),
    at_boot("marker_written"),
    at_boot("link_flipped"),
    KillRun("tree_set_aside", fail_install, ready=False, left=set_aside, generation=2),
    *(at_boot(name, generation=2, model=True) for name in ("part_opened", "bytes_n", "fsynced", "renamed")),
    # the queue
    at_boot("migration_n"),
    at_boot("migration_n", 3),
    at_task("enqueue_before_commit"),
    at_task("enqueue_after_commit", "PENDING"),
    at_task("lease_committed", "PROCESSING"),
    at_task("prompt_id_saved", "PROCESSING"),
    at_task("prompt_posted", "PROCESSING"),
    at_task("prompt_acked", "PROCESSING"),
    at_task("result_seen", "PROCESSING"),
    at_task("outputs_stored", "PROCESSING"),
    at_task("result_before_commit", "PROCESSING"),
    at_task("result_committed", "COMPLETED"),
    KillRun("cancel_committed", cancel_task),
    KillRun("queue_paused", pause_queue, left=paused),
    # shutdown
    KillRun("drain_started", stop_busy_daemon, left=tasks_are("PROCESSING"), touched=BOTH),
    KillRun("leases_released", stop_busy_daemon, left=tasks_are("PENDING"), touched=BOTH),
    KillRun("children_stopped", stop_daemon, left=nothing_runs, touched=BOTH),
)
