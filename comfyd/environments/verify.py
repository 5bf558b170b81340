"""Step 9: whether a tree can be started. Runs its own python; changes nothing in it.

Owns: what `installed` has to mean before a marker is written, and the list of options that its --help shows.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from comfyd.environments.failure import InstallFailed
from comfyd.host.command import Command, run_captured
from comfyd.model.desired import EnvironmentSpec

LIMIT_S = 300.0
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


def is_service(spec: EnvironmentSpec) -> bool:
    """Whether something else than ComfyUI runs here: then neither main.py nor a venv is required."""
    return spec.command is not None or spec.startup_script is not None


async def verify(spec: EnvironmentSpec, tree: Path, env: Mapping[str, str], uuid: str) -> frozenset[str]:
    """The options that `main.py --help` lists (none for a service). Raises InstallFailed."""
    needed = () if is_service(spec) else ("main.py", "venv/bin/activate", "venv/bin/python")
    missing = await anyio.to_thread.run_sync(_missing, tree, needed)
    if missing is not None:
        raise _failed("incomplete_tree", f"{missing} is missing; the build script has to install to /ComfyUI")
    if is_service(spec):
        return frozenset()
    python = tree / "venv" / "bin" / "python"
    await _run((str(python), "-c", "import sys"), tree, env, uuid)
    output = await _run((str(python), "main.py", "--help"), tree, env, uuid)
    flags = frozenset(_FLAG.findall(output))
    if not flags:
        raise _failed("no_options", "main.py --help lists no options, so this is no ComfyUI")
    return flags


def _missing(tree: Path, needed: tuple[str, ...]) -> str | None:
    if not tree.is_dir():
        return str(tree)
    return next((name for name in needed if not (tree / name).is_file()), None)


async def _run(argv: tuple[str, ...], tree: Path, env: Mapping[str, str], uuid: str) -> str:
    what = " ".join(("venv/bin/python", *argv[1:]))
    try:
        ended = await run_captured(Command(argv, tree, env, LIMIT_S, uuid=uuid))
    except OSError as error:
        raise _failed("not_runnable", f"{what} cannot be run: {error.strerror}") from error
    text = ended.output.decode("utf-8", "replace")
    if not ended.ok:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        raise _failed("not_runnable", f"{what} {ended.text()}" + (f": {last[:300]}" if last else ""))
    return text


def _failed(reason: str, message: str) -> InstallFailed:
    return InstallFailed(message, reason=reason, hint="read the install log and correct the build script")
