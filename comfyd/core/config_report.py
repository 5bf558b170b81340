"""Collects everything wrong in one file, with its place, and turns pydantic's findings into the same shape.

Owns: how an issue is written down. Must not: know any field.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from comfyd.core.source import Document, child, quoted
from comfyd.model.base import Frozen
from comfyd.model.desired import ConfigIssue

MAX_ISSUES = 200
Model = TypeVar("Model", bound=Frozen)
Severity = Literal["error", "blocked", "warning"]
Place = tuple[str, int, int]
_IGNORED = ("_", "$")


class Report:
    """The issues of one file. `fatal` is the severity that an error gets there: `error` refuses the whole revision,
    `blocked` only what the file describes."""

    def __init__(self, file: str, document: Document | None = None, fatal: Severity = "error") -> None:
        self.file = file
        self.document = document
        self.fatal = fatal
        self.issues: list[ConfigIssue] = []
        self._left_out: Counter[Severity] = Counter()
        self._wrong: set[str] = set()
        self._seen: set[tuple[str, str, str]] = set()
        for flaw in document.flaws if document else ():
            self._mark(flaw.path)
            self._append(self.fatal, flaw.code, flaw.message, (flaw.path, flaw.line, flaw.column), flaw.hint)

    @property
    def failed(self) -> bool:
        return bool(self._wrong)

    @property
    def count(self) -> int:
        """How many there are, those left out included."""
        return len(self.issues) + self._left_out.total()

    @property
    def sorted(self) -> tuple[ConfigIssue, ...]:
        """All issues in the order of the text; at most MAX_ISSUES, then one that counts the rest."""
        listed = sorted(self.issues, key=lambda i: (i.file != self.file, i.line, i.column))
        return (*listed, *(self._rest() if self._left_out else ()))

    def _rest(self) -> tuple[ConfigIssue, ...]:
        worst = self.fatal if self._left_out[self.fatal] else "warning"
        text = f"{self._left_out.total()} more issues are not listed; correct these first"
        return (ConfigIssue(severity=worst, code="too_many", message=text, file=self.file),)

    def wrong(self, pointer: str) -> bool:
        """Whether an error stands at `pointer` or below it."""
        return pointer in self._wrong

    def error(self, code: str, message: str, pointer: str = "", hint: str = "", *, key: bool = False) -> None:
        """key: the place is that of the key, not of its value."""
        self._mark(pointer)
        self._append(self.fatal, code, message, self._place(pointer, key), hint)

    def blocked(self, code: str, message: str, pointer: str = "", hint: str = "") -> None:
        self._append("blocked", code, message, self._place(pointer), hint)

    def warning(self, code: str, message: str, pointer: str = "", hint: str = "") -> None:
        self._append("warning", code, message, self._place(pointer), hint)

    def include(self, other: "Report") -> None:
        """Take over what another source (a variable) contributes to the same decision."""
        self.issues += other.issues
        if other.failed:
            self._mark("")

    def _mark(self, pointer: str) -> None:
        while pointer not in self._wrong:
            self._wrong.add(pointer)
            pointer = pointer.rpartition("/")[0]

    def _place(self, pointer: str, key: bool = False) -> Place:
        if self.document is None:
            return pointer, 0, 0
        line, column = self.document.at_key(pointer) if key else self.document.at(pointer)
        return pointer, line, column

    def _append(self, severity: Severity, code: str, message: str, place: Place, hint: str) -> None:
        path, line, column = place
        if (code, path, message) in self._seen:
            return
        if len(self.issues) >= MAX_ISSUES:
            self._left_out[severity] += 1
            return
        self._seen.add((code, path, message))
        found = ConfigIssue(severity=severity, code=code, message=one_line(message), file=self.file, hint=hint)
        self.issues.append(found.model_copy(update={"path": one_line(path), "line": line, "column": column}))


def one_line(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(names)


def members(raw: Any, known: Iterable[str], report: Report, pointer: str, what: str = "this") -> dict[str, Any] | None:
    """The known members of an object; keys that begin with `_` or `$` are skipped, others are errors.

    None (and an error) if it is no object.
    """
    if not isinstance(raw, dict):
        report.error("bad_value", f"{what} must be an object, not {quoted(raw)}", pointer)
        return None
    names = frozenset(known)
    for key in raw:
        if key not in names and not key.startswith(_IGNORED):
            hint = did_you_mean(key, names)
            report.error("unknown_key", f"unknown key {quoted(key)}", child(pointer, key), hint, key=True)
    return {key: value for key, value in raw.items() if key in names}


def validated(model: type[Model], fields: Mapping[str, Any], report: Report, pointer: str) -> Model | None:
    """`fields` as a `model`; what is wrong is reported below `pointer` unless an error is known there already.

    Strict as JSON is: no number from a text, no 1 from true. None if anything at or below `pointer` is wrong.
    """
    try:
        made = model.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            _report(finding, fields, report, pointer)
        return None
    return None if report.wrong(pointer) else made


def _report(finding: ErrorDetails, fields: Mapping[str, Any], report: Report, pointer: str) -> None:
    place, inner, name = pointer, fields, ""
    missing = finding["type"] == "missing"
    for part in finding["loc"]:
        found = _member(inner, part)
        if found is None and not (missing and part == finding["loc"][-1]):
            break
        place, name = child(place, part), f"{name}[{part}]" if isinstance(part, int) else f"{name}.{part}".strip(".")
        inner = found[0] if found else inner
    if report.wrong(place):
        return
    if missing:
        report.error("missing_key", f"{name} is missing", place)
    elif finding["type"] == "extra_forbidden":
        report.error("unknown_key", f"unknown key {quoted(name)}", place, key=True)
    else:
        text = re.sub(r"^(Input|String) should", "must", finding["msg"])
        report.error("bad_value", f"{name or 'this'} {text}, not {quoted(inner)}", place)


def _member(value: Any, part: str | int) -> tuple[Any] | None:
    if isinstance(value, dict) and part in value:
        return (value[part],)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return (value[part],)
    return None
