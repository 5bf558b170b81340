"""The checker on histories written by hand: each rule objects to what it is for, and only to that."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.history import record
from tests.history.checker import check
from tests.history.final import Event, Final, Row
from tests.history.record import Record, Recorder

T = "task_1"
PARAMS = {"mark": 1}
BODY: dict[str, Any] = {"output": {"urls": ["a"]}}
OTHER: dict[str, Any] = {"output": {"urls": ["b"]}}


def call(at: float, op: str, key: str | None = None, took: float = 0.5, timeout: bool = False, **fields: Any) -> Record:
    """fields: `result` and what is asked."""
    result = fields.pop("result", {})
    return Record(at, at + took, "me", op, key, fields, None if timeout else result)


def create(at: float = 0, key: str | None = None, task: str = T, made: bool = True, **more: Any) -> Record:
    more.setdefault("result", {"task": task, "made": made})
    return call(at, "create", key, **{"params": PARAMS, **more})


def grant(
    at: float, token: str = "a", op: str = "claim", lease_s: float = 60, params: Any = None, **who: Any
) -> Record:
    given = {"task": T, "token": token, "prompt": f"p-{token}", "params": params or PARAMS}
    return call(at, op, lease_s=lease_s, result={"grants": [given]}, **who)


def report(at: float, token: str | None = "a", state: str = "COMPLETED", **more: Any) -> Record:
    body = more.pop("body", BODY)
    answer = {"error": more.pop("error")} if "error" in more else {"state": state, **body}
    return call(at, more.pop("op", "finish"), T, token=token, state=state, body=body, result=answer, **more)


def cancel(at: float, state: str = "PROCESSING") -> Record:
    return call(at, "cancel", T, result={"state": state})


def retry(at: float, timeout: bool = False) -> Record:
    return call(at, "retry", T, timeout=timeout, result={"state": "PENDING"})


def get(at: float, state: str, **more: Any) -> Record:
    return call(at, "get", T, result={"state": state, **more})


def moves(*states: str | None) -> tuple[Event, ...]:
    pairs = zip((None, *states), states, strict=False)
    return tuple(Event(n, "task", T, {"from": a, "to": b}) for n, (a, b) in enumerate(pairs, 1))


def left(*states: str, **row: Any) -> Final:
    """The end of one task that went through these states."""
    chain = states or ("PENDING", "PROCESSING", "COMPLETED")
    done = {"output": BODY["output"]} if chain[-1] == "COMPLETED" else {}
    return Final((Row(T, chain[-1], **{"params": PARAMS, **done, **row}),), moves(*chain))


def shared(end: Final, *more: Event) -> Final:
    """The same end of a shared queue; `more` stands in the log of another node."""
    return replace(end, events=(*end.events, *(replace(event, seq=1, node="other") for event in more)), shared=True)


TWICE = ("PENDING", "PROCESSING", "PENDING", "PROCESSING", "COMPLETED")
RETRIED = ("PENDING", "PROCESSING", "FAILED", "PENDING", "PROCESSING", "COMPLETED")
FETCHED = ("PENDING", "FETCHED", "PENDING", "FETCHED", "COMPLETED")
RAN = [{"event": event, "pid": 1, "prompt_id": "p-a", "task": T} for event in ("accepted", "executed")]
KEYED = left(idempotency_key="k")
GOOD: dict[str, tuple[list[Record], Final, list[dict[str, Any]]]] = {
    "nothing": ([], Final(), []),
    "one task": ([create(), grant(1), report(2), get(3, "COMPLETED")], left(), RAN),
    "the same report twice": ([create(), grant(1), report(2), report(3)], left(), []),
    "another report is refused": ([create(), grant(1), report(2), report(3, body=OTHER,
        error="stale_lease")], left(), []),
    "the answer to the result was lost": ([create(), grant(1), call(2, "finish", T, timeout=True, token="a",
        state="COMPLETED", body=BODY)], left(), []),
    "a create without an answer that happened": ([create(timeout=True)], left("PENDING", "CANCELLED"), []),
    "a create without an answer that did not": ([create(timeout=True)], Final(), []),
    "a key used again": ([create(0, "k"), create(1, "k", made=False)], KEYED, []),
    "a key used again after a timeout": ([create(0, "k", timeout=True), create(1, "k", made=False)], KEYED, []),
    "a key used for another body": ([create(0, "k"), create(1, "k", params=2,
        result={"error": "idempotency_mismatch"})], KEYED, []),
    "leased again after expiry": ([create(), grant(1), grant(62, "b"), report(70, "b")], left(*TWICE), []),
    "leased again after being given back": ([create(), grant(1), report(2, state="PENDING", body={}), grant(3, "b"),
        report(4, "b")], left(*TWICE), []),
    "leased again while the answer of giving back is on its way": ([create(), grant(1), report(2, state="PENDING",
        body={}, took=9), grant(3, "b"), report(4, "b")], left(*TWICE), []),
    "a late result that nobody displaced": ([create(), grant(1), report(500)], left(), []),
    "a late result is refused": ([create(), grant(1), grant(62, "b"), report(63, error="stale_lease"),
        report(64, "b")], left(*TWICE), []),
    "a repeated handing back after the next grant": ([create(), grant(1), report(2, state="PENDING", body={}),
        grant(3, "b"), report(4, state="PENDING", body={}), report(5, "b")], left(*TWICE), []),
    "taken over by the next daemon": ([create(), grant(1), grant(2, "b", "recover"), report(3, "b")], left(), RAN),
    "a cancel": ([create(), grant(1), cancel(2),
        report(3, state="CANCELLED", body={})], left("PENDING", "PROCESSING", "CANCELLED"), []),
    "a cancel that came too late": ([create(), grant(1), report(2), call(3, "cancel", T,
        result={"error": "illegal_transition"})], left(), []),
    "a retry": ([create(), grant(1), report(2, state="FAILED", body={}), retry(3),
        grant(4, "b"), report(5, "b")], left(*RETRIED), []),
    "a retry without an answer": ([create(), grant(1), report(2, state="FAILED", body={}), retry(3, timeout=True),
        grant(4, "b"), report(5, "b")], left(*RETRIED), []),
    "outside workers without tokens": ([create(), grant(1, "a", "fetch", caller="x"),
        grant(62, "b", "fetch", caller="y"), report(63, None, caller="y", op="update")],
        left(*FETCHED), []),
    "the same prompt for two processes": ([create(), grant(1), report(2)], left(*TWICE), [*RAN,
        *({**one, "pid": 2} for one in RAN)]),
    "a callback": ([create(), grant(1), report(2), call(3, "callback", T, result={"state": "COMPLETED"})],
        left(callback_url="u"), []),
    "a node that died before it told": ([create(), grant(1), report(2), get(3, "COMPLETED")],
        replace(left(), events=left().events[:1], shared=True), RAN),
    "nodes that tell of one task": ([create(), grant(1), report(2, state="PENDING", body={}), grant(3, "b"),
        report(4, "b")], shared(left(*TWICE, grants=2)), []),
    "a stranger left alone": ([call(1, "signals", "decoy", result={"count": 0})], Final(), []),
}  # fmt: skip
BAD: dict[str, tuple[str, list[Record], Final, list[dict[str, Any]]]] = {
    "a lost task": ("V7", [create()], Final(), []),
    "a task that nobody asked for": ("V7", [create(result={"error": "bad_request"})], left(), []),
    "a call that made two tasks": ("V7", [create(timeout=True)], Final((left().rows[0], replace(left().rows[0],
        task_id="task_2"))), []),
    "one task for two calls": ("V7", [create(), create(1)], left(), []),
    "a key that made two tasks": ("Q10", [create(0, "k"), create(1, "k", "task_2")], KEYED, []),
    "a key that made two tasks, one answer lost": ("Q10", [create(0, "k", timeout=True), create(1, "k", "task_2")],
        KEYED, []),
    "a key taken for another body": ("Q10", [create(0, "k"), create(1, "k", made=False, params=2)], KEYED, []),
    "a key refused without reason": ("Q10", [create(0, "k"), create(1, "k", result={"error": "idempotency_mismatch"})],
        KEYED, []),
    "other parameters stored": ("Q14", [create()], left(params=2), []),
    "other parameters handed out": ("Q14", [create(), grant(1, params=2)], left(), []),
    "a task without an end": ("V6", [create()], left("PENDING"), []),
    "two ends": ("V6", [create(), grant(1), report(2), get(3, "FAILED")], left(), []),
    "an end that is undone": ("V6", [create(), get(1, "FAILED"), get(2, "PENDING")], left("PENDING", "FAILED"), []),
    "a row that is not what was acknowledged": ("V6", [create(), grant(1), report(2)], left("PENDING", "PROCESSING",
        "CANCELLED"), []),
    "leased after its end": ("V6", [create(), grant(1), report(2), grant(99, "b")], left(), []),
    "a completed task retried": ("V6", [create(), grant(1), report(2), retry(3),
        grant(99, "b"), report(100, "b")], left("PENDING", "PROCESSING", "COMPLETED", "PENDING", "PROCESSING",
        "COMPLETED"), []),
    "reopened though nobody asked": ("V6", [create()], left(*RETRIED), []),
    "a state without a trace": ("V6", [], Final(left("PENDING", "CANCELLED").rows, left().events), []),
    "two results": ("V7", [create(), grant(1), report(2), get(3, "COMPLETED", **OTHER)], left(), []),
    "two leases": ("V8", [create(), grant(1), grant(60, "b"), report(70, "b")], left(*TWICE), []),
    "two leases after a renewal": ("V8", [create(), grant(1), call(50, "renew", T, token="a", lease_s=60),
        grant(62, "b"), report(70, "b")], left(*TWICE), []),
    "two leases in spite of a cancel": ("V8", [create(), grant(1), cancel(2),
        grant(2.2, "b")], left(*TWICE), []),
    "a token granted twice": ("V8", [create(), grant(1), report(2, state="PENDING", body={}), grant(3)],
        left(*TWICE), []),
    "a token that was never granted": ("V8", [create(), grant(1), report(2, "x")], left(), []),
    "a displaced holder": ("V8", [create(), grant(1), grant(62, "b"), report(63)], left(*TWICE), []),
    "a displaced holder after a recovery": ("V8", [create(), grant(1), grant(2, "b", "recover"), report(3)],
        left(), []),
    "a displaced holder without a token": ("V8", [create(), grant(1, "a", "fetch", caller="x"), grant(62, "b", "fetch",
        caller="y"), report(63, None, caller="x", op="update")],
        left(*FETCHED), []),
    "another report after the result": ("Q2", [create(), grant(1), report(2), report(3, body=OTHER)], left(), []),
    "the same report refused": ("Q2", [create(), grant(1), report(2), report(3, error="stale_lease")], left(), []),
    "a late result refused without reason": ("Q3", [create(), grant(1), report(500, error="stale_lease")],
        left("PENDING", "PROCESSING", "CANCELLED"), []),
    "a prompt posted twice": ("V9", [create(), grant(1), report(2)], left(), [*RAN, RAN[0]]),
    "a prompt run twice": ("V9", [create(), grant(1), report(2)], left(), [*RAN, RAN[1]]),
    "more runs than grants": ("V9", [create(), grant(1), report(2)], left(), [*RAN, {**RAN[1], "prompt_id": "p"}]),
    "more runs than leases of a shared queue": ("V9", [create(), grant(1), report(2)], shared(left()),
        [*RAN, {**RAN[1], "prompt_id": "p"}]),
    "two nodes completed it": ("V6", [create()], shared(left(), left().events[2]), []),
    "completed, says a node": ("V6", [create()], shared(left("PENDING", "CANCELLED"), left().events[2]), []),
    "moved after its end, says a node": ("V6", [create()], shared(left(), Event(1, "task", T, {"from": "COMPLETED",
        "to": "PENDING"})), []),
    "reopened though nobody asked a node": ("V6", [create()], shared(left(*RETRIED)), []),
    "a node moved what is not there": ("V7", [], replace(shared(left()), rows=()), []),
    "a gap in the events of a node": ("V14", [], Final((), (Event(1, "config", ""), Event(3, "config", "")),
        shared=True), []),
    "a gap in the events": ("V14", [], Final((), (Event(1, "config", ""), Event(3, "config", ""))), []),
    "a missing move": ("V14", [create()], Final(left().rows, (moves("PENDING")[0], *(replace(e, seq=2) for e in
        moves("PENDING", "PROCESSING", "COMPLETED")[2:]))), []),
    "an untold beginning": ("V14", [create()], Final(left().rows, tuple(replace(e, seq=e.seq - 1) for e in
        left().events[1:])), []),
    "a damaged database": ("V10", [], Final(integrity="row 3 missing from index task_queue"), []),
    "leased after its cancel": ("Q12", [create(), grant(1), cancel(2),
        grant(62, "b")], left(*TWICE), []),
    "a callback that never came": ("Q11", [create(), grant(1), report(2)], left(callback_url="u"), []),
    "a callback that told another end": ("V6", [create(), grant(1), report(2), call(3, "callback", T,
        result={"state": "FAILED"})], left(callback_url="u"), []),
    "a signal for a stranger": ("V3", [call(1, "signals", "decoy", result={"count": 1})], Final(), []),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_explained(name: str) -> None:
    assert [str(violation) for violation in check(*GOOD[name])] == []


@pytest.mark.parametrize("name", BAD)
def test_what_cannot(name: str) -> None:
    rule, *case = BAD[name]
    found = check(*case)  # type: ignore[arg-type]
    assert rule in {violation.rule for violation in found}, "\n".join(map(str, found))
    assert all(violation.evidence and violation.rule in str(violation) for violation in found if rule != "V10")


def test_records_are_what_was_written(tmp_path: Path) -> None:
    ticks = iter(range(100))
    one, two = (Recorder(tmp_path, client, lambda: next(ticks)) for client in ("one", "two"))
    early, late = one.invoke("create", "k", params={"a": [1]}), two.invoke("claim", lease_s=60)
    late.answer(grants=[])
    early.timeout()
    assert record.read(tmp_path) == (
        Record(0, 3, "one", "create", "k", {"params": {"a": [1]}}, None),
        Record(1, 2, "two", "claim", None, {"lease_s": 60}, {"grants": []}),
    )
    first, second = record.read(tmp_path)
    assert (first.end, first.may_have_happened, first.done) == (math.inf, True, False)
    assert (second.end, second.may_have_happened, second.done) == (2, True, True)


def test_a_line_that_is_no_record_is_refused() -> None:
    line = '{"t_invoke": 1, "t_return": 2, "client": "c", "op": "get", "key": "t", "arg": {}}'
    with pytest.raises(ValueError, match="neither a result nor a timeout"):
        record.parse([line])
