"""What clients saw, as JSON lines: one file and one writer per client.

`{"t_invoke", "t_return", "client", "op", "key", "arg", "result" | "timeout": true}`. Times are seconds of one clock,
the one that leases are measured by. A timeout is indeterminate: what was asked may have happened at any time after
t_invoke, or never. `result` with `error` (a code) says that nothing happened. The operations:

| op | key | arg | result |
|---|---|---|---|
| create | Idempotency-Key or null | workflow, params, callback? | task, made |
| claim, fetch, recover | null | lease_s, caller? | grants: [{task, token, prompt?, params?}] |
| renew | task | token, lease_s | |
| finish, update | task | token or null, caller?, state, body, lease_s? | state?, output? |
| cancel, retry, get | task | | state, output? |
| callback | task | | state (as the receiver was told) |
| signals | name of a stranger | | count (of signals it got) |
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One call. result None: no answer came."""

    t_invoke: float
    t_return: float
    client: str
    op: str
    key: str | None = None
    arg: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Answered, and not by a refusal."""
        return self.result is not None and "error" not in self.result

    @property
    def error(self) -> str | None:
        return None if self.result is None else self.result.get("error")

    @property
    def may_have_happened(self) -> bool:
        return self.error is None

    @property
    def end(self) -> float:
        """The latest instant at which it may have happened."""
        return math.inf if self.result is None else self.t_return

    @property
    def answer(self) -> dict[str, Any]:
        return self.result or {}

    def as_line(self) -> str:
        shown = {name: getattr(self, name) for name in ("t_invoke", "t_return", "client", "op", "key", "arg")}
        return json.dumps({**shown, **({"timeout": True} if self.result is None else {"result": self.result})})


class Recorder:
    """The one writer of one client's file. clock: seconds."""

    def __init__(self, folder: Path, client: str, clock: Callable[[], float]) -> None:
        self.client = client
        self.clock = clock
        self._file = folder / f"{client}.jsonl"

    def invoke(self, op: str, key: str | None = None, **arg: Any) -> "Call":
        return Call(self, op, key, arg, self.clock())

    def write(self, record: Record) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(record.as_line() + "\n")


@dataclass(slots=True)
class Call:
    """A call under way; ends by `answer` or `timeout`."""

    recorder: Recorder
    op: str
    key: str | None
    arg: dict[str, Any]
    t_invoke: float

    def answer(self, **result: Any) -> None:
        self._end(result)

    def timeout(self) -> None:
        self._end(None)

    def _end(self, result: dict[str, Any] | None) -> None:
        writer = self.recorder
        writer.write(Record(self.t_invoke, writer.clock(), writer.client, self.op, self.key, self.arg, result))


def parse(lines: Iterable[str]) -> tuple[Record, ...]:
    """Records in the order of their calls. Raises ValueError for a line that is none."""
    records = []
    for line in lines:
        fields = json.loads(line)
        if fields.pop("timeout", False):
            fields["result"] = None
        elif "result" not in fields:
            raise ValueError(f"neither a result nor a timeout: {line!r}")
        records.append(Record(**fields))
    return tuple(sorted(records, key=lambda record: record.t_invoke))


def read(folder: Path) -> tuple[Record, ...]:
    """The histories of all clients, merged."""
    files = sorted(folder.glob("*.jsonl"))
    return parse(line for file in files for line in file.read_text(encoding="utf-8").splitlines())
