"""The workflow queue: `task submit|list|show|cancel|retry|dead|delete`."""

import json
import re
import sys
import time
from argparse import ArgumentTypeError
from typing import Any

from comfyd.cli.text import age, clean, print_json, print_table, say
from comfyd.cli.verb import FAILED, SECONDS, TIMED_OUT, USAGE, Failure, Session, argument, between, verb
from comfyd.client.shapes import Task, TaskPage

TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")
FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0

TASK = argument("task_id", metavar="TASK")


def priority_of(text: str) -> str | int:
    """An argparse type: what the daemon takes as a priority."""
    if text.lower() in ("vip", "normal", "guest"):
        return text.lower()
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise ArgumentTypeError(f"{text!r} is not vip, normal, guest or an integer (higher runs earlier)")
    return int(text)


@verb(
    "task submit",
    argument("workflow", metavar="WORKFLOW", help="a name that an environment lists"),
    argument("--file", "-f", metavar="WF.JSON", help="graph in API format, - = stdin; else the stored one is used"),
    argument("--wait", "-w", action="store_true", help="wait for the end"),
    argument("--output", "-o", metavar="DIR", help="save its files there (waits)"),
    argument("--priority", type=priority_of, metavar="vip|normal|guest|N"),
    argument("--run-after", metavar="TIME", help="not before then (RFC 3339)"),
    argument("--deadline", metavar="TIME", help="fails if it has not been started by then"),
    argument("--timeout", type=SECONDS, metavar="S", help="longest wait"),
)
def submit(
    session: Session,
    workflow: str,
    file: str | None,
    wait: bool,
    output: str | None,
    priority: str | int | None,
    timeout: float | None,
    **times: str | None,
) -> int:
    """Queue a task and print its id. With --wait: exit code 1 if it failed, 4 if the time ran out (it goes on)."""
    graph, fields = _read_body(file)
    asked: dict[str, Any] = {"priority": priority, **times, **fields}
    made = session.client.create_task(workflow, graph, **asked)
    task_id = made["taskId"]
    if not (wait or output):
        print_json({"task": made.get("task"), "outputs": []}) if session.as_json else print(task_id)
        return 0
    say(f"task {task_id}")
    task = _follow(session, task_id, timeout)
    saved = _save(session, task, output) if output and task["status"] == "COMPLETED" else []
    if session.as_json:
        print_json({"task": task, "outputs": saved})
    else:
        _tell(task, saved)
    if task["status"] not in TERMINAL:
        return TIMED_OUT
    return 0 if task["status"] == "COMPLETED" else FAILED


def _read_body(file: str | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(graph, other fields) of a file: a graph as ComfyUI exports it in API format, or a body of the create call."""
    if file is None:
        return None, {}
    try:
        if file == "-":
            raw = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as opened:
                raw = opened.read()
        body = json.loads(raw)
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}", USAGE, "unreadable") from None
    except (ValueError, RecursionError) as error:
        raise Failure(f"{file} is not JSON: {error}", USAGE, "invalid_json") from None
    if not isinstance(body, dict):
        raise Failure(f"{file} holds no JSON object", USAGE, "invalid_json")
    if isinstance(body.get("nodes"), list):
        message = f"{file} is in ComfyUI's editor format: export it with Workflow > Export (API)"
        raise Failure(message, USAGE, "editor_format")
    if isinstance(body.get("wf_json"), dict):
        return body["wf_json"], {k: v for k, v in body.items() if k != "wf_json"}
    return (None, body) if "params" in body else (body, {})


def _follow(session: Session, task_id: str, timeout: float | None) -> Task:
    """The task once it is at its end, or as it stands when the time is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    told, pause = "", FIRST_POLL_S
    while True:
        task = session.client.task(task_id)
        news = _progress(task)
        if news != told:
            told, pause = news, FIRST_POLL_S
            say(clean(news))
        if task["status"] in TERMINAL or (deadline is not None and time.monotonic() >= deadline):
            return task
        left = LAST_POLL_S if deadline is None else max(0.0, deadline - time.monotonic())
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_POLL_S)


def _progress(task: Task) -> str:
    progress = task.get("progress") or {}
    value, most = progress.get("value"), progress.get("max")
    done = f" {value}/{most}" if value is not None and most else ""
    where = f" on {task.get('instance')}" if task.get("instance") else ""
    return f"{task['status']}{where}{done}"


def output_files(task: Task) -> list[tuple[int, str | None]]:
    """(number, name if known) of every output file that can be fetched."""
    data = task.get("output_data") or {}
    files = data.get("files") or data.get("urls") or []
    return [(n, _name(one)) for n, one in enumerate(files)]


def _name(one: Any) -> str | None:
    if isinstance(one, dict):
        return next((str(one[k]) for k in ("filename", "name") if one.get(k)), None)
    return None


def _save(session: Session, task: Task, folder: str) -> list[str]:
    client, task_id = session.client, task["taskId"]
    try:
        return [client.download_output(task_id, n, folder, name) for n, name in output_files(task)]
    except OSError as error:
        message = (
            f"cannot write to {folder}: {error.strerror}; task {task_id} is COMPLETED, its files stay with the daemon"
        )
        raise Failure(message, code="unwritable") from None


def _tell(task: Task, saved: list[str]) -> None:
    for path in saved:
        print(path)
    if not saved:
        print(task["taskId"])
    if task["status"] not in TERMINAL:
        say(f"still {task['status']}; it goes on, see `comfyd task show {task['taskId']}`")
    elif task["status"] != "COMPLETED":
        say(clean(task.get("task_message") or task["status"]))


@verb(
    "task list",
    argument("--status", metavar="STATE"),
    argument("--workflow", metavar="NAME"),
    argument("--limit", type=between(int, 1, 1000), default=50, metavar="N"),
    argument("--cursor", help="from the page before"),
)
def list_(session: Session, status: str | None, workflow: str | None, limit: int, cursor: str | None) -> None:
    """List tasks, newest first."""
    page = session.client.tasks(
        status=status.upper() if status else None, workflow_name=workflow, limit=limit, cursor=cursor
    )
    _print_page(session, page)


@verb(
    "task dead",
    argument("--workflow", metavar="NAME"),
    argument("--limit", type=between(int, 1, 1000), default=50, metavar="N"),
    argument("--cursor", help="from the page before"),
)
def dead(session: Session, workflow: str | None, limit: int, cursor: str | None) -> None:
    """List the tasks that were given up; they stay until `task retry` or `task delete`."""
    _print_page(session, session.client.dead_tasks(workflow_name=workflow, limit=limit, cursor=cursor))


def _print_page(session: Session, page: TaskPage) -> None:
    if session.as_json:
        print_json(page)
        return
    columns = ("task", "workflow", "state", "instance", "tries", "created", "took", "message")
    rows = [
        (
            t["taskId"], t.get("workflow_name"), t["status"], t.get("instance"), t.get("attempts"),
            t.get("created_at"), age(t.get("started_at"), t.get("finished_at")), t.get("task_message"),
        )
        for t in page.get("tasks", [])
    ]  # fmt: skip
    print_table(columns, rows)
    say(f"{page.get('queue_length', 0)} waiting")
    if page.get("next_cursor"):
        say(f"more: --cursor {page['next_cursor']}")


@verb("task show", TASK)
def show(session: Session, task_id: str) -> None:
    """Show one task."""
    _print_task(session, session.client.task(task_id))


@verb("task cancel", TASK)
def cancel(session: Session, task_id: str) -> None:
    """Cancel a task that has not ended."""
    _print_task(session, session.client.cancel(task_id))


@verb("task retry", TASK)
def retry(session: Session, task_id: str) -> None:
    """Queue a failed or cancelled task again."""
    _print_task(session, session.client.retry(task_id))


@verb("task delete", TASK)
def delete(session: Session, task_id: str) -> None:
    """Take a task that has ended away, with its result files."""
    answer = session.client.delete_task(task_id)
    print_json(answer) if session.as_json else say(clean(answer.get("message")))


def _print_task(session: Session, task: Task) -> None:
    if session.as_json:
        print_json({"task": task})
        return
    for name, value in task.items():
        if value not in (None, "", {}, []) and name != "params":
            print(
                f"{name}: {clean(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value)}"
            )
