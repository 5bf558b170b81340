"""circus: one watcher per child; the trigger is `circusctl reloadconfig`."""

from collections.abc import Mapping

from benchmarks.harness import PEERS, until
from benchmarks.systems.base import System

_CONF = """[circus]
endpoint = ipc://{folder}/control.sock
pubsub_endpoint = ipc://{folder}/events.sock
statsd = False
umask = 022
"""
_WATCHER = """[watcher:child{number}]
cmd = {line}
numprocesses = 1
copy_env = True
"""


class Circus(System):
    name = "circus"
    needs = (PEERS / "circusd",)
    slow = True

    def start(self) -> None:
        self.write({})
        self.spawn(PEERS / "circusd", self.folder / "circus.ini")
        assert until((self.folder / "control.sock").exists, 20)

    def write(self, before: Mapping[int, int]) -> None:
        watchers = (_WATCHER.format(number=n, line=self.line(n)) for n in self.wanted)
        (self.folder / "circus.ini").write_text(_CONF.format(folder=self.folder) + "".join(watchers))

    def trigger(self, before: Mapping[int, int]) -> None:
        self.start_beside(PEERS / "circusctl", "--endpoint", f"ipc://{self.folder}/control.sock", "reloadconfig")
