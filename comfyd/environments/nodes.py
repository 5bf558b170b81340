"""Step 7, custom nodes: `git` and the environment's own pip, as programs with argument lists.

Owns: which URLs, refs and names git may be given, what a failed node leaves behind (nothing) and says (a condition).
Must not: fail the install because one node fails.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.to_thread

from comfyd.environments.log import append_text, log_size, tail_lines
from comfyd.host.command import Command, run_captured, run_logged
from comfyd.model.base import Condition
from comfyd.model.desired import NodeSpec

GIT_LIMIT_S = 1800.0
PIP_LIMIT_S = 3600.0
RETRY_PAUSES_S = (2.0, 8.0)
_SAID_LINES = 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,255}\Z")
_SCP = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:[^-\s][^\s]*\Z")
_SCHEMES = frozenset({"http", "https", "ssh", "git", "file"})
_COMMIT = re.compile(r"[0-9a-f]{7,40}\Z")
_ALLOWED = ":".join(sorted(_SCHEMES))


class NodeFailed(Exception):
    """One node could not be installed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class NodeBuild:
    """What installing nodes needs. env: scrubbed, venv active. Results: name -> commit, and conditions."""

    tree: Path
    env: Mapping[str, str]
    log: Path
    stall_s: float
    uuid: str
    commits: dict[str, str] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.tree / "custom_nodes"

    def failed(self, name: str, reason: str, message: str) -> None:
        hint = f"read {self.log}; correct the entry in `nodes` or install it again"
        self.conditions.append(Condition("node_failed", reason, f"node {name}: {message}", hint))


def check_node(node: NodeSpec) -> None:
    """Raise NodeFailed for what git or the file system must not be given."""
    if not _NAME.match(node.name):
        raise NodeFailed("bad_name", f"{node.name!r} is not a folder name for a node")
    if not _allowed_url(node.url):
        schemes = ", ".join(sorted(_SCHEMES))
        raise NodeFailed("bad_url", f"{masked(node.url)} is none of {schemes}, user@host:path or an absolute path")
    if node.ref is not None and (not _REF.match(node.ref) or ".." in node.ref):
        raise NodeFailed("bad_ref", f"{node.ref!r} is not a branch, tag or commit")


def _allowed_url(url: str) -> bool:
    if any(c.isspace() or not c.isprintable() for c in url) or "::" in url.partition("/")[0]:
        return False
    scheme, colon, rest = url.partition("://")
    if colon:
        return scheme in _SCHEMES and bool(rest) and not rest.startswith("-")
    return url.startswith("/") or _SCP.match(url) is not None


def masked(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else url


async def install_nodes(nodes: tuple[NodeSpec, ...], build: NodeBuild) -> None:
    """Install every node; those that fail become conditions of `build`."""
    seen: set[str] = set()
    for node in nodes:
        try:
            check_node(node)
            if node.name.lower() in seen:
                raise NodeFailed("duplicate_name", f"{masked(node.url)} has the same folder as another node")
            seen.add(node.name.lower())
            build.commits[node.name] = await _clone(node, build)
            if node.requirements:
                await install_requirements(node.name, build)
        except NodeFailed as error:
            build.failed(node.name, error.reason, str(error))


async def _clone(node: NodeSpec, build: NodeBuild) -> str:
    target = build.folder / node.name
    existed = target.exists()
    if existed and not (target / ".git").is_dir():
        raise NodeFailed("exists", f"the build script already made {target.name}, which is no git checkout")
    build.folder.mkdir(exist_ok=True)
    try:
        return await _checkout(node, target, build)
    except BaseException:
        if not existed:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(target, ignore_errors=True))
        raise


async def _checkout(node: NodeSpec, target: Path, build: NodeBuild) -> str:
    await _git(build, "init", "-q", "--", str(target))
    inside = ("-C", str(target))
    await _git(build, *inside, "config", "remote.origin.url", node.url)
    await _git(build, *inside, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    try:
        await _fetch(build, node, *inside, "fetch", "-q", "--depth", "1", "--", "origin", node.ref or "HEAD")
        commit = "FETCH_HEAD"
    except NodeFailed:
        if node.ref is None or not _COMMIT.match(node.ref):
            raise
        # A server may refuse to be asked for a commit by (a part of) its name.
        await _git(build, *inside, "fetch", "-q", "--tags", "--", "origin")
        commit = node.ref
    await _git(build, *inside, "checkout", "-q", "--detach", "--force", commit)
    if (target / ".gitmodules").is_file():
        await _git(build, *inside, "submodule", "-q", "update", "--init", "--recursive", "--depth", "1")
    return await _head(build, target)


async def _fetch(build: NodeBuild, node: NodeSpec, *arguments: str) -> None:
    """git fetch; a server that is not on this machine gets a second and third chance."""
    pauses = () if node.url.startswith(("/", "file:")) else RETRY_PAUSES_S
    for pause in pauses:
        try:
            return await _git(build, *arguments)
        except NodeFailed:
            await anyio.sleep(pause)
    return await _git(build, *arguments)


async def _git(build: NodeBuild, *arguments: str) -> None:
    env = {**build.env, "GIT_ALLOW_PROTOCOL": _ALLOWED, "GIT_CONFIG_COUNT": "1", **_NO_HOOKS}
    command = Command(("git", *arguments), build.tree, env, GIT_LIMIT_S, build.stall_s, uuid=build.uuid)
    await _run(command, build.log, "git_failed", f"git {_verb(arguments)}")


_NO_HOOKS = {"GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": "/dev/null"}


def _verb(arguments: tuple[str, ...]) -> str:
    return arguments[2] if arguments[0] == "-C" else arguments[0]


async def _run(command: Command, log: Path, reason: str, what: str) -> None:
    since = log_size(log)
    try:
        ended = await run_logged(command, log)
    except OSError as error:
        raise NodeFailed(reason, f"{command.argv[0]} cannot be run: {error.strerror}") from error
    if not ended.ok:
        last = await anyio.to_thread.run_sync(tail_lines, log, _SAID_LINES, since)
        said = f": {_telling(last)}" if last else ""
        raise NodeFailed(reason, f"{what} {ended.text()}{said}")


def _telling(lines: tuple[str, ...]) -> str:
    """The line that says why: git and pip go on with advice after it."""
    return next((line for line in lines if line.lower().startswith(("fatal:", "error:"))), lines[-1])


async def _head(build: NodeBuild, target: Path) -> str:
    ended = await run_captured(Command(("git", "rev-parse", "HEAD"), target, build.env, 60.0, uuid=build.uuid))
    commit = ended.output.decode("ascii", "replace").strip()
    if not ended.ok or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise NodeFailed("git_failed", f"git rev-parse {ended.text()}")
    return commit


async def install_requirements(name: str, build: NodeBuild) -> None:
    """`requirements.txt` of one node with the environment's own pip. Raises NodeFailed."""
    wanted = build.folder / name / "requirements.txt"
    if wanted.is_file():
        append_text(build.log, f"# comfyd: node {name}: installing {wanted.name}\n")
        await pip_install(("-r", str(wanted)), wanted.parent, build)


async def pip_install(arguments: tuple[str, ...], cwd: Path, build: NodeBuild) -> None:
    python = build.tree / "venv" / "bin" / "python"
    if not python.exists():
        raise NodeFailed("no_venv", "its requirements cannot be installed: the tree has no venv")
    argv = (str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments)
    command = Command(argv, cwd, build.env, PIP_LIMIT_S, build.stall_s, uuid=build.uuid)
    await _run(command, build.log, "requirements_failed", "pip install of its requirements")


def _copy_node(entry: Path, target: Path) -> None:
    """A folder, a single file, or a link to where somebody works on a node."""
    if entry.is_symlink():
        os.symlink(os.readlink(entry), target)
    elif entry.is_dir():
        shutil.copytree(entry, target, symlinks=True)
    else:
        shutil.copy2(entry, target)


def carry_over(previous: Path, declared: set[str], build: NodeBuild) -> list[str]:
    """Copy nodes that a user put into the previous generation by hand. Returns their names. Blocking.

    declared: folder names that were installed there or brought by its build script.
    """
    carried: list[str] = []
    source = previous / "custom_nodes"
    for entry in sorted(source.iterdir()) if source.is_dir() else []:
        target = build.folder / entry.name
        node = entry.is_dir() or entry.suffix == ".py"
        by_hand = node and entry.name not in declared and not entry.name.startswith((".", "__"))
        if by_hand and not os.path.lexists(target):
            try:
                build.folder.mkdir(exist_ok=True)
                _copy_node(entry, target)
            except (OSError, shutil.Error) as error:
                shutil.rmtree(target, ignore_errors=True)
                build.failed(entry.name, "not_carried", f"could not be copied from {previous.name}: {error}")
            else:
                carried.append(entry.name)
    return carried
