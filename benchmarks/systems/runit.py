"""runit: one runsv per child. runsvdir has no trigger: it looks every 5 s by itself."""

import signal
from collections.abc import Mapping

from benchmarks.systems.base import System


class Runit(System):
    name = "runit"
    needs = ("/usr/bin/runsvdir", "/usr/bin/sv")
    stop_signal = signal.SIGHUP

    def start(self) -> None:
        for name in ("services", "scan"):
            (self.folder / name).mkdir()
        self.spawn("/usr/bin/runsvdir", self.folder / "scan")

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
        for number, version in self.wanted.items():
            if number in before and before[number] != version:
                self.run("/usr/bin/sv", "-w", "0", "restart", self.folder / f"services/{number}")
