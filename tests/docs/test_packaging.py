"""What a clone and a wheel must hold (docs/decisions/0001)."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-c", "core.excludesFile=/dev/null", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def tracked(*under: str) -> set[str]:
    listed = git("ls-files", "-z", "--", *under)
    assert listed.returncode == 0, listed.stderr
    return {name for name in listed.stdout.split("\0") if name}


@pytest.mark.parametrize("path", ["build/comm/install.sh", "build/aua-us/lib/nodes.txt", "examples/quickstart/build/x"])
def test_git_ignores_nothing_below_a_build_folder(path: str) -> None:
    asked = git("check-ignore", "--no-index", "--verbose", path)
    assert asked.returncode == 1, f"ignored by {asked.stdout}"


def test_git_does_ignore_what_the_daemon_makes_in_the_examples() -> None:
    assert git("check-ignore", "--no-index", "examples/quickstart/workspace/.comfyd/comfyd.db").returncode == 0


def test_the_build_scripts_are_in_the_clone_and_executable() -> None:
    listed = git("ls-files", "--stage", "--", "build", "scripts", "examples", ".ci/run").stdout.splitlines()
    modes = {line.split("\t")[1]: line.split()[0] for line in listed}
    assert "build/comm/install.sh" in modes
    with_shebang = [name for name in modes if (CHECKOUT / name).read_bytes().startswith(b"#!")]
    assert {name: modes[name] for name in with_shebang} == dict.fromkeys(with_shebang, "100755")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, CHECKOUT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("comfyd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = tracked("comfyd")
    assert any(name.endswith(".sql") for name in expected)
    assert expected <= packed, sorted(expected - packed)
    outside = {name for name in packed if not name.startswith("comfyd/") and ".dist-info/" not in name}
    assert outside == set()
