"""`doctor --bundle FILE`: what a bug report needs in one tar.gz, without secrets.

Owns: what goes in and which values are known to be secret. Must not: hold anything unmasked.
"""

import io
import json
import os
import platform
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from comfyd import __version__
from comfyd.core.mask import mask_data, mask_text, mask_variables, secret_values
from comfyd.doctor.scene import Scene
from comfyd.doctor.text import lines_of
from comfyd.environments.scan import read_config_files
from comfyd.host import clock, procfs
from comfyd.host.files import atomic_write
from comfyd.model.desired import DesiredState
from comfyd.model.finding import Diagnosis

LOG_BYTES = 256 * 1024
MANY_FILES = 200
_SHOWN_VARIABLES = (
    "COMFY", "CUDA_", "NVIDIA_", "PYTHON", "PATH", "LANG", "TZ", "LD_", "DISABLE_", "EXTRA_ARGS", "HTTP", "HTTPS",
    "SKIP_MODEL_DOWNLOAD", "WORKFLOW", "HF_", "CIVITAI_", "JUPYTER_", "TORCH_",
)  # fmt: skip


def write_bundle(file: Path, diagnosis: Diagnosis, scene: Scene) -> tuple[str, ...]:
    """Write `file` (mode 0600, whole or not at all). Returns the names of its members. Raises OSError."""
    secrets = frozenset(known_secrets(scene))
    buffer = io.BytesIO()
    names: list[str] = []
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in _members(diagnosis, scene, secrets):
            data = text.encode("utf-8", "replace")
            info = tarfile.TarInfo(f"comfyd-report/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(clock.wall())
            archive.addfile(info, io.BytesIO(data))
            names.append(name)
    atomic_write(file, buffer.getvalue(), 0o600)
    return tuple(names)


def _members(diagnosis: Diagnosis, scene: Scene, secrets: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of everything, masked."""

    def as_json(data: Any) -> str:
        return json.dumps(mask_data(data, secrets), indent=1, ensure_ascii=False) + "\n"

    yield "doctor.txt", mask_text("\n".join(lines_of(diagnosis)) + "\n", secrets)
    yield "doctor.json", as_json(diagnosis.model_dump(mode="json"))
    yield "status.json", as_json(dict(scene.status))
    yield "plan.json", as_json(dict(scene.answer.plan or scene.status.get("plan") or {}))
    yield "versions.json", as_json(_versions())
    yield "variables.json", json.dumps(_variables(scene, secrets), indent=1) + "\n"
    for name, text in _files(scene):
        yield name, mask_text(text, secrets)
    for name, text in _records(scene):
        yield name, as_json(json.loads(text)) if name.endswith(".json") else mask_text(text, secrets)


def _versions() -> dict[str, Any]:
    packages = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    return {
        "comfyd": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else "",
        "packages": dict(sorted(packages.items())),
    }


def _variables(scene: Scene, secrets: frozenset[str]) -> dict[str, Mapping[str, str]]:
    """Of the daemon and of this shell, those that comfyd or ComfyUI heed."""
    theirs = procfs.variables_of(scene.daemon_pid) if scene.daemon_pid is not None else {}
    return {
        whose: mask_variables({n: v for n, v in sorted(given.items()) if n.startswith(_SHOWN_VARIABLES)}, secrets)
        for whose, given in (("daemon", theirs), ("doctor", dict(os.environ)))
    }


def _files(scene: Scene) -> Iterator[tuple[str, str]]:
    """The configuration as written, comments and errors too, and the ends of the logs."""
    files = read_config_files(scene.paths)
    sources = {"config/instances.json": files.instances}
    sources |= {f"config/environments/{one.name}.json": one.config for one in files.environments}
    if files.services is not None:
        sources["config/services.json"] = files.services
    for name, source in sources.items():
        text = source.data.decode("utf-8", "replace") if source.data is not None else f"{source.problem}\n"
        yield name, text
    for log in sorted(scene.paths.log_dir.glob("*.log"))[:MANY_FILES]:
        if log.is_file() and not log.is_symlink():
            yield f"logs/{log.name}", _end(log)


def _records(scene: Scene) -> Iterator[tuple[str, str]]:
    """What the installer wrote down of its latest tries."""
    for path in sorted((scene.paths.state_dir / "installs").glob("*.json"))[:MANY_FILES]:
        try:
            text = path.read_text("utf-8", "replace")
            json.loads(text)
        except (OSError, ValueError) as error:
            yield f"installs/{path.name}.txt", f"unreadable: {error}\n"
        else:
            yield f"installs/{path.name}", text


def _end(log: Path) -> str:
    """Whole lines from the end of a log, so that no secret is cut in two and missed."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            data = file.read(LOG_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"
    whole = data if size <= LOG_BYTES else data.partition(b"\n")[2]
    return whole.decode("utf-8", "replace")


def known_secrets(scene: Scene) -> Iterator[str]:
    """Values that are secret whatever they look like: of variables by name, of headers, URLs and `token_env`."""
    theirs = procfs.variables_of(scene.daemon_pid) if scene.daemon_pid is not None else {}
    for variables in (theirs, dict(os.environ)):
        yield from secret_values(variables)
        yield from (part for value in variables.values() if "://" in value for part in _of_url(value))
        for model in (m for e in scene.desired.environments for m in e.models):
            if model.token_env and variables.get(model.token_env):
                yield variables[model.token_env].strip()
    yield from _of_files(scene.desired)


def _of_files(desired: DesiredState) -> Iterator[str]:
    for environment in desired.environments:
        for model in environment.models:
            yield from (model.headers or {}).values()
            yield from _of_url(model.url)
        for node in environment.nodes:
            yield from _of_url(node.url)
    given: Iterable[Mapping[str, str]] = [i.env for i in desired.instances] + [dict(s.env) for s in desired.services]
    for variables in given:
        yield from secret_values(variables)
        yield from (part for value in variables.values() if "://" in value for part in _of_url(value))


def _of_url(url: str) -> Iterator[str]:
    """User, password and the values of its query."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return
    credentials = parts.netloc.rpartition("@")[0]
    for part in credentials.split(":"):
        yield from {part, unquote(part)} - {"", "git"}
    yield from (value for _, value in parse_qsl(parts.query) if len(value) >= 8)
