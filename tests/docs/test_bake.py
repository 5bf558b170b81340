"""docker-bake.hcl: what it resolves to, and that the checker sees every way to break it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CHECKER = CHECKOUT / "scripts/dev/check_bake.py"
COMM = ["cu124-py311", "cu124-py312", "cu128-py311", "cu128-py312"]
CUDA_12_4 = {
    "TORCH_VERSION": "2.6.0+cu124",
    "XFORMERS_VERSION": "0.0.29.post3",
    "INDEX_URL": "https://download.pytorch.org/whl/cu124",
}
CUDA_12_8 = {
    "TORCH_VERSION": "2.7.0+cu128",
    "XFORMERS_VERSION": "0.0.30",
    "INDEX_URL": "https://download.pytorch.org/whl/cu128",
}


def check(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, CHECKER, folder, *words], capture_output=True, text=True, env={**kept, **environ}, check=False
    )


def resolved(**environ: str) -> Any:
    done = check(CHECKOUT, "--print", **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_groups_and_targets_are_those_that_users_know() -> None:
    bake = resolved()
    assert bake["group"] == {
        "default": ["cu128-py312"],
        "comm": COMM,
        "facefusion": ["facefusion-cu124-py312", "facefusion-cu128-py312"],
        "aua-us": ["aua-us-cu124-py312", "aua-us-cu128-py312"],
        "aua-sp": ["aua-sp-cu124-py312", "aua-sp-cu128-py312"],
        "all": list(bake["target"]),
    }
    assert len(bake["target"]) == 10


@pytest.mark.parametrize(
    ("target", "workflow", "base", "torch"),
    [
        ("cu124-py311", "comm", "python3.11-cuda12.4.1-torch2.6.0", CUDA_12_4),
        ("cu128-py311", "comm", "python3.11-cuda12.8.1-torch2.7.0", CUDA_12_8),
        ("cu128-py312", "comm", "python3.12-cuda12.8.1-torch2.7.0", CUDA_12_8),
        ("facefusion-cu124-py312", "facefusion", "python3.12-cuda12.4.1-torch2.6.0", CUDA_12_4),
        ("aua-us-cu128-py312", "aua-us", "python3.12-cuda12.8.1-torch2.7.0", CUDA_12_8),
        ("aua-sp-cu124-py312", "aua-sp", "python3.12-cuda12.4.1-torch2.6.0", CUDA_12_4),
    ],
)
def test_a_target_resolves_to_its_versions(target: str, workflow: str, base: str, torch: dict[str, str]) -> None:
    found = resolved()["target"][target]
    assert found["args"] == {
        "BASE_IMAGE": f"ashleykza/runpod-base:2.4.2-{base}",
        "WORKFLOW": workflow,
        "RELEASE": "v0.3.40",
        "COMFYUI_VERSION": "v0.3.40",
        "APP_MANAGER_VERSION": "1.2.2",
        "CIVITAI_DOWNLOADER_VERSION": "2.1.0",
        "FACEFUSION_VERSION": "3.0.0",
        "CACHE_MODELS": "false",
        "VENV_PATH": "/ComfyUI/venv",
        **torch,
    }
    assert found["platforms"] == ["linux/amd64"]


def test_tags_follow_the_variables_of_the_environment() -> None:
    targets = resolved(REGISTRY="ghcr.io", REGISTRY_USER="myuser", RELEASE="my-release")["target"]
    tags = {name: target["tags"] for name, target in targets.items()}
    assert tags == {
        name: [f"ghcr.io/myuser/comfyui:{name}-my-release", f"ghcr.io/myuser/comfyui:{name}-latest"]
        + (["ghcr.io/myuser/comfyui:latest"] if name == "cu128-py312" else [])
        for name in targets
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "docker-bake.hcl"):
        shutil.copy(CHECKOUT / name, tmp_path)
    return tmp_path


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{old!r} is not in {file.name}"
    file.write_text(text.replace(old, new, 1))


BROKEN_BAKE = {
    "an argument that the Dockerfile does not declare": ("RELEASE   ", "RELAESE   ", "Dockerfile has no ARG RELAESE"),
    "a typing error in a variable": ("${BASE_IMAGE_VERSION}", "${BASE_IMAG_VERSION}", "no variable BASE_IMAG_VERSION"),
    "a parent that does not exist": ('inherits = ["_cu124"]', 'inherits = ["_cu125"]', "_cu125, inherited by"),
    "a parent that is its own child": ('inherits = ["_image"]', 'inherits = ["_cu124"]', "inherits itself"),
    "a group of a target that does not exist": ('["comm", "face', '["com", "face', "names com, which is no target"),
    "a group that holds itself": ('targets = ["cu128-py312"]', 'targets = ["default"]', "group default holds itself"),
    "a group that lacks one": (
        '["cu124-py311", "cu124-py312", "cu128-py311", "cu128-py312"]', '["cu124-py312", "cu128-py311", "cu128-py312"]',
        "group comm is",
    ),
    "a target under another name": ('target "cu124-py311"', 'target "cu124-py3.11"', "cu124-py311, which is no target"),
    "a target written twice": ('target "cu124-py311"', 'target "cu124-py312"', "target cu124-py312 is written twice"),
    "a tag of another target": ("}:cu124-py311-${", "}:cu124-py312-${", "target cu124-py311: tags are"),
    "no tag latest": ('    "${REGISTRY}/${REGISTRY_USER}/${APP}:latest",\n', "", "target cu128-py312: tags are"),
    "another Dockerfile": ('"Dockerfile"', '"Dockerfile.gpu"', "Dockerfile.gpu is missing"),
    "another platform": ('"linux/amd64"', '"linux/arm64"', "platforms are ['linux/arm64']"),
    "the wrong torch": ('"2.6.0+cu124"', '"2.7.0+cu124"', "TORCH_VERSION is 2.7.0+cu124, not 2.6.0+cu124"),
    "the wrong base": ("-python3.11-cuda12.8.1", "-python3.12-cuda12.8.1", "target cu128-py311: BASE_IMAGE is"),
    "the wrong workflow": ('"aua-us" }', '"aua-sp" }', "WORKFLOW is aua-sp, not aua-us"),
    "another default": ('"2.4.2"', '"2.4.3"', "variable BASE_IMAGE_VERSION is '2.4.3', not '2.4.2'"),
    "a value to edit below": ('variable "RELEASE"', 'variable "X" {}\nvariable "RELEASE"', "do not stand on top"),
    "a function": ('"linux/amd64"', 'upper("linux/amd64")', "not understood"),
    "an attribute nobody checks": ("  platforms ", '  matrix = {}\n  platforms ', "not understood: matrix"),
    "no HCL": ('group "all" {', 'group "all" ', "no HCL"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), BROKEN_BAKE.values(), ids=BROKEN_BAKE.keys())
def test_the_checker_catches(copy: Path, old: str, new: str, said: str) -> None:
    replaced(copy / "docker-bake.hcl", old, new)
    done = check(copy)
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checker_catches_a_dockerfile_that_drifted(copy: Path) -> None:
    assert check(copy).returncode == 0
    replaced(copy / "Dockerfile", "ARG TORCH_VERSION=2.7.0+cu128", "ARG TORCH_VERSION=2.8.0+cu128")
    replaced(copy / "Dockerfile", "ARG RELEASE", "# RELEASE")
    done = check(copy)
    assert done.returncode == 1
    assert "ARG TORCH_VERSION=2.8.0+cu128, but the default target has 2.7.0+cu128" in done.stderr
    assert "Dockerfile has no ARG RELEASE" in done.stderr


def test_the_checker_says_which_build_scripts_are_not_there_yet(copy: Path) -> None:
    assert "no build/comm here" in check(copy).stderr
    assert "no build/comm here" not in check(CHECKOUT).stderr


@pytest.mark.parametrize(
    "argument", ["BASE_IMAGE", "COMFYUI_REPOSITORY", "COMFYUI_COMMIT", "CACHE_MODELS", "VENV_PATH"]
)
def test_the_dockerfile_takes(argument: str) -> None:
    lines = (CHECKOUT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith(f"ARG {argument}=")] != []
