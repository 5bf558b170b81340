"""docs/reliability.md names tests that there are, and a test for every fault of supervision."""

import ast
import re

from tests.docs.markdown import CHECKOUT

PAGE = (CHECKOUT / "docs/reliability.md").read_text()
ROWS = dict(re.findall(r"^\| ([CPAV]\d+) \| [^|]+ \| (.+) \|$", PAGE, re.MULTILINE))
FAULTS = (
    [f"C{n}" for n in range(1, 9)]
    + [f"P{n}" for n in range(1, 15)]
    + [f"A{n}" for n in (1, 2, 3, 4, 5, 6, 11)]
    + [f"V{n}" for n in (1, 2, 3, 4, 5, 12)]
)


def test_every_fault_of_supervision_has_its_tests() -> None:
    assert set(FAULTS) <= ROWS.keys()
    assert all(re.search(r"`[\w/]+\.py::test_\w+`", tests) for tests in ROWS.values())


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE))
    assert len(named) >= len(FAULTS)
    missing = [f"{file}::{test}" for file, test in sorted(named) if test not in _tests(file)]
    assert missing == []


def _tests(file: str) -> set[str]:
    path = CHECKOUT / "tests" / file
    if not path.exists():
        return set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}
