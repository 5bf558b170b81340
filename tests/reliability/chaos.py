"""The people and the accidents around a daemon, at random: clients, an operator, kills, and what they saw of it.

Owns: what happens and the history of it. Must not: judge the end (test_chaos.py does).
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from tests.daemon import Answer
from tests.graphs import EXACT, invert, sleep
from tests.reliability.checks import ENDS
from tests.reliability.ground import Ground

BACKLOG = 60
"""Clients create no more while so many tasks are open."""


class Story:
    """What happened, as the clients saw it. Lists are appended to by several threads."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()


class Chaos:
    """The daemon, the people and the accidents around it."""

    def __init__(self, ground: Ground, dice: random.Random, story: Story) -> None:
        self.ground, self.dice, self.story = ground, dice, story
        self.daemon, self.sampler = ground.daemon, ground.sampler
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    # clients
    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer | None:
        """None: no answer (the daemon is away); what was asked may or may not have happened."""
        try:
            answer = self.daemon.call(method, path, body, headers, timeout=20)
        except (OSError, ValueError) as error:
            self.story.answers[f"{method} {type(error).__name__}"] += 1
            return None
        except Exception as error:
            if "http.client" not in type(error).__module__:
                raise
            return None
        self.story.answers[f"{method} {answer.status}"] += 1
        if answer.status >= 500 and not (answer.status == 503 or "start" in path or "stop-all" in path):
            self.story.wrong.append(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer

    def run_creators(self, dice: random.Random) -> None:
        number = 0
        while not self.over.wait(dice.uniform(0.05, 0.3)):
            if len(self.story.acknowledged) - len(self.story.ended) > BACKLOG:
                continue
            number += 1
            key = f"key-{dice.random()}"
            graph = sleep(dice.uniform(0.1, 1.2), "slept") if dice.random() < 0.3 else invert(dice.choice(EXACT))
            body = {"wf_json": graph, "max_attempts": 5}
            workflow = dice.choice(["invert", "invert", "elsewhere"])
            for _ in range(200):
                answer = self.call("POST", f"/tasks/create/{workflow}", body, **{"Idempotency-Key": key})
                if answer is not None and answer.status == 200:
                    self._acknowledge(answer, key)
                    break
                if answer is not None and answer.status < 500:
                    self.story.wrong.append(f"create refused: {answer.status} {answer.body[:300]!r}")
                    break
                time.sleep(0.1)
            if dice.random() < 0.2 and (
                again := self.call("POST", f"/tasks/create/{workflow}", body, **{"Idempotency-Key": key})
            ):
                self._acknowledge(again, key)

    def _acknowledge(self, answer: Answer, key: str) -> None:
        if answer.status != 200:
            return
        task = answer.json["taskId"]
        if self.story.acknowledged.setdefault(key, task) != task:
            self.story.wrong.append(f"{key} made {self.story.acknowledged[key]} and {task}")

    def run_cancels(self, dice: random.Random) -> None:
        while not self.over.wait(dice.uniform(0.2, 0.8)):
            known = list(self.story.acknowledged.values())
            if known:
                self.call("POST", f"/tasks/{dice.choice(known[-20:])}/cancel")

    def run_fetchers(self, dice: random.Random) -> None:
        while not self.over.wait(dice.uniform(0.1, 0.6)):
            answer = self.call("GET", "/comfyui-fetch-task?workflow_names=elsewhere,invert")
            if answer is None or answer.status != 200 or not answer.json:
                continue
            held = {"taskId": answer.json["taskId"], "lease_token": answer.json["lease_token"]}
            if dice.random() < 0.5:
                self.call("POST", "/comfyui-update-task", {**held, "status": "PROCESSING"})
            self.over.wait(dice.uniform(0, 0.5))
            if dice.random() < 0.7:
                end = dice.choice(["COMPLETED", "COMPLETED", "FAILED", "PENDING"])
                self.call("POST", "/comfyui-update-task", {**held, "status": end, "output_data": {"outside": True}})

    def run_observer(self) -> None:
        while not self.over.wait(0.2):
            self.observe_once()

    def observe_once(self) -> None:
        answer = self.call("GET", "/tasks?limit=500")
        for task in answer.json["tasks"] if answer is not None and answer.status == 200 else []:
            before = self.story.ended.get(task["taskId"])
            if before is not None and task["status"] != before:
                self.story.wrong.append(f"{task['taskId']} was {before} and became {task['status']}")
            if task["status"] in ENDS:
                self.story.ended[task["taskId"]] = task["status"]

    def start_clients(self) -> None:
        runs = (self.run_creators, self.run_creators, self.run_cancels, self.run_fetchers)
        for job in (self.run_observer, *(partial(run, random.Random(self.dice.random())) for run in runs)):
            thread = threading.Thread(target=self._guarded, args=(job,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.story.wrong.append(f"a client broke: {error!r}")

    def end_clients(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)

    # the operator
    def edit(self, number: int, **changes: Any) -> None:
        self.daemon.edit(lambda d: d["instances"][number].update(changes))

    def change_args(self) -> None:
        chosen = self.dice.choice(["", "--lowvram", "--verbose", "--disable-metadata"])
        self.edit(self.dice.randrange(3), extra_args=chosen)

    def swap_ports(self) -> None:
        def swap(data: dict[str, Any]) -> None:
            one, two = self.dice.sample(data["instances"][:3], 2)  # the last one waits for a stranger's port
            one["port"], two["port"] = two["port"], one["port"]

        self.daemon.edit(swap)

    def flip(self) -> None:
        self.edit(self.dice.randrange(3), enabled=self.dice.random() < 0.6)

    def flap(self) -> None:
        """Off and on again, faster than anything can follow."""
        chosen = self.dice.randrange(3)
        for number in range(20):
            self.edit(chosen, enabled=number % 2 == 1)
            time.sleep(self.dice.choice([0.0, 0.02, 0.1, 0.15]))

    def break_file(self) -> None:
        path = self.daemon.root / "instances.json"
        good = path.read_text()
        path.write_text(good[: self.dice.randrange(len(good))])
        time.sleep(self.dice.uniform(0, 0.6))
        path.write_text(good)

    def verb(self) -> None:
        self.call("POST", f"/api/comfyui/instances/{self.dice.randrange(3)}/{self.dice.choice(VERBS)}?wait=0")

    def override(self) -> None:
        number = self.dice.randrange(3)
        if self.dice.random() < 0.4:
            self.call("DELETE", f"/api/comfyui/overrides/{number}")
        elif self.dice.random() < 0.5:
            self.call("PUT", f"/api/comfyui/overrides/{number}", {"fields": {"extra_args": "--normalvram"}})
        else:
            self.call("PUT", f"/api/comfyui/overrides/{number}", {"want": self.dice.choice(["up", "up", "down"])})

    # accidents
    def kill_instance(self) -> None:
        """Only a pid whose identity was just read: it may end by itself at any time."""
        if ours := [one for one in self.sampler.ours() if one.pid == one.session]:
            victim = self.dice.choice(ours)
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(victim.pid)
                if victim in self.sampler.ours():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)

    def kill_daemon(self) -> None:
        self._kill()
        time.sleep(self.dice.choice([0, 0, 0.5]))
        self._boot()

    def stop_daemon(self) -> None:
        self.daemon.signal(self.dice.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT]))
        if self.dice.random() < 0.3:
            time.sleep(self.dice.uniform(0, 0.5))
            self.daemon.signal(signal.SIGTERM)
        if self.daemon.wait(30) != 0:
            self.story.wrong.append(f"SIGTERM gave exit {self.daemon.process and self.daemon.process.returncode}")
        if left := self.sampler.ours():
            self.story.wrong.append(f"left behind by SIGTERM: {left}")
        self._boot()

    def kill_stopping_daemon(self) -> None:
        self.daemon.signal(signal.SIGTERM)
        time.sleep(self.dice.uniform(0, 1.0))
        self._kill()
        self._boot()

    def _kill(self) -> None:
        self.daemon.kill()
        self.story.counts["kills"] += 1

    def upgrade_daemon(self) -> None:
        begun = self.daemon.output.count("comfyd starts")
        self.daemon.signal(signal.SIGUSR2)
        self.daemon.until(lambda: self.daemon.output.count("comfyd starts") > begun, 20, "upgraded in place")
        self.daemon.until(self.daemon._answers, 20, "answers after the upgrade")
        self.story.counts["upgrades"] += 1

    def _boot(self) -> None:
        before = self.ground.leaders()
        self.daemon.start(wait=False)
        if self.dice.random() < 0.25:
            time.sleep(self.dice.uniform(0, 0.8))  # killed while it boots
            self._kill()
            self.daemon.start(wait=False)
        self.daemon.until(self.daemon._answers, 20, "the API answers")
        if lost := self.ground.unaccounted():
            self.story.wrong.append(f"not accounted for after a boot: {lost}")
        after = self.ground.leaders()
        self.story.counts["adoptions"] += sum(after.get(key) == one for key, one in before.items())

    def step(self) -> None:
        chosen = self.dice.choices([one for one, _ in STEPS], [weight for _, weight in STEPS])[0]
        self.ground.tell(chosen)
        getattr(self, chosen)()
        time.sleep(self.dice.choice([0, 0.02, 0.1, 0.5, 1.0]))

    def calm_down(self) -> None:
        """All accidents over: everything enabled, nothing overridden, nothing held back by old crashes."""
        self.call("DELETE", "/api/comfyui/overrides")
        for number in range(3):
            self.edit(number, enabled=True)
            self.call("POST", f"/api/comfyui/instances/{number}/restart?wait=0")


VERBS = ["start", "start", "stop", "restart"]
STEPS = [
    ("change_args", 4), ("swap_ports", 2), ("flip", 4), ("flap", 2), ("break_file", 2), ("verb", 6), ("override", 4),
    ("kill_instance", 3), ("kill_daemon", 3), ("stop_daemon", 1), ("kill_stopping_daemon", 1), ("upgrade_daemon", 1),
]  # fmt: skip
