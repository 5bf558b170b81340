"""Start time: what a verb and the daemon import before they first answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.serving import World, environment, instance, serving

HEAVY_FOR_A_VERB = {
    "pydantic", "pydantic_core", "pydantic_settings", "aiohttp", "asyncio", "anyio", "watchfiles", "sqlite3",
    "structlog", "typer", "rich", "psutil",
}  # fmt: skip
NOT_BEFORE_THE_FIRST_ANSWER = {
    "rich", "typer", "stamina", "psutil", "prometheus_client", "asyncpg", "huggingface_hub",
}  # fmt: skip

CLIENT_VERBS = [
    ["status"], ["status", "--json"], ["status", "main"],
    ["start", "main"], ["stop", "all"], ["restart", "main"], ["logs", "main"],
    ["task", "list"], ["task", "submit", "portrait"], ["task", "show", "task_0"], ["overrides", "list"],
    ["env", "list"], ["plan"], ["health"], ["reload"], ["version"], ["--help"], ["task", "--help"],
]  # fmt: skip

RUN = """
import json, sys
target = sys.argv.pop(1)
sys.argv[0] = "comfyd"
from comfyd.cli.main import main
try:
    main()
finally:
    with open(target, "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
"""


def known() -> World:
    world = World(instances=[instance(0, "main", 3001)], tasks={"task_0": {"taskId": "task_0", "status": "PENDING"}})
    world.answers = {
        "GET /health": (200, {"status": "healthy"}),
        "GET /api/comfyui/plan": (200, {"actions": [], "holds": {}}),
        "POST /api/comfyui/reload": (200, {"status": "success", "message": ""}),
    }
    return world


@pytest.mark.parametrize("verb", CLIENT_VERBS, ids=" ".join)
def test_a_verb_that_only_talks_to_the_daemon_imports_nothing_heavy(tmp_path: Path, verb: list[str]) -> None:
    target = tmp_path / "modules.json"
    with serving(known()) as seen:
        env = environment(COMFYD_URL=seen.url)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(target), *verb], env=env, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(target.read_text())) & HEAVY_FOR_A_VERB == set()


def test_the_daemon_imports_nothing_that_it_may_never_need() -> None:
    code = "import comfyd.daemon, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & NOT_BEFORE_THE_FIRST_ANSWER == set()
