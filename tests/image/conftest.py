"""The image, built once for all tests here; and containers that are gone after each test."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import QUICKSTART
from tests.image.build import COMFYUI, WHEELS, Buildah, build_image, fetch_wheels, folder_of_mounts, make_repository
from tests.image.container import Container, Image

TOOLS = ("buildah", "debootstrap", "unshare", "nsenter", "git")
COMM = "config/environments/comm"
MakeContainer = Callable[..., Container]


@dataclass(frozen=True, slots=True)
class Built:
    """The image and what its build scripts need again at run time."""

    image: Image
    folder: Path
    volumes: dict[str, Path]
    environ: dict[str, str]


def require_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    reason = f"{', '.join(missing)} missing: run scripts/dev/install_tools.sh buildah debootstrap" if missing else ""
    if os.geteuid() != 0:
        reason = "needs root"
    if reason and os.environ.get("CI"):
        pytest.fail(f"CI has to build the image: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def built() -> Iterator[Built]:
    require_tools()
    with folder_of_mounts(Path(tempfile.mkdtemp(prefix="comfyd-image-"))) as folder:
        wheels = fetch_wheels()
        repository = make_repository(folder / "comfyui")
        image = build_image(Buildah(folder), repository, wheels)
        volumes = {WHEELS: wheels, COMFYUI: repository}
        yield Built(image, folder, volumes, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS})


@pytest.fixture(scope="session")
def make_container(built: Built) -> Iterator[MakeContainer]:
    """A container with a volume for /workspace, not started yet. With a mounted instances.json it also mounts an
    environment that needs nothing of the network."""
    made: list[Container] = []

    def make(workspace: Path, instances: Path | None = None, **environ: str) -> Container:
        mounted = {} if instances is None else {"/instances.json": instances, f"/{COMM}": QUICKSTART / COMM}
        folder = Path(tempfile.mkdtemp(prefix="container-", dir=built.folder))
        volumes = {**built.volumes, "/workspace": workspace, **mounted}
        made.append(Container(built.image, folder, volumes, {**built.environ, **environ}))
        return made[-1]

    try:
        yield make
    finally:
        for container in made:
            container.kill()


def write_instances(path: Path, *entries: dict[str, Any]) -> Path:
    """In place, as it must be done to a file that is mounted by itself."""
    with path.open("r+" if path.exists() else "w") as file:
        file.write(json.dumps({"instances": entries}, indent=1))
        file.truncate()
    return path
