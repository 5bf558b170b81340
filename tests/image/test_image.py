"""The image as it is built: what lies in it, what it says about itself, what a build leaves behind."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY
from tests.image.build import ARGUMENTS, COMFYUI, VERSION, run
from tests.image.conftest import Built

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def in_image(built: Built, *argv: str) -> str:
    """A command in the unpacked image, without namespaces."""
    done = subprocess.run(["chroot", built.image.rootfs, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def test_an_init_runs_the_daemon_and_ends_it_with_sigterm(built: Built) -> None:
    config = built.image.config
    assert (config["Entrypoint"], config["Cmd"]) == (["tini", "--"], ["comfyd", "run"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "comfyd", "health"]
    assert set(config["ExposedPorts"]) == {"3001-3011/tcp", "8001/tcp"}
    assert config["WorkingDir"] == "/workspace"


def test_the_image_keeps_the_versions_it_was_built_with(built: Built) -> None:
    environ = built.image.environ
    kept = ("COMFYUI_VERSION", "COMFYUI_REPOSITORY", "TORCH_VERSION", "XFORMERS_VERSION", "INDEX_URL")
    assert {name: environ[name] for name in kept} == {name: ARGUMENTS[name] for name in kept}
    assert environ["WORKFLOW"] == "comm"
    assert "VENV_PATH" not in environ, "an environment installed at run time has its venv in its own tree"
    assert environ["TEMPLATE_VERSION"] == ARGUMENTS["RELEASE"]
    assert built.image.config["Labels"]["org.opencontainers.image.version"] == ARGUMENTS["RELEASE"]


def test_autolaunch_is_left_to_the_file_and_the_api_stays_on_loopback(built: Built) -> None:
    environ = built.image.environ
    assert "DISABLE_AUTOLAUNCH" not in environ
    assert "COMFYD_HOST" not in environ
    assert environ["COMFYD_INSTANCE_LISTEN"] == "0.0.0.0"


def test_nothing_of_the_machine_that_built_it_is_in_the_image(built: Built) -> None:
    assert not [name for name in built.image.environ if re.match(r"PIP_|UV_|SSL_|HTTPS?_PROXY|HF_|COMFYD_TOKEN", name)]
    assert (built.image.rootfs / "etc/pip.conf").read_bytes() == b""
    assert list((built.image.rootfs / "mnt/wheels").iterdir()) == []
    assert not (built.image.rootfs / "root/.cache/pip").exists()
    assert list((built.image.rootfs / "var/lib/apt/lists").iterdir()) == []
    assert list((built.image.rootfs / "workspace").iterdir()) == []
    tokens = [p for p in (".git", "tests", ".venv") if (built.image.rootfs / "usr/local/src/comfyd" / p).exists()]
    assert tokens == []


def test_comfyui_was_installed_by_the_build_script(built: Built) -> None:
    wanted = run("git", "rev-parse", f"{VERSION}^{{commit}}", cwd=built.volumes[COMFYUI])
    assert in_image(built, "git", "-C", "/ComfyUI", "rev-parse", "HEAD") == wanted
    assert in_image(built, "git", "-C", "/ComfyUI", "remote", "get-url", "origin").strip() == COMFYUI
    assert "--port" in in_image(built, "/ComfyUI/venv/bin/python", "/ComfyUI/main.py", "--help")
    installed = in_image(built, "/ComfyUI/venv/bin/pip", "list", "--format=freeze")
    assert "requests==" in installed
    assert "torch" not in installed


def test_all_build_scripts_and_environments_are_kept_for_run_time(built: Built) -> None:
    for folder in ("build", "config"):
        assert files_below(built.image.rootfs / folder) == files_below(REPOSITORY / folder)
    assert (built.image.rootfs / "build/comm/install.sh").stat().st_mode & 0o777 == 0o755


def test_the_instances_file_is_the_stock_one_to_the_byte(built: Built) -> None:
    stock = (REPOSITORY / "config/instances.stock.json").read_bytes()
    assert (built.image.rootfs / "instances.json").read_bytes() == stock


@pytest.mark.parametrize("tool", ["bash", "curl", "git", "lsof", "netstat", "ps", "tini", "python3", "comfyd"])
def test_tools_are_on_the_path_of_a_shell_that_is_no_login_shell(built: Built, tool: str) -> None:
    path = built.image.environ["PATH"]
    in_image(built, "/usr/bin/env", "-i", f"PATH={path}", "sh", "-c", f"command -v {tool}")


def test_comfyd_has_a_venv_of_its_own(built: Built) -> None:
    where = in_image(built, "/opt/comfyd/bin/python", "-c", "import comfyd; print(comfyd.__file__)")
    assert where.startswith("/opt/comfyd/lib/")
    seen = in_image(built, "/ComfyUI/venv/bin/pip", "list", "--format=freeze")
    assert "comfyd" not in seen
    assert in_image(built, "comfyd", "version").startswith("comfyd ")
