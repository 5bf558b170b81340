"""docs/operations.md names every condition that the code can show, every state and every exit code of the program."""

import ast
import re
from collections.abc import Iterator

import pytest

from comfyd.api.health import STATES
from comfyd.cli import main as program
from tests.docs.markdown import CHECKOUT

PAGE = (CHECKOUT / "docs/operations.md").read_text()
CONDITIONS = PAGE.split("\n## Conditions\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", CONDITIONS, re.MULTILINE))


def conditions() -> Iterator[tuple[str, str | None]]:
    """(type, reason) of every Condition that is made; reason None if it is not a literal."""
    for path in CHECKOUT.glob("comfyd/**/*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Condition":
                kind, reason, *_ = call.args
                words = [n.value for n in ast.walk(kind) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                for word in words:
                    yield word, reason.value if isinstance(reason, ast.Constant) else None


FOUND = sorted(set(conditions()), key=str)


def test_conditions_were_found() -> None:
    assert len(FOUND) > 20


@pytest.mark.parametrize(("kind", "reason"), FOUND)
def test_every_condition_is_documented(kind: str, reason: str | None) -> None:
    assert kind in ROWS
    assert reason is None or f"`{reason}`" in ROWS[kind]


def test_no_documented_condition_is_made_up() -> None:
    assert set(ROWS) == {kind for kind, _ in FOUND}


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_documented(state: str) -> None:
    assert f"| `{state}` |" in PAGE


def test_the_exit_codes_are_those_that_the_program_lists() -> None:
    shown = re.findall(r"(\d+) [a-z]", program.ABOUT.split("exit codes:")[1])
    told = re.findall(r"(\d+) [a-z]", PAGE.split("## Exit codes")[1].split("## ")[0].replace("\n", " "))
    assert told == shown
