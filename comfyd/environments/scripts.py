"""Steps 2 to 4 and the running of scripts: find, copy to a private folder, rewrite, run as a file.

Owns: what happens to the text of build scripts. Must not: edit anything below build/ or config/.
"""

import difflib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comfyd.core.rewrite import rewrite, unsafe_target
from comfyd.environments.failure import InstallFailed
from comfyd.model.paths import Paths

MAX_SCRIPT_BYTES = 8 * 1024 * 1024
_NOT_REWRITTEN = frozenset({".patch", ".diff"})
"""Patches quote the files they change: rewriting their context would make them fail."""

_SHELL = re.compile(r"#!.*sh\b")


@dataclass(frozen=True, slots=True)
class Changed:
    """One rewritten file: path below the folder, text before and after."""

    path: str
    before: str
    after: str


def find_script(paths: Paths, env: str) -> Path:
    """Step 2: `build/<env>/install.sh`."""
    script = paths.build_dir / env / "install.sh"
    if not script.is_file():
        message = f"there is no {script}; add the build script or correct the environment's name"
        raise InstallFailed(message, reason="build_script_missing")
    return script


def copy_folder(source: Path, target: Path, build_dir: Path) -> None:
    """Step 3: a private copy (mode 0700). Links that stay inside the folder are kept, links to files elsewhere below
    build/ become their content, every other link is refused."""
    target.mkdir(mode=0o700)
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        _copy_entry(Path(entry.path), target / entry.name, source, build_dir.resolve())


def _copy_entry(entry: Path, target: Path, top: Path, build_dir: Path) -> None:
    mode = entry.lstat().st_mode
    if stat.S_ISLNK(mode):
        _copy_link(entry, target, top, build_dir)
    elif stat.S_ISDIR(mode):
        target.mkdir()
        for child in sorted(os.scandir(entry), key=lambda e: e.name):
            _copy_entry(Path(child.path), target / child.name, top, build_dir)
    elif stat.S_ISREG(mode):
        shutil.copy2(entry, target)


def _copy_link(entry: Path, target: Path, top: Path, build_dir: Path) -> None:
    text, real = os.readlink(entry), entry.resolve()
    if not os.path.isabs(text) and real.is_relative_to(top.resolve()):
        os.symlink(text, target)
    elif real.is_file() and real.is_relative_to(build_dir):
        shutil.copy2(real, target)
    else:
        message = f"{entry} is a link to {text}, which is outside of {build_dir}; put a copy in its place"
        raise InstallFailed(message, reason="build_link_outside")


def rewrite_folder(folder: Path, tree: Path) -> list[Changed]:
    """Step 4: rewrite every text file of the copy to `tree`; run bits stay. Refuses what cannot be rewritten."""
    unsafe = unsafe_target(str(tree))
    if unsafe:
        raise InstallFailed(unsafe, reason="unsafe_path", hint="choose another COMFYD_WORKSPACE or root")
    changed, problems = preview_folder(folder, tree)
    if problems:
        raise InstallFailed("; ".join(problems), reason="not_rewritable")
    for change in changed:
        (folder / change.path).write_bytes(change.after.encode("utf-8", "surrogateescape"))
    return changed


def preview_folder(folder: Path, tree: Path) -> tuple[list[Changed], list[str]]:
    """What a rewrite would change and what it cannot put right. Writes nothing."""
    changed: list[Changed] = []
    problems: list[str] = []
    for path in _files(folder):
        text = _text(path)
        if text is None:
            continue
        name = str(path.relative_to(folder))
        done = rewrite(text, str(tree))
        if path.suffix in (".sh", ".bash") or _SHELL.match(text):
            problems += [f"{name}: {problem}" for problem in done.problems]
        if done.count:
            changed.append(Changed(name, text, done.text))
    return changed, problems


def unified_diff(changed: list[Changed]) -> str:
    """The changes as one unified diff."""
    lines: list[str] = []
    for change in changed:
        before, after = change.before.splitlines(keepends=True), change.after.splitlines(keepends=True)
        diff = difflib.unified_diff(before, after, f"a/{change.path}", f"b/{change.path}")
        lines += [line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in diff]
    return "".join(lines).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(top, name)
            if not path.is_symlink() and path.is_file() and path.suffix not in _NOT_REWRITTEN:
                yield path


def _text(path: Path) -> str | None:
    if path.stat().st_size > MAX_SCRIPT_BYTES:
        return None
    data = path.read_bytes()
    return None if b"\0" in data else data.decode("utf-8", "surrogateescape")


def command_for(script: Path) -> tuple[str, ...]:
    """How a script file is run: by its shebang, `bash FILE` only without one. Makes it executable."""
    with script.open("rb") as file:
        first = file.readline(512)
    if first.rstrip(b"\n").endswith(b"\r"):
        message = f"{script.name} has Windows line ends, which neither its first line nor bash can have"
        raise InstallFailed(message, reason="script_line_ends", hint="save it with Unix line ends")
    if not first.startswith(b"#!"):
        return ("bash", str(script))
    script.chmod(script.stat().st_mode | 0o500)
    return (str(script),)
