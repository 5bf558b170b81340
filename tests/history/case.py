"""A history with its end, indexed by task: what the rules of the checker look into. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.history.final import Event, Final, Row
from tests.history.record import Record

ENDS = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
HELD = frozenset({"FETCHED", "PROCESSING"})
REPORTING = frozenset({"finish", "update"})
Entry = Mapping[str, Any]
"""A line of the stand-in's journal: event (accepted, executed), pid, prompt_id, task."""


@dataclass(frozen=True)
class Violation:
    """rule: id of the invariant or of the row of the fault catalogue. evidence: records, rows, events, log entries."""

    rule: str
    task: str | None
    what: str
    evidence: tuple[Any, ...] = ()

    def __str__(self) -> str:
        shown = [e.as_line() if isinstance(e, Record) else str(e) for e in self.evidence]
        return "\n    ".join([f"{self.rule} {self.task or ''}: {self.what}", *shown])


@dataclass(frozen=True)
class Grant:
    """A lease that a client was given."""

    record: Record
    task: str
    token: str
    prompt: str | None
    params: Any

    @property
    def lease_s(self) -> float:
        return float(self.record.arg["lease_s"])


class Case:
    def __init__(self, records: Sequence[Record], final: Final, log: Sequence[Entry]) -> None:
        self.records = records
        self.final = final
        self.log = log
        self.rows: dict[str, Row] = {row.task_id: row for row in final.rows}
        self.of_task: dict[str, list[Record]] = defaultdict(list)
        self.grants: dict[str, list[Grant]] = defaultdict(list)
        self.events: dict[str, list[Event]] = defaultdict(list)
        for record in records:
            if record.key is not None and record.op not in ("create", "signals"):
                self.of_task[record.key].append(record)
            for given in record.answer.get("grants", ()):
                grant = Grant(record, given["task"], given["token"], given.get("prompt"), given.get("params"))
                self.grants[grant.task].append(grant)
        for event in final.events:
            if event.type == "task":
                self.events[event.subject].append(event)

    @cached_property
    def creates(self) -> list[Record]:
        return [record for record in self.records if record.op == "create"]

    @cached_property
    def tasks(self) -> list[str]:
        """Every task that anything speaks of."""
        made = (record.answer["task"] for record in self.creates if record.done)
        return list(dict.fromkeys([*self.rows, *made, *self.of_task, *self.grants, *self.events]))

    def reports(self, task: str) -> list[Record]:
        return [record for record in self.of_task[task] if record.op in REPORTING]

    def retries(self, task: str, after: float, before: float) -> Iterator[Record]:
        """Retries by hand that may have happened between two instants."""
        for record in self.of_task[task]:
            if record.op == "retry" and record.may_have_happened and record.t_invoke < before and record.end > after:
                yield record

    def reopened(self, task: str, after: float, before: float) -> bool:
        return any(True for _ in self.retries(task, after, before))

    def granted(self, task: str) -> int | None:
        """How often it was leased out, by the event log. A lease taken up again after it ran out counts as well.

        Of a shared queue by the row, which forgets at a retry by hand: then None.
        """
        if self.final.shared:
            row = self.rows.get(task)
            return None if row is None or self.reopened(task, -math.inf, math.inf) else row.grants
        return sum(event.data["from"] == "PENDING" and event.data["to"] in HELD for event in self.events[task])

    def all_seen(self, task: str) -> bool:
        """Whether no answer to a grant of it was lost."""
        if any(record.op == "recover" and record.result is None for record in self.records):
            return False
        return self.granted(task) == sum(grant.record.op != "recover" for grant in self.grants[task])
