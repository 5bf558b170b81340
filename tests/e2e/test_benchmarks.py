"""Every benchmark runs and says for each of its goals whether it holds. Figures are not judged here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROWS = {
    "A": {"A1", "A2", "A3", "A4", "A5", "A6", "A7"}, "B": {"B1", "B2", "B3"},
    "C": {"C1", "C2", "C3", "C4", "C5", "C6", "C7"}, "D": {"D1", "D2", "D3", "D4"}, "G": {"G1"},
    "H": {"H1", "H2", "H3"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("group", sorted(ROWS))
def test_a_quick_run_prints_every_goal(group: str) -> None:
    if group == "A" and not (shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("the child of this benchmark is a C program")
    argv = [sys.executable, "-m", "benchmarks", group, "--quick", "--systems", "comfyd,floor,s6,floor (aiohttp)"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    goals = [line for line in done.stdout.splitlines() if line.endswith(("HOLDS", "MISSED", "UNKNOWN"))]
    assert {line.split()[0] for line in goals} == ROWS[group]
    assert not [line for line in goals if line.startswith("B3") and not line.endswith("HOLDS")]


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "Z9"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such benchmark" in done.stderr
