"""Clients that talk to a real daemon and record it. A call that got no answer, or one of 5xx, is indeterminate."""

import http.client
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfyd.host.clock import mono
from tests.daemon import Daemon
from tests.graphs import EXACT, invert, sleep
from tests.history.record import Recorder

Shape = Callable[[Any], dict[str, Any]]


class Known:
    """What the clients of one run share: the tasks they know of, and what no daemon should ever answer.

    up: cleared while the daemon is known to be dead; nobody calls it in vain then.
    """

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.up = threading.Event()
        self.up.set()


class Client:
    """One thread's client. address: where it calls from, by which the daemon knows who holds a lease."""

    def __init__(self, daemon: Daemon, known: Known, folder: Path, name: str, seed: int, address: str = "") -> None:
        self.daemon, self.known, self.name = daemon, known, name
        self.address = address or "127.0.0.1"
        self.dice = random.Random(seed)
        self.recorder = Recorder(folder, name, mono)

    def run(self) -> None:
        """Until the run is over. What breaks it is written down: nobody joins a thread for its error."""
        try:
            while not self.known.over.is_set():
                self.step()
        except Exception as error:
            self.known.wrong.append(f"{self.name} broke: {error!r}")

    def step(self) -> None:
        raise NotImplementedError

    def pause(self, least_s: float, most_s: float) -> None:
        self.known.over.wait(self.dice.uniform(least_s, most_s))

    def exchange(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any] | None:
        """(status, parsed body); None: no usable answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=20, source_address=(self.address, 0))
        data = None if body is None else json.dumps(body)
        given = {"Content-Type": "application/json"} if body is not None else {}
        try:
            link.request(method, path, data, {**given, **headers})
            answer = link.getresponse()
            found = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            link.close()
        if found[0] >= 500 and found[0] != 503:
            self.known.wrong.append(f"{method} {path}: {found[0]} {found[1][:300]!r}")
        return None if found[0] >= 500 else (found[0], json.loads(found[1]))

    def ask(
        self, op: str, key: str | None, arg: dict[str, Any], method: str, path: str, shape: Shape,
        body: Any = None, **headers: str,
    ) -> Any:  # fmt: skip
        """The parsed answer, or None: refused, or no answer (then `answered` is False)."""
        call = self.recorder.invoke(op, key, **arg)
        found = self.exchange(method, path, body, **headers)
        self.answered = found is not None
        if found is None:
            call.timeout()
            self.pause(0.0, 0.1)
            self.known.up.wait(60)
            return None
        status, answer = found
        if status >= 400:
            call.answer(error=answer["error"]["code"])
            return None
        call.answer(**shape(answer))
        return answer


def shown(task: dict[str, Any]) -> dict[str, Any]:
    return {"state": task["status"], "output": task["output_data"]}


class Creator(Client):
    """Half of its calls have a key; those are repeated until they are answered, and some of them beyond."""

    number = 0

    def step(self) -> None:
        self.number += 1
        mark = f"{self.name}-{self.number}"
        key = f"key-{mark}" if self.dice.random() < 0.6 else None
        graph = sleep(self.dice.uniform(0.05, 0.8), mark) if self.dice.random() < 0.3 else invert(EXACT[0], mark)
        workflow = self.dice.choice(["invert", "invert", "elsewhere"])
        made = self.create(workflow, graph, key)
        while key is not None and not self.answered and not self.known.over.is_set():
            made = self.create(workflow, graph, key)
        if made is not None and key is not None and self.dice.random() < 0.4:
            self.create(workflow, graph if self.dice.random() < 0.6 else invert(EXACT[1], mark), key)
        self.pause(0.1, 0.5)

    def create(self, workflow: str, graph: Any, key: str | None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        made = self.ask(
            "create", key, {"workflow": workflow, "params": {"input_data": {"wf_json": graph}}},
            "POST", f"/tasks/create/{workflow}",
            lambda answer: {"task": answer["taskId"], "made": answer["message"].startswith("Task created")},
            {"wf_json": graph, "max_attempts": 6}, **headers,
        )  # fmt: skip
        if made is not None and made["taskId"] not in self.known.tasks:
            self.known.tasks.append(made["taskId"])
        return made


class Operator(Client):
    """Cancels and retries what is recent."""

    def step(self) -> None:
        self.pause(0.2, 1.0)
        if self.known.tasks:
            task, verb = self.dice.choice(self.known.tasks[-5:]), self.dice.choice(["cancel", "cancel", "retry"])
            self.ask(verb, task, {}, "POST", f"/tasks/{task}/{verb}", lambda answer: shown(answer["task"]))


class Reader(Client):
    def step(self) -> None:
        self.pause(0.02, 0.2)
        if self.known.tasks:
            self.look(self.dice.choice(self.known.tasks))

    def look(self, task: str) -> None:
        self.ask("get", task, {}, "GET", f"/tasks/{task}", shown)
