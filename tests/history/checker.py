"""Judge a history: a pure function over what clients saw, what the database holds, and what ComfyUI was given.

Sound: what the rules call a violation cannot be explained by any order of the calls that overlap, nor by any fate of
those that got no answer.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.history import ends, leases
from tests.history.case import ENDS, Case, Entry, Violation
from tests.history.final import Final as Left
from tests.history.record import Record


def strangers(case: Case) -> Iterator[Violation]:
    """V3: a process that is not ours got no signal."""
    for record in case.records:
        if record.op == "signals" and record.answer.get("count"):
            yield Violation("V3", None, f"{record.key} got {record.answer['count']} signals", (record,))


def callbacks(case: Case) -> Iterator[Violation]:
    """Q11: whoever asked for a callback was told the end, at least once, and nothing else."""
    for row in case.final.rows:
        if row.callback_url is None:
            continue
        told = [record for record in case.of_task[row.task_id] if record.op == "callback"]
        if row.state in ENDS and row.state not in {record.answer.get("state") for record in told}:
            yield Violation("Q11", row.task_id, f"nobody was told that it is {row.state}", (row, *told))


RULES: Final = (
    ends.soundness, ends.presence, ends.keys, ends.params, ends.ends, ends.events, ends.executions,
    leases.tokens, leases.overlaps, leases.acceptance, leases.repetition, leases.lateness, leases.cancels,
    strangers, callbacks,
)  # fmt: skip


def check(records: Sequence[Record], final: Left, log: Sequence[Entry] = ()) -> list[Violation]:
    """records: in the order of their calls. log: the stand-in's journal. Returns what cannot be explained."""
    case = Case(records, final, log)
    return [violation for rule in RULES for violation in rule(case)]
