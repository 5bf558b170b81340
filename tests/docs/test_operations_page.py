"""docs/operations.md names every condition that the code can show, every state and every exit code of the program."""

import ast
import re
from collections.abc import Iterator

import pytest

from comfyd.api.health import STATES
from comfyd.cli import main as program
from comfyd.core.exits import exit_reason
from comfyd.doctor.examine import CHECKS
from comfyd.model.observed import ExitInfo
from tests.docs.markdown import CHECKOUT

PAGE = (CHECKOUT / "docs/operations.md").read_text()
CONDITIONS = PAGE.split("\n## Conditions\n")[1].split("\n## ")[0]
DOCTOR = PAGE.split("\n## Doctor\n")[1].split("\n## ")[0]
RAISED = {"InstallFailed": "install_failed", "NodeFailed": "node_failed", "ModelFailed": "model_failed"}
"""Exceptions whose reason becomes that of a condition of this type."""
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", CONDITIONS, re.MULTILINE))


def calls(*names: str) -> Iterator[ast.Call]:
    """Every call of one of these names in the source."""
    for path in CHECKOUT.glob("comfyd/**/*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                yield call


def texts(node: ast.AST) -> list[str]:
    """The texts that an expression may become, as far as they stand there."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def conditions() -> Iterator[tuple[str, str | None]]:
    """(type, reason) of every Condition that is made; reason None if it is not a literal."""
    for call in calls("Condition"):
        kind, reason, *_ = call.args
        for word in texts(kind):
            yield word, reason.value if isinstance(reason, ast.Constant) else None


def raised() -> Iterator[tuple[str, str]]:
    """(type, reason) of conditions that begin as an exception."""
    for call in calls(*RAISED):
        kind = RAISED[call.func.id]  # type: ignore[attr-defined]
        named = [k.value for k in call.keywords if k.arg == "reason"]
        for node in named or call.args[:1]:
            if isinstance(node, ast.Constant):
                yield kind, str(node.value)
    tree = ast.parse((CHECKOUT / "comfyd/environments/verify.py").read_text())
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "_failed" and isinstance(call.args[0], ast.Constant):
            yield "install_failed", str(call.args[0].value)


FOUND = sorted(set(conditions()), key=str)


def test_conditions_were_found() -> None:
    assert len(FOUND) > 20


@pytest.mark.parametrize(("kind", "reason"), FOUND)
def test_every_condition_is_documented(kind: str, reason: str | None) -> None:
    assert kind in ROWS
    assert reason is None or f"`{reason}`" in ROWS[kind]


@pytest.mark.parametrize(("kind", "reason"), sorted(set(raised())))
def test_every_reason_of_a_failed_install_node_or_model_is_documented(kind: str, reason: str) -> None:
    assert f"`{reason}`" in ROWS[kind]


@pytest.mark.parametrize(
    "last",
    [ExitInfo(at=0, wall=0), ExitInfo(at=0, wall=0, reason="oom"), ExitInfo(at=0, wall=0, errno="ENOENT")],
    ids=exit_reason,
)
def test_every_reason_of_an_exit_is_documented(last: ExitInfo) -> None:
    assert f"`{exit_reason(last)}`" in ROWS["backoff"]


def test_no_condition_is_made_without_a_hint() -> None:
    """The fourth argument: a text that is not empty, or an expression that is checked where it is made."""
    bare = [ast.unparse(call) for call in calls("Condition") if len(call.args) < 4 or not _may_say(call.args[3])]
    assert bare == []


def _may_say(hint: ast.expr) -> bool:
    return not isinstance(hint, ast.Constant) or bool(hint.value)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_every_check_of_doctor_is_documented(name: str) -> None:
    assert f"| `{name}` |" in DOCTOR


def test_no_documented_check_is_made_up() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", DOCTOR, re.MULTILINE)) == set(CHECKS)


def test_no_documented_condition_is_made_up() -> None:
    assert set(ROWS) == {kind for kind, _ in FOUND}


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_documented(state: str) -> None:
    assert f"| `{state}` |" in PAGE


def test_the_exit_codes_are_those_that_the_program_lists() -> None:
    shown = re.findall(r"(\d+) [a-z]", program.ABOUT.split("exit codes:")[1])
    told = re.findall(r"(\d+) [a-z]", PAGE.split("## Exit codes")[1].split("## ")[0].replace("\n", " "))
    assert told == shown
