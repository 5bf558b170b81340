"""supervisor: one file per program; the trigger is `supervisorctl update`."""

from collections.abc import Mapping

from benchmarks.harness import PEERS, until
from benchmarks.systems.base import System

_CONF = """[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
[unix_http_server]
file={folder}/control.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/control.sock
[include]
files={folder}/programs/*.conf
"""
_PROGRAM = """[program:child{number}]
command={line}
startsecs=0
autorestart=true
stdout_logfile=NONE
stderr_logfile=NONE
"""


class Supervisor(System):
    name = "supervisor"
    needs = (PEERS / "supervisord",)
    slow = True

    def start(self) -> None:
        (self.folder / "programs").mkdir()
        (self.folder / "supervisord.conf").write_text(_CONF.format(folder=self.folder))
        self.spawn(PEERS / "supervisord", "-c", self.folder / "supervisord.conf", "-n")
        assert until((self.folder / "control.sock").exists, 20)

    def write(self, before: Mapping[int, int]) -> None:
        for number, version in self.wanted.items():
            if before.get(number) != version:
                text = _PROGRAM.format(number=number, line=self.line(number))
                (self.folder / f"programs/{number}.conf").write_text(text)
        for number in set(before) - set(self.wanted):
            (self.folder / f"programs/{number}.conf").unlink()

    def trigger(self, before: Mapping[int, int]) -> None:
        control = (PEERS / "supervisorctl", "-c", self.folder / "supervisord.conf", "update")
        self.start_beside(*control)
