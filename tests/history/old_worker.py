"""A worker as people wrote it before there were leases: it polls, runs, and reports by the task's id alone.

It knows the two old envelopes and nothing else: no token, no heartbeat. A report that got no answer is sent again.
"""

import time
from typing import Any

from tests.history.http import Client

TASK_KEYS = {"taskId", "workflow_name", "environment", "target_port", "params", "status"}
FETCH_LEASE_S = 3.0


class OldWorker(Client):
    """enveloped: /api/comm/task/... instead of /comfyui-...-task."""

    workflows = "elsewhere"
    enveloped = False
    hasty = False

    def step(self) -> None:
        self.pause(0.05, 0.4)
        task = self.fetch()
        if task is None:
            return
        self.tell(task, "PROCESSING", started_at=int(time.time()))
        self.pause(0.0, 0.6)
        if not self.hasty and self.dice.random() < 0.15:
            return  # it crashed; its lease runs out
        if not self.hasty and self.dice.random() < 0.1:
            self.pause(FETCH_LEASE_S, FETCH_LEASE_S + 1)  # too slow
        if not self.hasty and self.dice.random() < 0.2:
            self.end(task, self.dice.choice(["FAILED", "PENDING"]))
        else:
            self.end(task, "COMPLETED")

    def end(self, task: dict[str, Any], status: str) -> None:
        output = {"urls": [f"https://files.example/{self.name}/{self.dice.random()}.png"]}
        more = {"output_data": output} if status == "COMPLETED" else {}
        for _ in range(100):
            self.tell(task, status, task_message=f"{status} at the worker", finished_at=int(time.time()), **more)
            if self.answered:
                break

    def fetch(self) -> dict[str, Any] | None:
        path = "/api/comm/task/fetch" if self.enveloped else "/comfyui-fetch-task"
        answer = self.ask(
            "fetch", None, {"lease_s": FETCH_LEASE_S, "caller": self.address},
            "GET", f"{path}?workflow_names={self.workflows}", self._granted,
        )  # fmt: skip
        task = None if answer is None else self._opened(answer)
        if task is None:
            return None
        expected = "FETCHED" if self.enveloped else "PENDING"
        if not task.keys() >= TASK_KEYS or task["status"] != expected or "wf_json" not in task["params"]["input_data"]:
            self.known.wrong.append(f"{path} gave {task}")
        return task

    def _opened(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = answer["data"] if self.enveloped else answer
        return found or None

    def _granted(self, answer: dict[str, Any]) -> dict[str, Any]:
        task = self._opened(answer)
        if task is None:
            return {"grants": []}
        return {"grants": [{"task": task["taskId"], "token": task["lease_token"], "params": task["params"]}]}

    def token(self, task: dict[str, Any]) -> str | None:
        return None

    def tell(self, task: dict[str, Any], status: str, **fields: Any) -> None:
        told = {"message": fields.get("task_message"), "output": fields.get("output_data")}
        arg = {"token": self.token(task), "caller": self.address, "state": status, "body": told}
        if status == "PROCESSING":
            arg["lease_s"] = FETCH_LEASE_S
        known = {"state": status, "output": told["output"]} if status in ("COMPLETED", "FAILED") else {}
        held = {} if arg["token"] is None else {"lease_token": arg["token"]}
        path = "/api/comm/task/update" if self.enveloped else "/comfyui-update-task"
        answer = self.ask(
            "update", task["taskId"], arg, "POST", path, lambda _: known,
            {"taskId": task["taskId"], "status": status, **held, **fields},
        )  # fmt: skip
        if answer is not None and not (answer["success"] is True and isinstance(answer["message"], str)):
            self.known.wrong.append(f"{path} answered {answer}")


class EnvelopeWorker(OldWorker):
    enveloped = True


class TokenWorker(OldWorker):
    """Not old: names its lease, takes tasks of both environments and is in no hurry to let go of a lost one."""

    workflows = "elsewhere,invert"

    def token(self, task: dict[str, Any]) -> str | None:
        return str(task["lease_token"])
