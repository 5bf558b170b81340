"""Any order of edits, overrides, kills and tasks on a real daemon, each step compared with the pure model of model.py.

SEED repeats a run (as far as timing allows); a heavier tier (TIER=heavy) takes more and longer sequences.
"""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.graphs import invert, sleep
from tests.ports import free_port
from tests.reliability.checks import read_database
from tests.reliability.decoys import argv_of
from tests.reliability.ground import FOREIGN, Ground, crowd, ground
from tests.reliability.model import Entry, Facts, Model, Process

HEAVY = os.environ.get("TIER") == "heavy"
EXAMPLES, STEPS = (12, 30) if HEAVY else (3, 12)
CONVERGE_S = 15.0
"""T_conv and the start of an instance, after the drain of what was running (5 s)."""
NUMBERS = st.integers(0, 1)
ARGS = st.sampled_from(["", "--lowvram", "--verbose", "--lowvram --verbose"])


class Machine(RuleBasedStateMachine):
    """One example: a root, a daemon, and all that is done to it."""

    seed = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        self.ground: Ground = self.stack.enter_context(ground(folder, "machine", self.seed))
        entries = json.loads(self.ground.good)["instances"]
        self.foreign = entries[-1]
        self.model = Model({one["id"]: Entry(one["port"], name=one["name"]) for one in entries[:-1]})
        self.started = False

    @initialize()
    def begin(self) -> None:
        with self.step("begin"):
            self.ground.daemon.start()
            self.ground.daemon.until_ready(*self.model.file)
            self.ground.decoys.start_likenesses(self.ground.daemon)
            self.started = True

    # the operator
    @rule(number=NUMBERS, args=ARGS)
    def edit_args(self, number: int, args: str) -> None:
        self.edit(number, args=args)

    @rule(number=NUMBERS, enabled=st.booleans())
    def switch(self, number: int, enabled: bool) -> None:
        self.edit(number, enabled=enabled)

    @rule(number=NUMBERS, name=st.sampled_from(["a", "b c", "名"]))
    def rename(self, number: int, name: str) -> None:
        self.edit(number, name=f"{name}{number}")

    @rule(number=NUMBERS)
    def move_port(self, number: int) -> None:
        self.edit(number, port=free_port())

    @rule()
    def swap_ports(self) -> None:
        with self.step("swap ports"):
            self.model.swap_ports(0, 1)
            self.write()

    @rule(how=st.sampled_from(["cut", "same port", "unknown key", "gone"]))
    def spoil(self, how: str) -> None:
        with self.step(f"spoil {how}"):
            self.model.spoil("missing" if how == "gone" else "stale")
            self.write(how)

    @rule(number=NUMBERS, want=st.sampled_from(["up", "down"]))
    def put_want(self, number: int, want: str) -> None:
        with self.step(f"want {number} {want}"):
            self.model.put_want(number, want)
            self.ask("PUT", f"/api/comfyui/overrides/{number}", {"want": want})

    @rule(number=NUMBERS, args=ARGS.filter(bool))
    def put_fields(self, number: int, args: str) -> None:
        with self.step(f"fields {number} {args}"):
            self.model.put_fields(number, args)
            self.ask("PUT", f"/api/comfyui/overrides/{number}", {"fields": {"extra_args": args}})

    @precondition(lambda self: self.model.overridden())
    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.model.overridden()))
        with self.step(f"clear {number}"):
            self.model.clear(number)
            self.ask("DELETE", f"/api/comfyui/overrides/{number}")

    @rule(number=NUMBERS, name=st.sampled_from(["start", "stop", "restart"]))
    def verb(self, number: int, name: str) -> None:
        with self.step(f"{name} {number}"):
            self.model.verb(number, name)
            self.ask("POST", f"/api/comfyui/instances/{number}/{name}?wait=0")

    # accidents
    def fresh(self) -> list[int]:
        """Those whose crash would be the first one in a row, so that no delay is due."""
        return [number for number in self.model.running() if number not in self.model.crashed]

    @precondition(lambda self: self.fresh())
    @rule(data=st.data(), daemon_too=st.booleans())
    def kill_instance(self, data: st.DataObject, daemon_too: bool) -> None:
        number = data.draw(st.sampled_from(self.fresh()))
        with self.step(f"kill instance {number}{' and the daemon' * daemon_too}"):
            if daemon_too:
                self.ground.daemon.kill()
            self.model.crash(number)
            os.kill(self.ground.leaders()[f"comfyui/{number}"].pid, signal.SIGKILL)
            if daemon_too:
                self.boot()

    @rule(pause_s=st.sampled_from([0.0, 0.3]))
    def kill_daemon(self, pause_s: float) -> None:
        with self.step("kill the daemon"):
            self.ground.daemon.kill()
            time.sleep(pause_s)
            self.boot()

    @rule()
    def stop_daemon(self) -> None:
        with self.step("stop the daemon"):
            self.model.stop_daemon()
            assert self.ground.daemon.stop() == 0
            assert self.ground.sampler.ours() == []
            self.boot()

    # tasks
    @rule(slow=st.booleans())
    def create(self, slow: bool) -> None:
        with self.step(f"create {'slow' if slow else 'quick'}"):
            graph = sleep(0.7, "slept") if slow else invert()
            answer = self.ask("POST", "/tasks/create/invert", {"wf_json": graph, "max_attempts": 5})
            self.model.create(answer["taskId"])

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.model.tasks)[-3:]))
        with self.step("cancel"):
            answer = self.ground.daemon.call("POST", f"/tasks/{task}/cancel")
            assert answer.status in (200, 202, 409), answer.body
            if answer.status < 300:
                self.model.tasks[task].cancelled = True

    @rule()
    def rest(self) -> None:
        with self.step("rest"):
            self.until(self.open_tasks, 40)

    def teardown(self) -> None:
        with self.stack:
            if self.started and self.ground.kept is None:
                self.put_want(0, "up")
                self.rest()
                assert self.ground.daemon.state(FOREIGN) == "blocked"
                self.ground.check_end()

    # how
    def edit(self, number: int, **changes: Any) -> None:
        with self.step(f"edit {number} {changes}"):
            self.model.edit(number, **changes)
            self.write()

    def write(self, spoilt: str = "") -> None:
        """The file as the model knows it, in place; or one that cannot be used."""
        path = self.ground.root / "instances.json"
        if spoilt == "gone":
            path.unlink(missing_ok=True)
            return
        made = [
            {"id": n, "port": e.port, "name": e.name, "enabled": e.enabled, "extra_args": e.args, "stop_grace_s": 3}
            for n, e in self.model.file.items()
        ]
        if spoilt:
            made[0] |= {"port": made[1]["port"]} if spoilt == "same port" else {"enabledd": True}
        text = json.dumps({"instances": [*made, self.foreign]}, indent=1)
        path.write_text(text[: len(text) // 2] if spoilt == "cut" else text)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.ground.daemon.call(method, path, body)
        assert answer.status < 500, (method, path, answer.status, answer.body)
        return answer.json

    def boot(self) -> None:
        self.ground.daemon.start()
        assert self.ground.unaccounted() == set()

    def open_tasks(self) -> list[str]:
        assert self.model.broken_promises(self.facts()) == []
        return [f"{task} has not ended" for task in self.model.open_tasks()]

    def problems(self) -> list[str]:
        self.seen = self.facts()
        return self.model.problems(self.seen)

    def facts(self) -> Facts:
        status = self.ground.daemon.get("/api/comfyui/status")
        shown = {i["id"]: (i["state"], i["port"], i["pid"], i["name"]) for i in status["instances"]}
        overrides = read_database(self.ground.database, "SELECT kind, key FROM override WHERE kind IN ('run', 'spec')")
        tasks = read_database(self.ground.database, "SELECT task_id, state FROM task")
        live: dict[int, tuple[Process, ...]] = {}
        argv = {}
        for one in self.ground.sampler.ours():
            if one.pid == one.session:
                number = int(one.key.rpartition("/")[2])
                live[number] = (*live.get(number, ()), (one.pid, one.starttime))
                with suppress(OSError):
                    argv[one.pid] = tuple(argv_of(one.pid))
        numbers = frozenset((str(kind), int(str(key).rpartition("/")[2])) for kind, key in overrides)
        ends = {str(task): str(state) for task, state in tasks}
        return Facts(status["config"]["state"], shown, numbers, ends, live, argv)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Do it, then wait until status, database and procfs are what the model says."""
        self.ground.tell(what)
        try:
            yield
            self.until(self.problems, CONVERGE_S)
            facts = self.seen
            assert self.model.remember(facts) == []
            assert self.model.broken_promises(facts) == []
            assert self.ground.sampler.violations == []
            assert self.ground.decoys.harmed() == []
        except BaseException:
            self.ground.keep()
            raise

    def until(self, wrong: Callable[[], list[str]], within_s: float) -> None:
        deadline = time.monotonic() + within_s * crowd()
        while left := wrong():
            assert time.monotonic() < deadline, f"{left}\n{self.ground.daemon.output[-3000:]}"
            time.sleep(0.05)


@pytest.mark.reliability
@pytest.mark.timeout(3600 if HEAVY else 900)
def test_any_order_of_events_gives_what_the_model_says() -> None:
    number = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"seed {number}")

    @seed(number)
    class Seeded(Machine):
        seed = number

    run_state_machine_as_test(
        Seeded,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=True,
        ),
    )  # fmt: skip
