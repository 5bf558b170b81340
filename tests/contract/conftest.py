"""Who is held to the contract: the stand-in in both generations, and a real ComfyUI where one is given.

COMFYD_REAL_COMFYUI_URL: base URL of a running real ComfyUI (the tests leave files and history in it).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import fake


@dataclass(frozen=True)
class Comfy:
    """url, and what is known about it beforehand."""

    url: str
    kind: str

    @property
    def real(self) -> bool:
        return self.kind == "real"


@pytest.fixture(scope="module", params=["fake-legacy", "fake-new", "real"])
def comfyui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    if request.param == "real":
        url = os.environ.get("COMFYD_REAL_COMFYUI_URL")
        if not url:
            pytest.skip("COMFYD_REAL_COMFYUI_URL is not set")
        yield Comfy(url.rstrip("/"), "real")
        return
    generation = request.param.removeprefix("fake-")
    with fake.running(tmp_path_factory.mktemp("comfyui"), GENERATION=generation) as process:
        yield Comfy(process.url, request.param)
