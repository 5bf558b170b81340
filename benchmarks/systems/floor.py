"""The floor: the least a program in the same language has to do."""

import json
import sys
from collections.abc import Mapping

from benchmarks.harness import REPOSITORY, until
from benchmarks.systems.base import System


class Floor(System):
    name = "floor"

    def start(self) -> None:
        self.write({})
        ready = self.folder / "ready"
        program = REPOSITORY / "benchmarks/floor_supervisor.py"
        self.spawn(sys.executable, program, self.folder, self.child, self.world.path)
        assert until(ready.exists, 10)

    def write(self, before: Mapping[int, int]) -> None:
        self.replace(self.folder / "wanted.json", json.dumps(self.wanted))
