"""Rules on leases and what their holders may say: V8, and rows Q2, Q3, Q12."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from tests.history.case import ENDS, Case, Grant, Violation
from tests.history.record import Record

Interval = tuple[float, float]
ROUNDED_S = 0.005
"""A shared queue stores instants in whole milliseconds of a clock that may be slewed."""


def tokens(case: Case) -> Iterator[Violation]:
    """No token is granted twice: a counter may be wound back, and then an old holder passes for the new one."""
    by_token: dict[str, list[Grant]] = defaultdict(list)
    for grants in case.grants.values():
        for grant in grants:
            by_token[grant.token].append(grant)
    for token, grants in by_token.items():
        if len(grants) > 1:
            evidence = tuple(grant.record for grant in grants)
            yield Violation("V8", grants[0].task, f"token {token} was granted {len(grants)} times", evidence)


def overlaps(case: Case) -> Iterator[Violation]:
    """At no instant two leases that certainly hold."""
    for task, grants in case.grants.items():
        held = [(grant, _certainly_held(case, grant)) for grant in grants]
        for (one, ours), (two, theirs) in combinations(held, 2):
            both = [(max(a[0], b[0]), min(a[1], b[1])) for a in ours for b in theirs]
            if one.token != two.token and any(since < until for since, until in both):
                yield Violation("V8", task, "two unexpired leases", (one.record, two.record))


def _certainly_held(case: Case, grant: Grant) -> list[Interval]:
    """From when the grant or a renewal was answered until it can have run out or been given up."""
    record = grant.record
    less = ROUNDED_S if case.final.shared else 0.0
    spans = [(record.t_return, record.t_invoke + grant.lease_s - less)]
    until = math.inf
    for other in case.of_task[grant.task]:
        if not other.may_have_happened or other.end < record.t_invoke:
            continue
        if _gives_up(other, grant.token):
            until = min(until, other.t_invoke)
        elif other.done and "lease_s" in other.arg and other.arg.get("token") == grant.token:
            spans.append((other.t_return, other.t_invoke + other.arg["lease_s"] - less))
    for other in case.records:
        if other.op == "recover" and other is not record and other.end > record.t_invoke and _takes(other, grant.task):
            until = min(until, other.t_invoke)
    return [(a, min(b, until)) for a, b in spans if a < min(b, until)]


def _gives_up(record: Record, token: str) -> bool:
    if record.op == "cancel":  # a running task keeps its lease until its holder has stopped it
        return record.answer.get("state") != "PROCESSING"
    if record.op in ("finish", "update") and record.arg.get("token") in (token, None):
        return record.arg["state"] == "PENDING" or record.arg["state"] in ENDS
    return False


def _takes(recover: Record, task: str) -> bool:
    return recover.result is None or any(given["task"] == task for given in recover.answer.get("grants", ()))


def acceptance(case: Case) -> Iterator[Violation]:
    """A report is taken from the last holder only; the same report again counts as the first one."""
    for task in case.tasks:
        reports = case.reports(task)
        for report in (one for one in reports if one.done):
            token = report.arg.get("token")
            own = [grant for grant in case.grants[task] if grant.token == token]
            if token is not None and not own:
                yield Violation("V8", task, f"token {token} was never granted for it", (report,))
                continue
            later = _displacing(case, report, own)
            if later is not None and not _is_repeated(report, later, reports):
                yield Violation(
                    "V8", task, "a report of a displaced holder was taken", (*_of(own), later.record, report)
                )


def _displacing(case: Case, report: Record, own: list[Grant]) -> Grant | None:
    """A grant to somebody else that certainly lies between the holder's own and its report.

    A report without a token speaks for whatever its caller was granted last.
    """
    assert report.key is not None
    grants = case.grants[report.key]
    if not own:
        if not case.all_seen(report.key):
            return None
        own = [grant for grant in grants if grant.record.arg.get("caller") == report.arg.get("caller")]
    before = [grant for grant in own if grant.record.t_invoke < report.t_return]
    since = max((grant.record.t_return for grant in before), default=-math.inf)
    return next(
        (g for g in grants if g not in own and since < g.record.t_invoke and g.record.t_return < report.t_invoke), None
    )


def says_the_same(one: Record, two: Record) -> bool:
    """The same report of the same holder. Outside workers need not name their token."""
    ours, theirs = one.arg, two.arg
    if (ours["state"], ours["body"]) != (theirs["state"], theirs["body"]):
        return False
    if None in (ours["token"], theirs["token"]):
        return bool(ours.get("caller") == theirs.get("caller"))
    return bool(ours["token"] == theirs["token"])


def _is_repeated(report: Record, later: Grant, reports: list[Record]) -> bool:
    return any(
        says_the_same(other, report) and other.may_have_happened and other.t_invoke < later.record.t_return
        for other in reports
        if other is not report
    )


def _of(grants: list[Grant]) -> tuple[Record, ...]:
    return tuple(grant.record for grant in grants)


def repetition(case: Case) -> Iterator[Violation]:
    """After an accepted result the same report is answered in the same way, any other one is refused (Q2)."""
    for task in case.tasks:
        reports = case.reports(task)
        for first in (one for one in reports if one.done and one.arg["state"] in ENDS):
            for second in reports:
                if second.t_invoke <= first.t_return or second.result is None:
                    continue
                if case.reopened(task, first.t_invoke, second.t_return):
                    continue
                same = says_the_same(first, second)
                if same and (second.error is not None or second.result != first.result):
                    yield Violation("Q2", task, "the same report got another answer", (first, second))
                if not same and second.done:
                    yield Violation("Q2", task, "another report was taken after the result", (first, second))


def lateness(case: Case) -> Iterator[Violation]:
    """A result is refused only if somebody else may have got the task, or if it may have ended otherwise (Q3)."""
    for task, grants in case.grants.items():
        row = case.rows.get(task)
        if row is None or row.attempts >= row.max_attempts or case.reopened(task, -math.inf, math.inf):
            continue
        if not case.all_seen(task):
            continue
        for report in case.reports(task):
            own = [grant for grant in grants if grant.token == report.arg.get("token")]
            if report.error == "stale_lease" and own and not _may_be_displaced(case, report, own[0]):
                yield Violation("Q3", task, "a result was refused that nobody had displaced", (own[0].record, report))


def _may_be_displaced(case: Case, report: Record, own: Grant) -> bool:
    assert report.key is not None
    since, before = own.record.t_invoke, report.t_return
    if any(g.token != own.token and g.record.t_return > since for g in case.grants[report.key]):
        return True
    return any(
        other is not report and other.op in ("finish", "update", "cancel") and other.may_have_happened
        and other.t_invoke < before and other.end > since
        for other in case.of_task[report.key]
    )  # fmt: skip


def cancels(case: Case) -> Iterator[Violation]:
    """Once a cancel was acknowledged nobody is given the task any more (Q12)."""
    for task, grants in case.grants.items():
        for cancel in (one for one in case.of_task[task] if one.op == "cancel" and one.done):
            for grant in grants:
                late = grant.record.op != "recover" and grant.record.t_invoke > cancel.t_return
                if late and not case.reopened(task, cancel.t_invoke, grant.record.t_return):
                    yield Violation("Q12", task, "granted after its cancel", (cancel, grant.record))
