"""The scrubbed environment that build scripts, pip and git get: an allow-list, nothing else of the daemon's.

Owns: which variables pass. Must not: let COMFYD_*, tokens or database addresses through.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from comfyd.core.rewrite import rewrite

BUILD_VARIABLES = (
    "TORCH_VERSION", "XFORMERS_VERSION", "INDEX_URL", "COMFYUI_VERSION", "COMFYUI_COMMIT", "COMFYUI_REPOSITORY",
    "SKIP_MODEL_DOWNLOAD",
)  # fmt: skip
"""VENV_PATH is not among them: every generation has its own venv."""
_PLAIN = re.compile(
    r"(?:PATH|HOME|LANG|TZ|PIP_\w+|UV_\w+|\w+_PROXY|\w+_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|GIT_SSL_\w+)\Z"
)
_BUILD = re.compile(rf"(?:{'|'.join(BUILD_VARIABLES)}|FACEFUSION_\w+)\Z")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def scrubbed(environ: Mapping[str, str], tree: Path, *, skip_models: bool = False) -> dict[str, str]:
    """What a build script may see. Paths in the build variables are moved to `tree` like those in its text."""
    kept = {name: value for name, value in environ.items() if _PLAIN.match(name)}
    kept |= {name: rewrite(value, str(tree)).text for name, value in environ.items() if _BUILD.match(name)}
    kept.setdefault("PATH", DEFAULT_PATH)
    kept["GIT_TERMINAL_PROMPT"] = "0"
    if skip_models:
        kept["SKIP_MODEL_DOWNLOAD"] = "true"
    return kept


def with_venv(env: Mapping[str, str], tree: Path) -> dict[str, str]:
    """The same with the tree's own venv active: its bin first on PATH."""
    venv = tree / "venv"
    if not (venv / "bin").is_dir():
        return dict(env)
    return {**env, "VIRTUAL_ENV": str(venv), "PATH": f"{venv / 'bin'}{os.pathsep}{env.get('PATH', DEFAULT_PATH)}"}
