"""The nine steps of an install, one small function each, in order.

Owns: what each step does with a Build. Must not: decide what a failure means (install.py does).
"""

import re
import shutil
from functools import partial
from pathlib import Path

import anyio.to_thread

from comfyd.environments.build import Build
from comfyd.environments.failure import InstallFailed
from comfyd.environments.links import link_shared, make_model_folders
from comfyd.environments.log import log_size, tail_lines
from comfyd.environments.models import ModelFetcher
from comfyd.environments.nodes import (
    NodeBuild,
    NodeFailed,
    carry_over,
    install_nodes,
    install_requirements,
    pip_install,
)
from comfyd.environments.places import ModelFailed, place_of
from comfyd.environments.scripts import command_for, copy_folder, find_script, rewrite_folder
from comfyd.environments.tree import current
from comfyd.environments.variables import scrubbed, with_venv
from comfyd.environments.verify import verify
from comfyd.failpoint import failpoint
from comfyd.host.command import Command, run_logged
from comfyd.host.download import RESERVE_BYTES
from comfyd.model.base import Condition
from comfyd.model.desired import ENVIRONMENT_NAME

LAST_LINES = 50
FIX_SCRIPT = "fix_dependencies.sh"


async def validate(build: Build) -> None:
    """Step 1: the name, that the config is one, that there is any room."""
    if not re.match(ENVIRONMENT_NAME, build.spec.name) or "\n" in build.spec.name:
        raise InstallFailed(f"{build.spec.name!r} is not an environment name", reason="bad_name")
    if build.spec.issue is not None:
        raise InstallFailed(build.spec.issue.message, reason="invalid_config", hint=build.spec.issue.hint)
    free = (await anyio.to_thread.run_sync(shutil.disk_usage, build.paths.workspace)).free
    if free < RESERVE_BYTES:
        message = f"{build.paths.workspace} has {free} bytes left, at least {RESERVE_BYTES} have to be free"
        raise InstallFailed(message, reason="disk_full", hint="free disk space")


async def find(build: Build) -> None:
    """Step 2: build/<env>/install.sh."""
    await anyio.to_thread.run_sync(find_script, build.paths, build.spec.name)


async def copy(build: Build) -> None:
    """Step 3: a private copy of the build folder."""
    source = build.paths.build_dir / build.spec.name
    build.scratch.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    await anyio.to_thread.run_sync(copy_folder, source, build.scratch, build.paths.build_dir)
    failpoint("script_copied")


async def rewrite(build: Build) -> None:
    """Step 4: the copy installs to the new generation."""
    await anyio.to_thread.run_sync(rewrite_folder, build.scratch, build.tree)


async def run_script(build: Build) -> None:
    """Step 5: install.sh, ended as a group on stall, on the total limit and on cancellation."""
    env = scrubbed(build.environ, build.tree, skip_models=build.settings.skip_model_download)
    await _script(build, build.scratch / "install.sh", build.scratch, env)
    if not build.tree.is_dir():
        message = "install.sh ended without an error but installed nothing to /ComfyUI"
        raise InstallFailed(message, reason="no_tree", hint="let it install to /ComfyUI, written as an absolute path")


async def _script(build: Build, script: Path, cwd: Path, env: dict[str, str]) -> None:
    since = log_size(build.log)
    argv = await anyio.to_thread.run_sync(command_for, script)
    settings = build.settings
    command = Command(argv, cwd, env, settings.install_timeout_s, settings.install_stall_s, uuid=build.uuid)
    try:
        ended = await run_logged(command, build.log, build.started)
    except OSError as error:
        message = f"{script.name} cannot be run: {error.strerror}; does the program of its first line exist?"
        raise InstallFailed(message, reason="script_not_runnable") from error
    if ended.ok:
        return
    lines = await anyio.to_thread.run_sync(tail_lines, build.log, LAST_LINES, since)
    said = f": {lines[-1]}" if lines else ""
    reason = {"stalled": "script_stalled", "timed_out": "script_timed_out"}.get(ended.why, "script_failed")
    message = f"{script.name} {ended.text()}{said}"
    raise InstallFailed(message, reason=reason, hint=f"read {build.log}", last_lines=lines)


async def link_models(build: Build) -> None:
    """Step 6: models, input, output and user become links to their shared places."""
    build.shipped = await anyio.to_thread.run_sync(node_folders, build.tree)
    types = _model_folders(build)
    await anyio.to_thread.run_sync(make_model_folders, build.paths.models_dir, types)
    build.conditions += await anyio.to_thread.run_sync(link_shared, build.spec, build.paths, build.tree)


def node_folders(tree: Path) -> tuple[str, ...]:
    """Names in custom_nodes. Blocking."""
    folder = tree / "custom_nodes"
    return tuple(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ()


def _model_folders(build: Build) -> list[str]:
    folders: list[str] = []
    for model in build.spec.models:
        try:
            folders.append("/".join(place_of(model).folder))
        except ModelFailed:
            continue
    return folders


async def nodes_and_models(build: Build, fetcher: ModelFetcher) -> None:
    """Step 7: nodes (declared, then those put in by hand before), then models."""
    env = with_venv(scrubbed(build.environ, build.tree), build.tree)
    nodes = NodeBuild(build.tree, env, build.log, build.settings.install_stall_s, build.uuid)
    await install_nodes(build.spec.nodes, nodes)
    await _carry(build, nodes)
    await _requirements(build, nodes)
    build.nodes = nodes.commits
    build.conditions += nodes.conditions
    await fetch_models(build, fetcher)


async def _carry(build: Build, nodes: NodeBuild) -> None:
    before = await anyio.to_thread.run_sync(current, build.paths, build.spec.name)
    if before.tree is None or before.marker is None:
        return
    known = {*before.marker.nodes, *before.marker.shipped} - set(before.marker.carried)
    names = await anyio.to_thread.run_sync(partial(carry_over, before.tree, known, nodes))
    build.carried = tuple(names)
    for name in names:
        try:
            await install_requirements(name, nodes)
        except NodeFailed as error:
            nodes.failed(name, error.reason, str(error))
    if names:
        message = f"nodes that the config does not name were carried over from {before.tree.name}: {', '.join(names)}"
        build.conditions.append(Condition("nodes_carried", "by_hand", message, "name them in `nodes` to pin them"))


async def _requirements(build: Build, nodes: NodeBuild) -> None:
    """`requirements` of the config: Python packages for the environment itself."""
    wanted = [text for text in build.spec.requirements if not text.lstrip().startswith("-")]
    if len(wanted) < len(build.spec.requirements):
        raise InstallFailed("`requirements` holds an option instead of a package", reason="bad_requirement")
    if wanted:
        try:
            await pip_install(("--", *wanted), build.tree, nodes)
        except NodeFailed as error:
            raise InstallFailed(f"`requirements`: {error}", reason="requirements_failed") from error


async def fetch_models(build: Build, fetcher: ModelFetcher) -> None:
    """Download what is missing; failures are conditions."""
    if not build.settings.skip_model_download and build.spec.models:
        advance = partial(build.advance, "nodes_and_models")
        build.model_conditions = await fetcher.fetch_all(build.spec.models, advance)


async def fix(build: Build) -> None:
    """Step 8: fix_dependencies.sh of the config folder, in the tree, its venv first on PATH. A fresh generation has
    never seen it, so it runs once per content."""
    source = build.paths.environments_dir / build.spec.name / FIX_SCRIPT
    if not source.is_file():
        return
    folder = build.scratch.with_name(build.scratch.name + ".fix")
    folder.mkdir(mode=0o700)
    await anyio.to_thread.run_sync(shutil.copy2, source, folder / FIX_SCRIPT)
    await anyio.to_thread.run_sync(rewrite_folder, folder, build.tree)
    env = with_venv(scrubbed(build.environ, build.tree), build.tree)
    await _script(build, folder / FIX_SCRIPT, build.tree, env)


async def check(build: Build) -> None:
    """Step 9, first half: the tree can be started."""
    env = with_venv(scrubbed(build.environ, build.tree), build.tree)
    build.flags = await verify(build.spec, build.tree, env, build.uuid)
    failpoint("tree_verified")
