"""Starting, stopping and reading instances: `start`, `stop`, `restart`, `logs`."""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from comfyd.cli.match import address, matching, one
from comfyd.cli.text import clean, print_json, say
from comfyd.cli.verb import FAILED, SECONDS, TIMED_OUT, Session, argument, between, verb
from comfyd.client import ApiError, Client, ClientError
from comfyd.client.shapes import Instance

MAX_THREADS = 64
UNFINISHED = ("installing", "starting", "stopping")
RUNNING = frozenset({"starting", "ready", "unready", "draining", "stopping"})

WORDS = argument("words", nargs="+", metavar="NAME|ID|all|PORT|A-B", help="matched as id, then name, then port")
WAIT = argument(
    "--wait", type=SECONDS, default=30.0, metavar="S", help="seconds to wait for the end (30); 0 = only ask"
)
Result = dict[str, Any]


@verb("start", WORDS, WAIT)
def start(session: Session, words: list[str], wait: float) -> int:
    """Start instances and wait until they are ready. `all` passes over those that the file disables."""
    return _act(session, "start", words, wait)


@verb("stop", WORDS, WAIT)
def stop(session: Session, words: list[str], wait: float) -> int:
    """Stop instances and keep them stopped until they are started again or the override is cleared."""
    return _act(session, "stop", words, wait)


@verb("restart", WORDS, WAIT)
def restart(session: Session, words: list[str], wait: float) -> int:
    """Restart instances: stop them, then start them with what the files say now."""
    return _act(session, "restart", words, wait)


def _act(session: Session, verb: str, words: Sequence[str], wait: float) -> int:
    instances = session.client.status().get("instances", [])
    chosen = _chosen(instances, verb, words)
    if verb == "stop" and "all" in words:
        results = _stop_all(session.client, chosen, wait)
    elif len(chosen) == 1:
        results = [_one(session.client, verb, chosen[0], wait)]
    else:
        results = _in_parallel(chosen, lambda i: _alone(session, verb, i, wait))
    for result in results:
        result["timed_out"] = wait > 0 and result["outcome"] in UNFINISHED
    if session.as_json:
        print_json({"action": verb, "results": results})
    else:
        _tell(results, verb)
    if any(r["outcome"] == "failed" for r in results):
        return FAILED
    return TIMED_OUT if any(r["timed_out"] for r in results) else 0


def _chosen(instances: Sequence[Instance], verb: str, words: Sequence[str]) -> list[Instance]:
    found: dict[str, Instance] = {}
    for word in words:
        for instance in matching(instances, word):
            if word != "all" or _in_all(instance, verb):
                found.setdefault(str(instance.get("key") or instance.get("name")), instance)
    return list(found.values())


def _in_all(instance: Instance, verb: str) -> bool:
    """`all` means ComfyUI instances, never sidecars."""
    if not str(instance.get("key")).startswith("comfyui/"):
        return False
    if verb == "start":
        return not any(c.get("reason") == "disabled" for c in instance.get("conditions", []))
    return instance.get("state") in RUNNING or instance.get("desired") == "up"


def _alone(session: Session, verb: str, instance: Instance, wait: float) -> Result:
    with session.new_client() as client:
        return _one(client, verb, instance, wait)


def _one(client: Client, verb: str, instance: Instance, wait: float) -> Result:
    """Ask for one instance. outcome: started | restarted | stopped | installing | starting | stopping | failed."""
    call: Callable[..., Any] = {"start": client.start, "stop": client.stop, "restart": client.restart}[verb]
    try:
        answer = call(address(instance), wait=wait)
    except ApiError as error:
        return _result(instance, "failed", error.message)
    after: Any = answer.get("instance") or {}
    message = str(answer.get("message", ""))
    return _result({**instance, **after}, _outcome(verb, message), message)


def _outcome(verb: str, message: str) -> str:
    """The contract's `Instance 'n' is installing|starting|stopping` says that the wait ended first."""
    late = next((word for word in UNFINISHED if message.endswith(f" is {word}")), None)
    return late or {"start": "started", "restart": "restarted", "stop": "stopped"}[verb]


def _result(instance: Any, outcome: str, message: str) -> Result:
    kept = {k: instance.get(k) for k in ("id", "name", "port", "pid", "state")}
    return {**kept, "outcome": outcome, "message": message}


def _stop_all(client: Client, chosen: Sequence[Instance], wait: float) -> list[Result]:
    """One call stops everything; what is still alive afterwards was not done in time."""
    try:
        client.stop_all(wait=wait)
    except ApiError as error:
        if error.code != "stop_failed":
            raise
    now = {i.get("key"): i for i in client.status().get("instances", [])}
    after: list[Any] = [{**i, **now.get(i.get("key"), {"state": "stopped", "pid": None})} for i in chosen]
    return [_result(i, "stopping" if i["state"] in RUNNING else "stopped", "") for i in after]


def _in_parallel(chosen: Sequence[Instance], ask: Callable[[Instance], Result]) -> list[Result]:
    """Ask for all at once, so that none waits for the start of another. Daemon threads: Ctrl-C ends at once."""
    results: list[Result | ClientError | None] = [None] * len(chosen)
    waiting = list(enumerate(chosen))[::-1]

    def run() -> None:
        while waiting:
            try:
                n, instance = waiting.pop()
            except IndexError:
                return
            try:
                results[n] = ask(instance)
            except ClientError as error:
                results[n] = error

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(MAX_THREADS, len(chosen)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = next((r for r in results if isinstance(r, ClientError)), None)
    if broken is not None:
        raise broken
    return [r for r in results if isinstance(r, dict)]


def _tell(results: Sequence[Result], verb: str) -> None:
    if not results:
        say(f"nothing to {verb}")
    for r in results:
        text = clean(f"{r['name']}: {r['outcome']}")
        if r["outcome"] == "failed":
            say(f"{text}: {clean(r['message'])}")
        elif r["outcome"] in UNFINISHED:
            say(f"{text}; it goes on, see `comfyd status`")
        else:
            print(text + (clean(f" (port {r['port']}, pid {r['pid']})") if verb != "stop" else ""))


@verb(
    "logs",
    argument("name", metavar="NAME|ID|PORT"),
    argument("--follow", "-f", action="store_true", help="go on as it grows"),
    argument("--tail", "-n", type=between(int, 0, 10000), metavar="N", help="lines from its end (200)"),
)
def logs(session: Session, name: str, follow: bool, tail: int | None) -> None:
    """Print the log of an instance. With --json each line is one JSON object {"instance", "line"}."""
    instance = one(session.client.status().get("instances", []), name)
    with session.client.logs(address(instance), tail=tail, follow=follow) as blocks:
        if session.as_json:
            for line in _lines(blocks):
                print_json({"instance": instance.get("name"), "line": line})
                sys.stdout.flush()
            return
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()


def _lines(blocks: Any) -> Any:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")
