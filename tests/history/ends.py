"""Rules on tasks as a whole: V6 (one end, for good), V7 (none lost, none made up), V10, V14, and rows Q10, Q14."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.history.case import ENDS, Case, Violation
from tests.history.final import Event
from tests.history.record import Record


def soundness(case: Case) -> Iterator[Violation]:
    if case.final.integrity != "ok":
        yield Violation("V10", None, f"integrity_check says {case.final.integrity}")


def presence(case: Case) -> Iterator[Violation]:
    """Every acknowledged task exists; every task was asked for, once for each call that may have made it."""
    makers: dict[str, list[Record]] = defaultdict(list)
    for record in case.creates:
        if not record.done:
            continue
        task = record.answer["task"]
        makers[task].append(record)
        if task not in case.rows:
            yield Violation("V7", task, "acknowledged, but lost", (record,))
    for task, records in makers.items():
        made = [record for record in records if record.answer["made"]]
        if len(made) > 1:
            yield Violation("V7", task, "made by more than one call", tuple(made))
    unanswered = [record for record in case.creates if record.result is None]
    for row in case.final.rows:
        if row.task_id in makers:
            continue
        maker = next((r for r in unanswered if (r.key, r.arg["params"]) == (row.idempotency_key, row.params)), None)
        if maker is None:
            yield Violation("V7", row.task_id, "nobody asked for it", (row,))
        else:
            unanswered.remove(maker)


def keys(case: Case) -> Iterator[Violation]:
    """The same key with the same body is the same task; with another body it is refused, and only then."""
    by_key: dict[str, list[Record]] = defaultdict(list)
    for record in case.creates:
        if record.key is not None:
            by_key[record.key].append(record)
    for key, records in by_key.items():
        done = [record for record in records if record.done]
        tasks = {record.answer["task"] for record in done}
        tasks |= {row.task_id for row in case.final.rows if row.idempotency_key == key}
        if len(tasks) > 1:
            yield Violation("Q10", min(tasks), f"key {key} made {len(tasks)} tasks", tuple(done))
        if any(record.arg != done[0].arg for record in done):
            yield Violation("Q10", done[0].answer["task"], f"key {key} was taken for another body", tuple(done))
        if sum(record.answer["made"] for record in done) > 1:
            yield Violation("Q10", done[0].answer["task"], f"key {key} was new more than once", tuple(done))
        yield from _wrongly_refused(key, records)


def _wrongly_refused(key: str, records: list[Record]) -> Iterator[Violation]:
    for refused in (record for record in records if record.error == "idempotency_mismatch"):
        others = [r for r in records if r.arg != refused.arg and r.error is None and r.t_invoke < refused.t_return]
        if not others:
            yield Violation("Q10", None, f"key {key} was refused, but nobody used it for another body", (refused,))


def params(case: Case) -> Iterator[Violation]:
    """What was asked for is what is stored and handed out."""
    for record in case.creates:
        if not record.done:
            continue
        task, asked = record.answer["task"], record.arg["params"]
        row = case.rows.get(task)
        if row is not None and row.params != asked:
            yield Violation("Q14", task, "stored with other parameters", (record, row))
        for grant in case.grants[task]:
            if grant.params is not None and grant.params != asked:
                yield Violation("Q14", task, "handed out with other parameters", (record, grant))


@dataclass(frozen=True)
class Seen:
    """A task was in this state at some time between two instants."""

    since: float
    until: float
    state: str
    output: Any
    evidence: Any

    def agrees(self, other: "Seen") -> bool:
        return self.state == other.state and (None in (self.output, other.output) or self.output == other.output)


def _sightings(case: Case, task: str) -> Iterator[Seen]:
    for record in case.of_task[task]:
        if record.done and "state" in record.answer:
            since = -math.inf if record.op == "callback" else record.t_invoke  # a callback tells of the past
            yield Seen(since, record.t_return, record.answer["state"], record.answer.get("output"), record)
    for grant in case.grants[task]:
        yield Seen(grant.record.t_invoke, grant.record.t_return, "held", None, grant)
    if (row := case.rows.get(task)) is not None:
        yield Seen(math.inf, math.inf, row.state, row.output, row)


def ends(case: Case) -> Iterator[Violation]:
    """One terminal state, which never changes; after it the task is leased to nobody."""
    for task in case.tasks:
        row = case.rows.get(task)
        if row is not None and row.state not in ENDS:
            yield Violation("V6", task, f"has not ended: {row.state}", (row, *case.of_task[task]))
        seen = list(_sightings(case, task))
        for end in (one for one in seen if one.state in ENDS):
            yield from _contradictions(case, task, end, seen)


def _contradictions(case: Case, task: str, end: Seen, seen: list[Seen]) -> Iterator[Violation]:
    for other in seen:
        later = other.since > end.until
        if other is end or end.agrees(other) or not (later or other.state in ENDS):
            continue
        if other.until < end.since and other.state in ENDS:
            continue  # told when it is the other's turn
        can_reopen = not (later and end.state == "COMPLETED")
        if can_reopen and case.reopened(task, min(end.since, other.since), max(end.until, other.until)):
            continue
        rule = "V7" if end.state == other.state else "V6"
        what = f"two results for {end.state}" if rule == "V7" else f"was {end.state} and then {other.state}"
        yield Violation(rule, task, what, (end.evidence, other.evidence))


def events(case: Case) -> Iterator[Violation]:
    """Numbers without gaps, and for every task one chain of moves that leads to the state of its row."""
    for before, after in pairwise(case.final.events):
        if before.node == after.node and after.seq != before.seq + 1:
            yield Violation("V14", None, f"event {after.seq} follows {before.seq}", (before, after))
    if case.final.shared:
        for task in case.tasks:
            yield from _news(case, task, case.events[task])
        return
    whole = not case.final.events or case.final.events[0].seq == 1
    for task in case.tasks:
        chain, row = case.events[task], case.rows.get(task)
        if row is not None and chain and chain[-1].data["to"] != row.state:
            yield Violation("V6", task, f"became {row.state} without a trace", (chain[-1], row))
        if whole and row is not None and (not chain or chain[0].data["from"] is not None):
            yield Violation("V14", task, "nothing tells when it was made", (row, *chain[:1]))
        yield from _chain(case, task, chain)


def _chain(case: Case, task: str, chain: list[Event]) -> Iterator[Violation]:
    reopened = 0
    for before, after in pairwise(chain):
        if after.data["from"] != before.data["to"]:
            yield Violation("V14", task, "a move is missing", (before, after))
        if before.data["to"] in ENDS:
            reopened += 1
            if before.data["to"] == "COMPLETED" or after.data["to"] != "PENDING":
                yield Violation("V6", task, "moved after its end", (before, after))
    if reopened > len(list(case.retries(task, -math.inf, math.inf))):
        yield Violation("V6", task, "reopened more often than anybody asked for", tuple(chain))


def _news(case: Case, task: str, told: list[Event]) -> Iterator[Violation]:
    """Of a shared queue: some events may be missing and those of two nodes have no order, but none may be untrue."""
    row = case.rows.get(task)
    if told and row is None:
        yield Violation("V7", task, "moved, but is not there", tuple(told))
    done = [event for event in told if event.data["to"] == "COMPLETED"]
    if len(done) > 1:
        yield Violation("V6", task, "completed more than once", tuple(done))
    if done and row is not None and row.state != "COMPLETED":
        yield Violation("V6", task, f"was COMPLETED and is {row.state}", (*done, row))
    moved = [event for event in told if event.data["from"] in ENDS]
    if any(event.data["from"] == "COMPLETED" or event.data["to"] != "PENDING" for event in moved):
        yield Violation("V6", task, "moved after its end", tuple(moved))
    if len(moved) > len(list(case.retries(task, -math.inf, math.inf))):
        yield Violation("V6", task, "reopened more often than anybody asked for", tuple(told))


def executions(case: Case) -> Iterator[Violation]:
    """V9: a process is given a prompt once, and a task runs no more often than it was granted."""
    given = Counter((entry["event"], entry["pid"], entry["prompt_id"]) for entry in case.log)
    for (event, pid, prompt), times in given.items():
        if event in ("accepted", "executed") and times > 1:
            evidence = tuple(e for e in case.log if (e["event"], e["pid"], e["prompt_id"]) == (event, pid, prompt))
            yield Violation("V9", None, f"prompt {prompt} was {event} {times} times by process {pid}", evidence)
    runs = Counter(entry["task"] for entry in case.log if entry["event"] == "executed" and entry.get("task"))
    for task, times in runs.items():
        granted = case.granted(task)
        if granted is not None and times > granted:
            evidence = (case.rows.get(task), *case.events[task])
            yield Violation("V9", task, f"ran {times} times, was granted {granted} times", evidence)
