"""s6: one s6-supervise per child; a change is a rewritten run script and `s6-svc -r`."""

from collections.abc import Mapping

from benchmarks.harness import until
from benchmarks.systems.base import System


class S6(System):
    name = "s6"
    needs = ("/usr/bin/s6-svscan",)

    def start(self) -> None:
        for name in ("services", "scan"):
            (self.folder / name).mkdir()
        self.spawn("/usr/bin/s6-svscan", "-c", "1000", self.folder / "scan")
        assert until((self.folder / "scan/.s6-svscan/control").exists, 10)

    def write(self, before: Mapping[int, int]) -> None:
        for number, version in self.wanted.items():
            if before.get(number) == version:
                continue
            service = self.folder / f"services/{number}"
            service.mkdir(exist_ok=True)
            script = service / "run"
            script.write_text(f"#!/bin/sh\nexec {self.line(number)}\n")
            script.chmod(0o755)
            if number not in before:
                (self.folder / f"scan/{number}").symlink_to(service)
        for number in set(before) - set(self.wanted):
            (self.folder / f"scan/{number}").unlink()

    def trigger(self, before: Mapping[int, int]) -> None:
        if set(before) != set(self.wanted):
            self.run("/usr/bin/s6-svscanctl", "-an", self.folder / "scan")
        for number, version in self.wanted.items():
            if number in before and before[number] != version:
                self.run("/usr/bin/s6-svc", "-r", self.folder / f"services/{number}")
