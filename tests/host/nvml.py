"""A compiled stand-in for the driver's library, so that the real binding is what is tested."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_library(folder: Path) -> Path:
    """`folder`, for LD_LIBRARY_PATH, with a library of two GPUs in it (nvml_stub.c says how they misbehave)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for NVML with")
    source = Path(__file__).with_name("nvml_stub.c")
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(source)], check=True, timeout=60)
    return folder
