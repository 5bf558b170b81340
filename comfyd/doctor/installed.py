"""Checks of what is installed: environments, their Python, the shared models."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anyio

from comfyd.core.config_environments import is_service
from comfyd.core.findings import environment_findings, size
from comfyd.doctor.scene import Scene
from comfyd.environments.variables import scrubbed, with_venv
from comfyd.host.command import Command, run_captured
from comfyd.host.disk import folder_size
from comfyd.model.finding import Finding
from comfyd.model.observed import ObservedEnvironment

LIMIT_S = 30.0
_PACKAGES = """
import importlib.metadata as metadata, importlib.util, json, platform
names = {}
for one in metadata.distributions():
    try:
        names.setdefault(one.metadata["Name"].lower(), one.version)
    except Exception:
        pass
print(json.dumps({"python": platform.python_version(), "packages": len(names), "torch": names.get("torch"),
                  "pip": importlib.util.find_spec("pip") is not None}))
"""


def environments(scene: Scene) -> Iterable[Finding]:
    """Whether each one is installed, and what is wrong with it."""
    wanted = {one.name for one in scene.wished.environments if one.wanted}
    for one in scene.status.get("environments", []):
        yield from environment_findings(one, wanted=one.get("name") in wanted)
    if not scene.status.get("environments"):
        message = f"{scene.paths.environments_dir} declares none"
        hint = "make config/environments/<env>/config.json and build/<env>/install.sh"
        yield Finding(name="environment", level="warning", message=message, hint=hint)


def venvs(scene: Scene) -> Iterable[Finding]:
    """Whether the Python of each installed environment runs, and how many packages it has."""
    services = {one.name for one in scene.desired.environments if is_service(one)}
    trees = [one for one in scene.observed.environments if one.installed and one.tree and one.name not in services]
    found: dict[str, Finding] = {}

    async def ask(one: ObservedEnvironment) -> None:
        found[one.name] = await _venv(scene, one)

    async def ask_all() -> None:
        async with anyio.create_task_group() as group:
            for one in trees:
                group.start_soon(ask, one)

    anyio.run(ask_all)
    yield from (found[name] for name in sorted(found))


async def _venv(scene: Scene, one: ObservedEnvironment) -> Finding:
    tree = Path(one.tree or "")
    broken = partial(Finding, name="venv", subject=one.name, level="error")
    hint = f"`comfyd env install {one.name}` builds a new generation; its instances go on meanwhile"
    env = with_venv(scrubbed({}, tree), tree)
    argv = (str(tree / "venv/bin/python"), "-c", _PACKAGES)
    try:
        ended = await run_captured(Command(argv, tree, env, LIMIT_S))
    except OSError as error:
        return broken(message=f"venv/bin/python cannot be run: {error.strerror}", hint=hint)
    text = ended.output.decode("utf-8", "replace")
    if not ended.ok:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return broken(message=f"venv/bin/python {ended.text()}: {last[:200]}", hint=hint)
    try:
        told = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        return broken(message=f"venv/bin/python answers nonsense: {text[:200]}", hint=hint)
    torch = f", torch {told['torch']}" if told["torch"] else ""
    message = f"Python {told['python']}, {told['packages']} packages{torch}"
    if not told["pip"]:
        message += ", no pip"
    return Finding(name="venv", subject=one.name, level="ok", message=message)


def models(scene: Scene) -> Iterable[Finding]:
    """What lies in the shared folder, and whether each environment sees it."""
    shared = scene.paths.models_dir
    if shared.is_dir():
        found = folder_size(shared)
        parts = sum(1 for _ in shared.rglob("*.part")) if found.whole else 0
        more = "" if found.whole else " or more"
        unfinished = f", {parts} unfinished downloads" if parts else ""
        message = f"{shared}: {found.files}{more} files, {size(found.bytes)}{unfinished}"
        yield Finding(name="models", level="ok", message=message)
    else:
        message = f"{shared} does not exist yet; the first install makes it"
        yield Finding(name="models", level="ok", message=message)
    services = {one.name for one in scene.desired.environments if is_service(one)}
    for one in scene.observed.environments:
        if one.installed and one.tree and one.name not in services:
            yield _sees(Path(one.tree), shared, one.name)


def _sees(tree: Path, shared: Path, name: str) -> Finding:
    link = tree / "models"
    if link.is_dir() and shared.is_dir() and link.samefile(shared):
        return Finding(name="models", subject=name, level="ok", message=f"{link} leads to {shared}")
    if (tree / "extra_model_paths.yaml").is_file() and link.is_dir():
        return Finding(name="models", subject=name, level="ok", message="it reads extra_model_paths.yaml")
    if link.is_symlink() and not link.exists():
        message = f"{link} leads to {link.readlink()}, which is not there"
        hint = f"bring {shared} back, or point the link there"
        return Finding(name="models", subject=name, level="error", message=message, hint=hint)
    what = "is a folder of its own" if link.is_dir() else "is missing"
    message = f"{link} {what}, so shared models are not seen there"
    hint = f"move its files to {shared} and replace it by a link to it"
    return Finding(name="models", subject=name, level="warning", message=message, hint=hint)
