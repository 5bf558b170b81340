#!/usr/bin/env python3
"""Checks docker-bake.hcl against the Dockerfile and the names that users know; no `docker buildx bake` is needed.

    scripts/dev/check_bake.py [FOLDER] [--print]      exit code 1 and one line per problem; --print shows every target

It knows what this file uses: variables with a default (the environment wins), ${NAME}, inherits, groups of groups.
Anything else of HCL is reported, never guessed.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcl2

CUDA = {
    "cu124": {"TORCH_VERSION": "2.6.0+cu124", "XFORMERS_VERSION": "0.0.29.post3", "base": "cuda12.4.1-torch2.6.0"},
    "cu128": {"TORCH_VERSION": "2.7.0+cu128", "XFORMERS_VERSION": "0.0.30", "base": "cuda12.8.1-torch2.7.0"},
}
WORKFLOWS = ("facefusion", "aua-us", "aua-sp")
COMM = tuple(f"{cuda}-{python}" for cuda in CUDA for python in ("py311", "py312"))
GROUPS: Mapping[str, tuple[str, ...]] = {
    "default": ("cu128-py312",),
    "comm": COMM,
    **{workflow: tuple(f"{workflow}-{cuda}-py312" for cuda in CUDA) for workflow in WORKFLOWS},
    "all": (*COMM, *(f"{workflow}-{cuda}-py312" for workflow in WORKFLOWS for cuda in CUDA)),
}
VARIABLES = {
    "REGISTRY": "docker.io",
    "APP": "comfyui",
    "RELEASE": "v0.3.40",
    "BASE_IMAGE_REPOSITORY": "ashleykza/runpod-base",
    "BASE_IMAGE_VERSION": "2.4.2",
    "COMFYUI_VERSION": "v0.3.40",
    "APP_MANAGER_VERSION": "1.2.2",
    "CIVITAI_DOWNLOADER_VERSION": "2.1.0",
    "FACEFUSION_VERSION": "3.0.0",
}
EDITED_FIRST = ("REGISTRY_USER", "RELEASE")
KNOWN_KEYS = {"inherits", "context", "dockerfile", "platforms", "args", "tags"}
NAME = re.compile(r"\$\{(\w+)\}")
ARGUMENT = re.compile(r"^ARG[ \t]+(\w+)=?(\S*)[ \t]*$", re.MULTILINE)


class BakeError(Exception):
    """The file cannot be resolved; says where and why."""


class Bake:
    """A bake file with its variables filled in. variables, groups, targets: by name; targets with inherits merged."""

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        plain = hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False, with_comments=False)
        try:
            parsed = hcl2.loads(text, serialization_options=plain)
        except Exception as error:  # the parser's errors have no common base
            raise BakeError(f"no HCL: {error}") from error
        self.defaults = {name: body.get("default", "") for name, body in self._blocks(parsed, "variable")}
        self.variables = {name: environ.get(name, default) for name, default in self.defaults.items()}
        self._groups = {name: body.get("targets", []) for name, body in self._blocks(parsed, "group")}
        self._raw = dict(self._blocks(parsed, "target"))
        if unknown := parsed.keys() - {"variable", "group", "target"}:
            raise BakeError(f"not understood: {', '.join(sorted(unknown))}")
        self.targets = {name: self._filled(self._merged(name, ()), name) for name in self._raw if name[0] != "_"}

    @staticmethod
    def _blocks(parsed: Mapping[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        seen = set()
        for block in parsed.get(kind, []):
            for name, body in block.items():
                if name in seen:
                    raise BakeError(f"{kind} {name} is written twice")
                seen.add(name)
                yield name, body

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(self._members(name, ())) for name in self._groups}

    def _members(self, name: str, above: tuple[str, ...]) -> Iterator[str]:
        if name in above:
            raise BakeError(f"group {name} holds itself")
        if name in self._groups:
            for member in self._groups[name]:
                yield from self._members(member, (*above, name))
        elif name in self.targets:
            yield name
        else:
            raise BakeError(f"group {above[-1]} names {name}, which is no target")

    def _merged(self, name: str, above: tuple[str, ...]) -> dict[str, Any]:
        """Later parents win over earlier ones, the target over all; `args` merge by key."""
        if name not in self._raw or name in above:
            what = "inherits itself" if name in above else "does not exist"
            raise BakeError(f"target {name}, inherited by {above[-1]}, {what}")
        if unknown := self._raw[name].keys() - KNOWN_KEYS:
            raise BakeError(f"target {name}: not understood: {', '.join(sorted(unknown))}")
        result: dict[str, Any] = {}
        parents = [self._merged(parent, (*above, name)) for parent in self._raw[name].get("inherits", [])]
        for body in (*parents, self._raw[name]):
            args = {**result.get("args", {}), **body.get("args", {})}
            result = {**result, **body, "args": args}
        result.pop("inherits", None)
        return result

    def _filled(self, value: Any, where: str) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(one, f"{where}.{key}") for key, one in value.items()}
        if isinstance(value, list):
            return [self._filled(one, where) for one in value]
        names = NAME.findall(str(value))
        if missing := [name for name in names if name not in self.variables]:
            raise BakeError(f"{where}: no variable {', '.join(missing)}")
        if not isinstance(value, str) or "${" in NAME.sub("", value):
            raise BakeError(f"{where}: not understood: {value}")
        return NAME.sub(lambda found: str(self.variables[found[1]]), value)


def problems(folder: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Everything wrong with FOLDER/docker-bake.hcl, one sentence each."""
    text = (folder / "docker-bake.hcl").read_text()
    try:
        bake, own = Bake(text, environ), Bake(text, {})
        groups = bake.groups
    except BakeError as error:
        yield str(error)
        return
    yield from wrong_names(bake, groups, text)
    for name, value in VARIABLES.items():
        if own.defaults.get(name) != value:
            yield f"variable {name} is {own.defaults.get(name)!r}, not {value!r}"
    for name, target in bake.targets.items():
        yield from (f"target {name}: {wrong}" for wrong in wrong_target(folder, name, target, bake))
    if "cu128-py312" in own.targets:
        yield from wrong_defaults(folder, own.targets["cu128-py312"])


def wrong_names(bake: Bake, groups: Mapping[str, tuple[str, ...]], text: str) -> Iterator[str]:
    for name in sorted(GROUPS.keys() | groups.keys()):
        if sorted(groups.get(name, ())) != sorted(GROUPS.get(name, ())):
            yield f"group {name} is {list(groups.get(name, ()))}, not {list(GROUPS.get(name, ()))}"
    for name in sorted(set(GROUPS["all"]) ^ bake.targets.keys()):
        yield f"target {name} is {'unknown' if name in bake.targets else 'missing'}"
    written = re.findall(r'^variable "(\w+)"', text, re.MULTILINE)
    if tuple(written[: len(EDITED_FIRST)]) != EDITED_FIRST:
        yield f"the values to edit, {', '.join(EDITED_FIRST)}, do not stand on top"


def arguments_of(dockerfile: Path) -> dict[str, str]:
    """Every ARG with its default."""
    return dict(ARGUMENT.findall(dockerfile.read_text()))


def wrong_target(folder: Path, name: str, target: Mapping[str, Any], bake: Bake) -> Iterator[str]:
    context = folder / target.get("context", ".")
    dockerfile = context / target.get("dockerfile", "Dockerfile")
    if not context.is_dir() or not dockerfile.is_file():
        yield f"{dockerfile} is missing"
        return
    for argument in sorted(target["args"].keys() - arguments_of(dockerfile).keys()):
        yield f"{dockerfile.name} has no ARG {argument}"
    if target.get("platforms") != ["linux/amd64"]:
        yield f"platforms are {target.get('platforms')}"
    yield from wrong_values(name, target["args"], bake.variables)
    prefix = "{REGISTRY}/{REGISTRY_USER}/{APP}:".format_map(bake.variables)
    wanted = [f"{prefix}{name}-{bake.variables['RELEASE']}", f"{prefix}{name}-latest"]
    wanted += [f"{prefix}latest"] if name in GROUPS["default"] else []
    if target.get("tags") != wanted:
        yield f"tags are {target.get('tags')}, not {wanted}"


def wrong_values(name: str, args: Mapping[str, str], variables: Mapping[str, str]) -> Iterator[str]:
    """WORKFLOW, base image and versions follow from the name: [WORKFLOW-]CUDA-PYTHON."""
    *workflow, cuda, python = name.rsplit("-", 2)
    if cuda not in CUDA:
        return
    base = f"{variables.get('BASE_IMAGE_REPOSITORY')}:{variables.get('BASE_IMAGE_VERSION')}"
    wanted = {
        "WORKFLOW": "".join(workflow) or "comm",
        "BASE_IMAGE": f"{base}-python3.{python.removeprefix('py3')}-{CUDA[cuda]['base']}",
        "TORCH_VERSION": CUDA[cuda]["TORCH_VERSION"],
        "XFORMERS_VERSION": CUDA[cuda]["XFORMERS_VERSION"],
        "INDEX_URL": f"https://download.pytorch.org/whl/{cuda}",
    }
    for key, value in wanted.items():
        if args.get(key) != value:
            yield f"{key} is {args.get(key)}, not {value}"


def wrong_defaults(folder: Path, target: Mapping[str, Any]) -> Iterator[str]:
    """A plain `docker build .` makes what the default target makes."""
    declared = arguments_of(folder / "Dockerfile") if (folder / "Dockerfile").is_file() else {}
    for key, value in target["args"].items():
        if key in declared and declared[key] != value:
            yield f"Dockerfile: ARG {key}={declared[key]}, but the default target has {value}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--print", action="store_true", dest="show", help="show every target as JSON")
    given = parser.parse_args()
    found = list(problems(given.folder, os.environ))
    for problem in found:
        print(f"docker-bake.hcl: {problem}", file=sys.stderr)
    if found:
        return 1
    bake = Bake((given.folder / "docker-bake.hcl").read_text(), os.environ)
    if given.show:
        print(json.dumps({"group": bake.groups, "target": bake.targets}, indent=2))
    for workflow in sorted({t["args"]["WORKFLOW"] for t in bake.targets.values()}):
        if not (given.folder / "build" / workflow / "install.sh").is_file():
            print(f"docker-bake.hcl: note: no build/{workflow} here, its targets cannot be built", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
