"""The shell blocks of docs/, as written and in order, against a daemon on a root like the quickstart's.

A JSON block right behind a shell block is what that block prints: keys, types, and the words old clients read.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root
from tests.docs.markdown import CHECKOUT, blocks
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PAGES = ("configuration", "api", "operations")
PORTS = ("8001", "3001", "3002", "3003", "3012")
EXACT = {"status", "success", "message", "state", "code", "detail", "name", "environment", "workflow_name"}
_STEP = re.compile(r"^```sh\n(.*?)^```\n(?:\n*```json\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def page_text(page: str) -> str:
    return (CHECKOUT / f"docs/{page}.md").read_text()


@dataclass
class Reader:
    """Somebody who types what a page says: in the root's folder, COMFYD_ROOT set, comfyd on PATH."""

    daemon: Daemon
    tools: Path
    moved: dict[str, str] = field(default_factory=dict)

    def here(self, text: str) -> str:
        return re.sub(r"\b(" + "|".join(self.moved) + r")\b", lambda found: self.moved[found[0]], text)

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COMFYD_")}
        env = kept | {"COMFYD_ROOT": str(self.daemon.root), "PATH": f"{self.tools}:{os.environ['PATH']}"}
        env["CURL_HOME"] = str(self.tools)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(script)], cwd=self.daemon.root, env=env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    moved = {port: str(free_port()) for port in PORTS}
    names = ("comfyui-main", "comfyui-backup")
    instances = [{"id": n, "port": int(moved[PORTS[n + 1]]), "name": name} for n, name in enumerate(names)]
    root = make_root(tmp_path / "root", instances)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "comfyd").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m comfyd "$@"\n')
    (tools / "comfyd").chmod(0o755)
    (tools / ".curlrc").write_text('silent\nshow-error\nfail-with-body\nnoproxy = "*"\nmax-time = 60\n')
    daemon = Daemon(root, PYTHONPATH=str(CHECKOUT))
    moved["8001"] = str(daemon.port)
    try:
        daemon.start().until_ready(0, 1)
        yield Reader(daemon, tools, moved)
    finally:
        daemon.end_everything()


def differs(told: Any, real: Any, at: str = "") -> str | None:
    """Where `real` is not as the page tells; None if it is."""
    if isinstance(told, dict):
        if not isinstance(real, dict):
            return f"{at}: not an object: {real!r}"
        missing = set(told) - set(real)
        if missing:
            return f"{at}: without {sorted(missing)}"
        inner = (differs(value, real[key], f"{at}/{key}") for key, value in told.items())
        return next((one for one in inner if one), None)
    if isinstance(told, list) and told:
        if not isinstance(real, list) or not real:
            return f"{at}: not a list with entries: {real!r}"
        return differs(told[0], real[0], f"{at}/0")
    if type(told) is not type(real):
        return f"{at}: {real!r} is not like {told!r}"
    if at.rpartition("/")[2] in EXACT and told != real:
        return f"{at}: {real!r} instead of {told!r}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works_as_written(reader: Reader, page: str) -> None:
    steps = _STEP.findall(page_text(page))
    assert len(steps) >= 5
    for script, told in steps:
        ran = reader.sh(script)
        assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}\n{reader.daemon.output[-3000:]}"
        if told:
            assert differs(json.loads(reader.here(told)), json.loads(ran.stdout)) is None, script


@pytest.mark.parametrize("page", PAGES)
def test_no_block_with_commands_escapes(page: str) -> None:
    """Every block names its language, so that commands cannot hide in a block that nothing runs."""
    fences = re.findall(r"^```(\w*)$", page_text(page), re.MULTILINE)
    assert set(fences[::2]) <= {"sh", "json", "text"}
    for body in blocks(page_text(page), "text"):
        assert not re.search(r"^(curl|comfyd|docker) ", body, re.MULTILINE)


def test_the_examples_of_files_are_valid(reader: Reader) -> None:
    examples = [json.loads(body) for body in blocks(page_text("configuration"), "json")]
    files = [one for one in examples if "instances" in one]
    assert files
    for one in files:
        (reader.daemon.root / "example.json").write_text(json.dumps(one))
        ran = reader.sh("comfyd validate example.json")
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_told_answer_that_is_wrong_is_noticed() -> None:
    real = {"status": "success", "instances": [{"id": 0, "name": "a"}], "output": "x"}
    assert differs({"status": "success", "instances": [{"id": 5}]}, real) is None
    assert differs({"status": "ok"}, real)
    assert differs({"instances": [{"port": 1}]}, real)
    assert differs({"output": 1}, real)
    assert differs({"instances": [{"id": 0}]}, {"instances": []})
