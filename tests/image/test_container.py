"""The image as it runs: PID 1, an instances.json that is mounted, a stop, a power cut, and a second start."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.image.conftest import MakeContainer, write_instances
from tests.image.container import Container

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

AT_ONCE_S = 10
STOP_WINDOW_S = 25
INSTALL_S = 120
NOTICED_S = 5
MAIN = {"id": 0, "port": 3001, "name": "main"}
STUBBORN = {"id": 1, "port": 3002, "name": "stubborn", "env": {"FAKE_COMFYUI_IGNORE": "TERM,INT"}}
API = "127.0.0.1:8001"


@contextmanager
def running(container: Container) -> Iterator[Container]:
    try:
        yield container.start()
    finally:
        container.kill()


def submit(container: Container, seconds: float) -> str:
    """A task of workflow `invert` that takes so long. Returns its id."""
    image = {"width": 8, "height": 8, "batch_size": 1, "color": 255}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "slept"}},
    }
    return str(container.post("/tasks/create/invert", {"params": {"input_data": {"wf_json": graph}}})["taskId"])


def statuses(container: Container, tasks: list[str]) -> list[str]:
    return [container.get(f"/tasks/{task}")["status"] for task in tasks]


def sockets(container: Container) -> set[str]:
    """Local addresses that are listened on."""
    return {line.split()[3] for line in container.text("netstat", "-tln").splitlines() if line.startswith("tcp")}


def processes_of(namespace: str) -> list[int]:
    """Every process of this machine that lives in a pid namespace."""
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                found.append(int(entry))
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty volume."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    return write_instances(tmp_path / "instances.json")


@pytest.fixture(scope="module")
def stock(make_container: MakeContainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """`docker run IMAGE` with nothing but a volume."""
    with running(make_container(tmp_path_factory.mktemp("stock-workspace"))) as container:
        container.until(container.answers, AT_ONCE_S, "the API")
        yield container


@pytest.fixture(scope="module")
def first_install(make_container: MakeContainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the environment installed by a container that was stopped."""
    folder = tmp_path_factory.mktemp("first-install")
    with running(make_container(folder, write_instances(folder / "instances.json", MAIN))) as container:
        container.until(lambda: container.states() == {"main": "ready"}, INSTALL_S, "the first install")
        assert container.stop() == 0
    return folder


@pytest.fixture
def installed(first_install: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may fill with tasks."""
    return Path(shutil.copytree(first_install, tmp_path / "installed", symlinks=True))


def test_an_unchanged_image_runs_nothing_but_the_api(stock: Container) -> None:
    stock.until(lambda: stock.states() == {"comfyui-main": "stopped", "comfyui-backup": "stopped"})
    assert all(i["pid"] is None for i in stock.get("/api/comfyui/status")["instances"])
    assert [line.split()[0] for line in stock.commands()] == ["tini", "/opt/comfyd/bin/python3"]
    assert sockets(stock) == {API}
    assert not list(stock.volumes["/workspace"].glob("*ComfyUI*"))


def test_commands_work_by_exec(stock: Container) -> None:
    assert stock.exec("comfyd", "health").returncode == 0
    assert stock.exec("comfyd", "validate").returncode == 0
    assert "comfyui-main" in stock.exec("bash", "-c", "comfyd status").stdout.decode()
    assert stock.exec("comfyd", "health", "--url", "http://127.0.0.1:9").returncode == 69


def test_the_log_is_there_under_its_older_name_from_the_first_boot(stock: Container) -> None:
    assert '"event": "comfyd starts"' in stock.text("tail", "-n", "50", "/workspace/logs/fastapi.log")


def test_pid_1_reaps_what_an_exec_leaves_behind(stock: Container) -> None:
    def orphans() -> list[str]:
        listed = stock.text("ps", "-e", "--no-headers", "-o", "ppid,stat,args").splitlines()
        return [line for line in listed if "sleep 1.25" in line or "defunct" in line]

    stock.text("bash", "-c", "sleep 1.25 >/dev/null 2>&1 &")
    assert [line.split()[0] for line in orphans()] == ["1"]
    stock.until(lambda: orphans() == [], 10, "the orphan is reaped")


def test_a_variable_makes_the_stock_file_count(make_container: MakeContainer, workspace: Path) -> None:
    with running(make_container(workspace, DISABLE_AUTOLAUNCH="false")) as container:
        waiting = {"comfyui-main": "waiting_env", "comfyui-backup": "waiting_env"}
        container.until(lambda: container.states() == waiting, AT_ONCE_S, "both wait for their environment")
        container.until((workspace / "logs/install_comm.log").exists, 10, "the install begins")
        assert container.stop() == 0


def test_a_mounted_file_is_edited_in_place_and_an_instance_comes_and_goes(
    make_container: MakeContainer, workspace: Path, instances: Path
) -> None:
    inode = instances.stat().st_ino
    with running(make_container(workspace, instances)) as container:
        container.until(container.answers, AT_ONCE_S, "the API")
        assert container.states() == {}

        write_instances(instances, MAIN)
        container.until(lambda: container.states() == {"main": "waiting_env"}, NOTICED_S, "the install begins")
        container.until(lambda: container.states() == {"main": "ready"}, INSTALL_S, "the instance is ready")
        assert sockets(container) == {API, "0.0.0.0:3001"}
        assert container.text("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "127.0.0.1:3001/prompt") == "200"
        container.text("bash", "-c", "source /workspace/ComfyUI-comm/venv/bin/activate && pip list")

        write_instances(instances)
        container.until(lambda: container.states() == {}, NOTICED_S, "the instance is gone")
        assert [line for line in container.commands() if "main.py" in line] == []
        assert sockets(container) == {API}
        assert instances.stat().st_ino == inode
        assert container.stop() == 0


def test_sigterm_ends_everything_in_time_and_the_running_task_goes_on_after_the_next_start(
    make_container: MakeContainer, installed: Path, instances: Path
) -> None:
    write_instances(instances, MAIN, STUBBORN)
    with running(make_container(installed, instances)) as container:
        container.until(lambda: set(container.states().values()) == {"ready"}, 30, "both are ready")
        tasks = [submit(container, 60), submit(container, 60)]
        container.until(lambda: statuses(container, tasks) == ["PROCESSING"] * 2, 20, "both instances work")
        namespace = os.readlink(f"/proc/{container.pid}/ns/pid")
        assert len(processes_of(namespace)) >= 4
        began = time.monotonic()
        assert container.stop() == 0
        assert time.monotonic() - began < STOP_WINDOW_S
        assert processes_of(namespace) == []

        write_instances(instances, MAIN)
        container.start().until(container.answers, AT_ONCE_S, "the API")
        assert set(statuses(container, tasks)) <= {"PENDING", "PROCESSING"}
        container.until(lambda: "PROCESSING" in statuses(container, tasks), 30, "a task runs again")


def test_a_power_cut_loses_no_task(make_container: MakeContainer, installed: Path, instances: Path) -> None:
    write_instances(instances, MAIN)
    with running(make_container(installed, instances)) as container:
        container.until(lambda: container.states() == {"main": "ready"}, 30, "the instance is ready")
        first = submit(container, 0)
        container.until(lambda: statuses(container, [first]) == ["COMPLETED"], 20, "the first task")
        result = container.get(f"/tasks/{first}")
        tasks = [submit(container, 1) for _ in range(4)]
        container.until(lambda: "PROCESSING" in statuses(container, tasks), 20, "a task runs")
        container.kill()

        container.start().until(container.answers, AT_ONCE_S, "the API")
        assert container.get(f"/tasks/{first}") == result
        assert container.call("GET", f"/tasks/{first}/outputs/0").status == 200
        container.until(lambda: statuses(container, tasks) == ["COMPLETED"] * 4, 60, "all tasks")
        assert {container.get(f"/tasks/{task}")["attempts"] for task in tasks} == {1}
        assert container.stop() == 0
