"""Builds the image as a user would, with buildah and no network for pip: a small Debian as base, a local repository of
the stand-in as ComfyUI, and a folder of wheels that the machine's own pip fetched."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import QUICKSTART, REPOSITORY
from tests.image.container import Image

VERSION = "v9.9.9"
WHEELS, COMFYUI = "/mnt/wheels", "/mnt/comfyui"
ARGUMENTS = {
    "BASE_IMAGE": "localhost/base",
    "COMFYUI_REPOSITORY": COMFYUI,
    "COMFYUI_VERSION": VERSION,
    "TORCH_VERSION": "none",
    "XFORMERS_VERSION": "",
    "INDEX_URL": "",
    "RELEASE": "v0-test",
}
BASE_PYTHON = "3.11"
BUILD_S = 400


def run(*argv: str | Path, cwd: Path | None = None, timeout: float = BUILD_S, **environ: str) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **environ}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Buildah:
    """Buildah with storage of its own in `folder`; the machine's images are never seen or touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def __call__(self, *words: str | Path) -> str:
        store = ("--root", self.folder / "root", "--runroot", self.folder / "run", "--storage-driver", "vfs")
        return run("buildah", *store, *words, TMPDIR=str(self.temporary))

    def build(self, tag: str, file: Path, context: Path, arguments: Mapping[str, str], volumes: list[str]) -> str:
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        mounts = [f"--volume={volume}" for volume in volumes]
        how = ("--isolation=chroot", "--format=docker", "--pull-never", f"--tag={tag}", f"--file={file}")
        return self("bud", *how, *given, *mounts, context)

    def unpack(self, tag: str) -> Image:
        inspected = json.loads(self("inspect", "--type=image", tag))
        return Image(
            Path(self("mount", self("from", "--pull-never", tag).strip()).strip()), inspected["Docker"]["config"]
        )


def requirements() -> list[str]:
    """What pip is asked for while the image is built, and while an environment is installed in it."""
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    project = told["project"]
    comfyd = [*told["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["gpu"]]
    return [*comfyd, "requests", "uv"]


def cache_folder() -> Path:
    return Path(os.environ.get("COMFYD_TEST_CACHE") or REPOSITORY / ".cache").absolute() / "image"


def fetch_wheels() -> Path:
    """A folder with every wheel of requirements() for the base's Python, fetched once."""
    wanted = requirements()
    folder = cache_folder() / f"wheels-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        run(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={BASE_PYTHON}", f"--dest={partial}", *wanted)  # fmt: skip
        partial.rename(folder)
    return folder


def make_repository(folder: Path) -> Path:
    """A git repository of the stand-in, tagged like a release."""
    shutil.copytree(QUICKSTART / "build/comm/comfyui", folder)
    (folder / "requirements.txt").write_text("requests\n")
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run(
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@localhost",
        "commit",
        "--quiet",
        "--message=stand-in",
        cwd=folder,
    )
    run("git", "tag", VERSION, cwd=folder)
    return folder


def build_image(buildah: Buildah, repository: Path, wheels: Path) -> Image:
    base = cache_folder() / "base.tar"
    run(REPOSITORY / "scripts/dev/base_rootfs.sh", base)
    containerfile = buildah.folder / "Base"
    containerfile.write_text(f"FROM scratch\nADD {base.name} /\n")
    buildah.build("localhost/base", containerfile, base.parent, {}, [])
    pip_conf = buildah.folder / "pip.conf"
    pip_conf.write_text(f"[global]\nno-index = true\nfind-links = {WHEELS}\n")
    volumes = [f"{wheels}:{WHEELS}:ro", f"{repository}:{COMFYUI}:ro", f"{pip_conf}:/etc/pip.conf:ro"]
    buildah.build("localhost/comfyd", REPOSITORY / "Dockerfile", REPOSITORY, ARGUMENTS, volumes)
    return buildah.unpack("localhost/comfyd")


@contextmanager
def folder_of_mounts(folder: Path) -> Iterator[Path]:
    """A folder that is removed at the end, after whatever is still mounted below it."""
    try:
        yield folder
    finally:
        for point in mounted_below(folder):
            subprocess.run(["umount", "--lazy", point], check=False)
        assert mounted_below(folder) == [], "removing would reach into what is mounted"
        shutil.rmtree(folder)


def mounted_below(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    names = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point) for point in points]
    return [name for name in reversed(names) if Path(name).is_relative_to(folder)]
